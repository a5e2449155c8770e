"""Preprocess: how one picture becomes one input of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onebyone.errors import DataError, is_number, is_whole

if TYPE_CHECKING:
    from PIL.Image import Image

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "hamming", "box")
LARGEST = 1 << 30  # numbers of one image: 4 GiB of them
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def _are(values: Any, kind: Callable[[Any], bool]) -> bool:
    """Whether it is a tuple or list of such values, at least one."""
    return isinstance(values, tuple | list) and len(values) > 0 and all(map(kind, values))


def check_preprocess(preprocess: object) -> None:
    """Raise DataError for what does not say how pictures become inputs; None says nothing."""
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise DataError(
            f"preprocess= is {preprocess!r}: give a Preprocess, such as that of onebyone.load, or "
            "Preprocess((3, 224, 224), mean=(0.5,), std=(0.25,))"
        )


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop around the middle, scale to [0, 1], subtract `mean`, divide by `std`.

    `size` is C×H×W of the result. `resize` is the length that the shorter side gets before the
    crop (torchvision's and timm's way), an exact (height, width), or None: the smallest size that
    covers H×W.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not _are(self.size, is_whole) or len(self.size) != 3 or any(n < 1 for n in self.size):
            raise DataError(
                f"size {self.size!r} is not C×H×W: give three lengths, such as 3x224x224"
            )
        if prod(self.size) > LARGEST:
            raise DataError(
                f"size {self.size} is {prod(self.size):,} numbers for one image, and {LARGEST:,} are the "
                "most that are taken: give a smaller size"
            )
        if self.size[0] not in MODES:
            raise DataError(
                f"images of {self.size[0]} channels cannot be read from files: 1, 3 or 4 are "
                "expected; give an array instead"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not _are(values, is_number) or not all(map(isfinite, values)):
                raise DataError(
                    f"{name} {values!r} does not fit: give a number for each channel, such as (0.5,)"
                )
            if len(values) not in (1, self.size[0]):
                raise DataError(
                    f"{name} has {len(values)} values, the images have {self.size[0]} channels: "
                    f"give 1 or {self.size[0]}"
                )
        if any(s <= 0 for s in self.std):
            raise DataError(f"std {self.std} must be above 0")
        if self.resize is not None:
            lengths: Any = (self.resize,) if is_whole(self.resize) else self.resize
            if not _are(lengths, is_whole) or len(lengths) > 2 or any(n < 1 for n in lengths):
                raise DataError(
                    f"resize {self.resize!r} does not fit: give the shorter side's length, such as 256, or "
                    "(height, width)"
                )
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(
                f"interpolation {self.interpolation!r} is not known: take one of "
                + ", ".join(INTERPOLATIONS)
            )

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain numbers, strings and lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Preprocess:
        """What `to_json` gave; raises `DataError` on anything else."""
        if not isinstance(values, dict):
            raise DataError(f"this is no preprocessing: {values!r}")
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        try:
            return Preprocess(**plain)
        except TypeError as error:
            raise DataError(f"this is no preprocessing: {values} ({error})") from None

    def apply(self, image: Image) -> Tensor:
        """A picture as a float32 tensor (C, H, W), ready for the network."""
        image = eight_bits(image).convert(MODES[self.size[0]])
        image = _center_crop(self._resized(image), self.size[1], self.size[2])
        pixels = np.array(image, dtype=np.uint8)  # a copy: PIL's own memory is read-only
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        return self.normalize(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 values (…, C, H, W) as float32: (pixels / 255 − mean) / std."""
        mean, std = (
            torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std)
        )
        return pixels.float().div(255).sub(mean).div(std)

    def _resized(self, image: Image) -> Image:
        from PIL import Image as pil

        method = pil.Resampling[self.interpolation.upper()]
        width, height = image.size
        if isinstance(self.resize, tuple):
            target = (self.resize[1], self.resize[0])
        elif self.resize is not None:
            target = _scaled(width, height, self.resize)
        else:
            scale = max(self.size[1] / height, self.size[2] / width)
            target = (
                max(self.size[2], round(width * scale)),
                max(self.size[1], round(height * scale)),
            )
        return image if target == image.size else image.resize(target, method)


def _scaled(width: int, height: int, shorter: int) -> tuple[int, int]:
    # The long side is rounded down, as torchvision does.
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _center_crop(image: Image, height: int, width: int) -> Image:
    left = round((image.size[0] - width) / 2)
    top = round((image.size[1] - height) / 2)
    # PIL fills what lies outside the picture with black, as torchvision pads.
    return image.crop((left, top, left + width, top + height))


def eight_bits(image: Image) -> Image:
    """Gray pictures of 16 bits or of floating point scaled to 8 bits, which PIL's own conversion clips.

    Pictures in Lab colors come in red, green and blue, from which PIL goes on to any other mode.
    Those of floating point reach to 1, or as far as whole numbers do. Raises DataError for what is no
    number.
    """
    from PIL import Image as pil

    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB") if image.mode in ("LAB", "HSV") else image
    values = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError("the picture holds NaN or infinite values: give one of numbers alone")
    most = float(values.max())
    scale = 1 / 257 if image.mode.startswith("I;16") or most > 255 else 1.0
    if image.mode == "F" and most <= 1:
        scale = 255.0
    return pil.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))
