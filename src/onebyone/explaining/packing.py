"""Arrays → what a page can hold: small, exact, and harmless inside of HTML."""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from onebyone.report.markup import Markup

KINDS = {torch.float32: "f4", torch.uint8: "u1"}
LEVELS = 255


def packed(values: Tensor) -> dict[str, Any]:
    """The values, compressed: `data` is base64 of zlib of the little-endian numbers in C order.

    float32 is `f4`, uint8 is `u1`; TypeError for others.
    """
    if values.dtype not in KINDS:
        raise TypeError(f"float32 or uint8 is expected, not {values.dtype}")
    raw = values.detach().cpu().contiguous().numpy().astype(f"<{KINDS[values.dtype]}").tobytes()
    data = b64encode(zlib.compress(raw, 9)).decode()
    return {"kind": KINDS[values.dtype], "shape": list(values.shape), "data": data}


@dataclass(frozen=True)
class Levels:
    """Maps of 8 bits a value: low + step · level, for each channel.

    Steps are powers of two and lows multiples of them, so every value is exact in float32.
    """

    levels: UInt8[Tensor, "c h w"]
    low: Float[Tensor, " c"]
    step: Float[Tensor, " c"]

    @property
    def values(self) -> Float[Tensor, "c h w"]:
        """What the levels stand for, in float32."""
        return self.low[:, None, None] + self.step[:, None, None] * self.levels.float()

    def to_json(self) -> dict[str, Any]:
        """The three arrays."""
        return {"levels": packed(self.levels), "low": packed(self.low), "step": packed(self.step)}


def in_levels(maps: Float[Tensor, "c h w"]) -> Levels:
    """The maps with each channel rounded to one of at most 256 levels over its own range.

    No value moves by more than half a step, which is less than 1/127 of the channel's range.
    """
    flat = maps.detach().double().flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    # One level is kept back: rounding low down to a multiple of the step may cost it.
    step = torch.exp2(torch.ceil(torch.log2(((high - low) / (LEVELS - 1)).clamp_min(2.0**-110))))
    step = torch.maximum(
        step, torch.exp2(torch.ceil(torch.log2(flat.abs().amax(1) + 2.0**-100)) - 22)
    )
    low = torch.floor(low / step) * step
    levels = ((flat - low[:, None]) / step[:, None]).round().clamp(0, LEVELS)
    return Levels(levels.to(torch.uint8).reshape(maps.shape), low.float(), step.float())


def data_block(values: Any) -> Markup:
    """JSON in a script element that runs nothing; no text in it can end the element."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(f'<script type="application/json" id="data">{text}</script>\n')
