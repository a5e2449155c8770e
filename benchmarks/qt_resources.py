"""Files inside of a compiled Qt resource (.rcc), as `rcc` lays them out."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

ZLIB, FOLDER, ZSTANDARD = 1, 2, 4  # flags of an entry


def files(path: Path) -> dict[str, bytes]:
    """Contents by name; ValueError for another kind of file, and for what Zstandard has packed."""
    held = path.read_bytes()
    if held[:4] != b"qres":
        raise ValueError(f"{path} is no compiled Qt resource")
    version, tree, data, names = struct.unpack(">iiii", held[4:20])
    size = 22 if version > 1 else 14

    def entries(index: int, above: str) -> Iterator[tuple[str, bytes]]:
        at = tree + size * index
        place, flags = struct.unpack(">IH", held[at : at + 6])
        own = above + "/" + _name(held, names + place) if index else ""
        if flags & FOLDER:
            count, first = struct.unpack(">II", held[at + 6 : at + 14])
            for child in range(first, first + count):
                yield from entries(child, own)
            return
        if flags & ZSTANDARD:
            raise ValueError(f"{path}: {own} is packed by Zstandard")
        (place,) = struct.unpack(">I", held[at + 10 : at + 14])
        (length,) = struct.unpack(">I", held[data + place : data + place + 4])
        content = held[data + place + 4 : data + place + 4 + length]
        yield own, zlib.decompress(content[4:]) if flags & ZLIB else content

    return dict(entries(0, ""))


def _name(held: bytes, at: int) -> str:
    (letters,) = struct.unpack(">H", held[at : at + 2])
    return held[at + 6 : at + 6 + 2 * letters].decode("utf-16-be")
