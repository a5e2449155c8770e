"""A photo, from a file or from what a network was given, in the size that a page can hold."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from onebyone.errors import DataError
from onebyone.explaining.packing import packed
from onebyone.preprocessing import Preprocess, eight_bits

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = Path(__file__).parent / "photos"
ASTRONAUT = ("astronaut.jpg", "Eileen Collins, photographed by NASA; public domain.")
CAT = ("cat.jpg", "Chelsea the cat, by Stefan van der Walt; CC0.")
LONGEST = 256  # pixels of a photo's longer side in the page
ORIGINAL = "size in the file"  # kept with a picture
DECODED = 2048  # pixels of the longer side from which a file is reduced while it is read


@dataclass(frozen=True)
class Photo:
    """Pixels (H, W, 3) from 0 to 255, what is said below them, and notes on how they came about."""

    pixels: UInt8[Tensor, "h w 3"]
    caption: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return {"pixels": packed(self.pixels), "caption": self.caption}


def open_photo(file: str | Path) -> Image:
    """The picture in a file, upright, its longer side about 2,048 pixels at most.

    Raises DataError where there is no such file, it cannot be read, or it is too large to decode.
    """
    from PIL import Image, ImageOps

    path = Path(file)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"the image {path} {what}: give one picture, such as a .jpg or .png file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is huge is reduced just below
            with Image.open(path) as image:
                size = image.size
                image.draft("RGB", (DECODED, DECODED))
                image.load()
                found = ImageOps.exif_transpose(image)
                found.thumbnail((DECODED, DECODED))
                turned = (found.size[0] < found.size[1]) != (size[0] < size[1])
                found.info[ORIGINAL] = size[::-1] if turned else size
                return found
    except Image.DecompressionBombError:
        raise DataError(
            f"the image {path} is too large to be decoded safely: reduce it first, 224 pixels a side "
            "are enough"
        ) from None
    except Exception as error:  # PIL's decoders raise nearly anything on damaged files
        raise DataError(
            f"the image {path} cannot be read ({type(error).__name__}: {error}): give a picture, such "
            "as a .jpg or .png file"
        ) from error


def built_in(photo: tuple[str, str]) -> tuple[Image, str]:
    """A photo that comes along, and whose it is."""
    name, credit = photo
    return open_photo(FOLDER / name), credit


def shown(image: Image, caption: str = "") -> Photo:
    """The picture in colors, reduced so that its longer side has 256 pixels at most."""
    small = eight_bits(image).convert("RGB")
    before = image.info.get(ORIGINAL, image.size)
    small.thumbnail((LONGEST, LONGEST))
    notes = ()
    if small.size != before:
        sizes = [f"{width}×{height}" for width, height in (before, small.size)]
        notes = (f"the photo was reduced from {sizes[0]} to {sizes[1]} pixels",)
    return Photo(torch.from_numpy(np.array(small, dtype=np.uint8)), caption, notes)


def cropped(image: Image, preprocess: Preprocess, caption: str = "") -> Photo:
    """The part of the picture that a network sees after resizing and cropping."""
    channels = preprocess.size[0]
    zero, one = (0.0,) * channels, (1.0,) * channels
    plain = Preprocess(
        preprocess.size, zero, one, preprocess.resize, preprocess.interpolation
    ).apply(image)  # fmt: skip
    return of_input(plain, caption, (0.0, 1.0))


def of_input(
    values: Float[Tensor, "c h w"], caption: str = "", limits: tuple[float, float] | None = None
) -> Photo:
    """An input of a network as a picture: its first three channels, or its first as gray.

    The least value is black and the largest white, or those in `limits`; at most 256 pixels a side.
    """
    colors = values[:3] if len(values) >= 3 else values[:1].expand(3, -1, -1)
    stride = max(1, -(-max(colors.shape[1:]) // LONGEST))
    colors = colors[:, ::stride, ::stride].float()
    low, high = limits or (float(colors.min()), float(colors.max()))
    scaled = (colors - low) / max(high - low, 1e-12) * 255
    return Photo(
        scaled.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous(), caption
    )
