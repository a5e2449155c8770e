"""A folder of image files → tensors and labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from onebyone.errors import DataError, seeded
from onebyone.preprocessing import Preprocess

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """What was read: inputs (N, C, H, W), labels (N,) or None, the files skipped and why."""

    inputs: Tensor
    labels: Tensor | None
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


def shuffled(n: int, seed: int) -> Tensor:
    """An order of n things, the same one for the same seed."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seeded(seed, DataError)))


def read_folder(
    path: Path,
    preprocess: Preprocess | None,
    *,
    limit: int | None = None,
    seed: int = 0,
    classes: tuple[str, ...] | None = None,
) -> Folder:
    """The images under `path`, at most `limit` of them, drawn at random by `seed`.

    No more files are decoded than are needed. Unreadable files are skipped and named; raises
    `DataError` where no image is left, or where the normalization is not known.
    """
    preprocess, files = _files(path, preprocess)
    drawn = [files[i] for i in shuffled(len(files), seed).tolist()]
    kept, tensors, skipped = _decode(drawn, preprocess, len(files) if limit is None else limit)
    if not tensors:
        raise DataError(
            f"none of the {len(skipped)} image files in {path} can be read: "
            + "; ".join(skipped[:3])
        )
    labels, notes = _labels(path, files, kept, classes)
    return Folder(torch.stack(tensors), labels, tuple(skipped), notes)


@dataclass(frozen=True)
class Listing:
    """The image files of a folder, decoded when they are asked for."""

    files: tuple[Path, ...]
    labels: Tensor | None
    notes: tuple[str, ...]
    preprocess: Preprocess
    skipped: dict[Path, str] = field(default_factory=dict, compare=False)

    def read(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Some of the images (N, C, H, W) with their labels; files that cannot be read are left out, and
        noted in `skipped` with the reason."""
        wanted = [self.files[i] for i in index.tolist()]
        threads = min(8, os.cpu_count() or 1)
        with _quiet(), ThreadPoolExecutor(threads) as pool:
            read = list(pool.map(lambda f: _read(f, self.preprocess), wanted))
        kept = [i for i, result in enumerate(read) if isinstance(result, Tensor)]
        self.skipped.update(
            (file, why) for file, why in zip(wanted, read, strict=True) if isinstance(why, str)
        )
        if not kept:
            raise DataError(
                f"none of {len(wanted)} image files can be read, the first is {wanted[0]}: {read[0]}"
            )
        labels = None if self.labels is None else self.labels[index[torch.tensor(kept)]]
        return torch.stack([r for r in read if isinstance(r, Tensor)]), labels


def unread(skipped: Sequence[str]) -> tuple[str, ...]:
    """A note on files that could not be read, each given with the reason; none where all could."""
    count = len(skipped)
    if not count:
        return ()
    named = "; ".join(skipped[:3]) + (f"; and {count - 3:,} more" if count > 3 else "")
    what = "1 image file" if count == 1 else f"{count:,} image files"
    return (f"{what} could not be read: {named}",)


def list_folder(
    path: Path, preprocess: Preprocess | None, classes: tuple[str, ...] | None = None
) -> Listing:
    """The image files under `path`, none of them read; `DataError` as for `read_folder`."""
    preprocess, files = _files(path, preprocess)
    labels, notes = _labels(path, files, files, classes)
    return Listing(tuple(files), labels, notes, preprocess)


def _files(path: Path, preprocess: Preprocess | None) -> tuple[Preprocess, list[Path]]:
    """The image files in a folder, sorted, and how to read them."""
    if preprocess is None:
        raise DataError(
            f"how the network takes pictures is not known, so {path} cannot be read: give --size "
            "(such as 224; not needed where it is its input's), --mean and --std (0 and 1 where pixels are "
            "divided by 255 and no more; in Python a Preprocess)"
        )
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and _is_file(p))
    if not files:
        raise DataError(
            f"{path} holds no image: files ending in {', '.join(SUFFIXES)} are expected"
        )
    return preprocess, files


def _is_file(path: Path) -> bool:
    """Whether it is a file, or a link to what is not there, which is told of as one that cannot be read."""
    return path.is_file() or (path.is_symlink() and not path.exists())


@contextmanager
def _quiet() -> Iterator[None]:
    """Large pictures are brought to the network's size at once: there is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Image size .* exceeds limit")
        yield


def _decode(
    files: list[Path], preprocess: Preprocess, wanted: int
) -> tuple[list[Path], list[Tensor], list[str]]:
    kept: list[Path] = []
    tensors: list[Tensor] = []
    skipped: list[str] = []
    with _quiet():
        for file, result in _decoded(files, preprocess, wanted):
            if isinstance(result, Tensor):
                kept.append(file)
                tensors.append(result)
            else:
                skipped.append(f"{file}: {result}")
            if len(kept) == wanted:
                break
    return kept, tensors, skipped


def _decoded(
    files: list[Path], preprocess: Preprocess, wanted: int
) -> Iterator[tuple[Path, Tensor | str]]:
    """Each file with its tensor, or the reason why it has none; a few files at a time."""
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        step = min(wanted, 16 * threads)
        for start in range(0, len(files), step):
            part = files[start : start + step]
            yield from zip(part, pool.map(lambda f: _read(f, preprocess), part), strict=True)


def _read(file: Path, preprocess: Preprocess) -> Tensor | str:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return preprocess.apply(image)
    except Exception as error:  # PIL's decoders raise nearly anything on damaged files
        return f"{type(error).__name__}: {error}"


def _labels(
    path: Path, files: list[Path], kept: list[Path], classes: tuple[str, ...] | None
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Class numbers by the first folder below `path`, or None with the reason."""
    parts = [f.relative_to(path).parts for f in files]
    if any(len(p) == 1 for p in parts):
        mixed = any(len(p) > 1 for p in parts)
        stray = next(f.name for f, p in zip(files, parts, strict=True) if len(p) == 1)
        note = f"no labels: {path} holds images outside its class folders, such as {stray}"
        return None, (note,) if mixed else ()
    names = sorted({p[0] for p in parts})
    empty = [p.name for p in path.iterdir() if p.is_dir() and p.name[0] != "."]
    empty = sorted(set(empty).difference(names))
    if classes is None and empty:
        return None, (
            f"no labels: the folder {empty[0]!r} in {path} holds no image, so that it is not known which "
            "number the classes behind it have (fill it, or take it out)",
        )
    order = _order(names, classes)
    if order is None:
        return None, (
            f"no labels: the {len(names)} folders in {path} are not named like the network's "
            f"{len(classes or ())} classes ({', '.join(names[:3])} …)",
        )
    return torch.tensor([order[f.relative_to(path).parts[0]] for f in kept]), ()


def _order(names: list[str], classes: tuple[str, ...] | None) -> dict[str, int] | None:
    """Folder name → class number: by the network's class names, else by the sorted folders."""
    if classes is not None:
        known = {c.casefold(): i for i, c in enumerate(classes)}
        # A "/" cannot stand in a folder's name; people write "_" or "-" for it, and for spaces.
        plain = {_plain(c): i for i, c in enumerate(classes)}
        found = [known.get(n.casefold(), plain.get(_plain(n))) for n in names]
        if all(i is not None for i in found):
            return {n: i for n, i in zip(names, found, strict=True) if i is not None}
        if len(names) != len(classes):
            return None
    return {n: i for i, n in enumerate(names)}


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())
