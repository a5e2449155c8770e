"""Rows of least-squares problems out of feature maps: input patches, and outputs at positions."""

from __future__ import annotations

from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from onebyone.conv import ConvSpec


def positions_of(conv: ConvSpec, output: Tensor) -> int:
    """Output positions in one item of a layer's output: pixels, or the middle axes of a linear layer."""
    return prod(output.shape[2:]) if conv.kernel else prod(output.shape[1:-1])


def choose_positions(
    items: int, positions: int, wanted: int, generator: torch.Generator
) -> Int[Tensor, "items picked"]:
    """`wanted` of the flat positions 0 … positions − 1 for each item, none twice (all, if fewer).

    Stratified: the range, as a circle, is cut into `wanted` equal parts and one drawn from each.
    """
    if wanted >= positions:
        return torch.arange(positions).expand(items, positions)
    edge = torch.arange(wanted + 1) * positions // wanted
    draw = torch.rand(items, wanted, generator=generator)
    place = edge[:-1] + (draw * (edge[1:] - edge[:-1])).long()
    # The parts differ by one where they cannot be equal: turned by chance, no position is favored.
    turn = torch.randint(positions, (items, 1), generator=generator)
    return (torch.minimum(place, edge[1:] - 1) + turn) % positions


def output_rows(
    conv: ConvSpec, output: Tensor, positions: Int[Tensor, "items picked"]
) -> Float[Tensor, "samples c_out"]:
    """A layer's outputs (or gradients there) at the chosen positions, in float32."""
    positions = positions.to(output.device)
    if conv.kernel:
        # Flattened, as of no items a size of -1 would not be known.
        flat = output.flatten(2).transpose(1, 2)
        if positions.shape[1] == flat.shape[1]:
            # A copy always: an in-place activation behind the layer overwrites its output.
            return flat.reshape(-1, flat.shape[2]).to(torch.float32, copy=True)
    else:
        flat = output.reshape(len(output), prod(output.shape[1:-1]), output.shape[-1])
    item = torch.arange(len(flat), device=output.device)[:, None]
    return flat[item, positions].reshape(-1, flat.shape[2]).float()


def patch_rows(
    conv: ConvSpec, x: Tensor, positions: Int[Tensor, "items picked"]
) -> Float[Tensor, "samples taps c_in"]:
    """The input patches that the chosen output positions read, padding included, in float32.

    A position of a transposed convolution reads a pixel at some of the taps only, zeros at the others:
    patches are those of the input with zeros between its pixels.
    """
    positions = positions.to(x.device)
    if not conv.kernel:
        return output_rows(conv, x, positions)[:, None]
    if conv.transposed:
        return _spread_rows(conv, x, positions)
    size = x.shape[2:]
    out = conv.output_size(tuple(size))
    if any(before or after for before, after in conv.padding):
        flat_padding = [p for pair in reversed(conv.padding) for p in pair]
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, flat_padding, mode=mode)
    padded = x.shape[2:]
    pixels = x.movedim(1, -1).reshape(-1, conv.c_in)
    corner = torch.zeros_like(positions)
    reach = torch.zeros(1, dtype=torch.long, device=x.device)
    rest, pitch = positions, 1
    for axis in reversed(range(len(size))):
        corner = corner + rest % out[axis] * conv.stride[axis] * pitch
        rest = rest // out[axis]
        steps = torch.arange(conv.kernel[axis], device=x.device) * conv.dilation[axis] * pitch
        reach = (steps[:, None] + reach[None]).reshape(-1)
        pitch *= padded[axis]
    corner = corner + torch.arange(len(x), device=x.device)[:, None] * pitch
    index = (corner.reshape(-1, 1) + reach).reshape(-1)
    return pixels.index_select(0, index).reshape(-1, conv.taps, conv.c_in).float()


def _spread_rows(
    conv: ConvSpec, x: Tensor, positions: Int[Tensor, "items picked"]
) -> Float[Tensor, "samples taps c_in"]:
    """`patch_rows` of a transposed convolution: output q reads (q + padding − dilation · tap) / stride."""
    size = x.shape[2:]
    out = conv.output_size(tuple(size))
    pixels = x.movedim(1, -1).reshape(-1, conv.c_in)
    item = torch.arange(len(x), device=x.device)[:, None].expand_as(positions).reshape(-1, 1)
    index = torch.zeros_like(item)
    reads = torch.ones_like(index, dtype=torch.bool)
    rest, pitch = positions.reshape(-1), 1
    for axis in reversed(range(len(size))):
        tap = torch.arange(conv.kernel[axis], device=x.device) * conv.dilation[axis]
        place = (rest % out[axis] + conv.padding[axis][0])[:, None] - tap
        pixel = place.div(conv.stride[axis], rounding_mode="floor")
        there = (pixel * conv.stride[axis] == place) & (pixel >= 0) & (pixel < size[axis])
        # The taps of this axis go before those that are there already, which turn faster.
        index = (pixel[:, :, None] * pitch + index[:, None]).flatten(1)
        reads = (there[:, :, None] & reads[:, None]).flatten(1)
        rest, pitch = rest // out[axis], pitch * size[axis]
    index = torch.where(reads, index + item * pitch, 0)
    found = pixels.index_select(0, index.reshape(-1)).float()
    return (found * reads.reshape(-1, 1)).reshape(-1, conv.taps, conv.c_in)
