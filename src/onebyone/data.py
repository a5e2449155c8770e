"""Images from anything: tensors, arrays, folders, loaders, the built-in set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onebyone.errors import DataError, is_whole, whole
from onebyone.folders import read_folder, shuffled
from onebyone.preprocessing import Preprocess, check_preprocess
from onebyone.several import Packing, described, pack

DEMO = Path(__file__).parent / "demo"
DEMO_PREPROCESS = Preprocess((1, 28, 28), (0.2860,), (0.3530,))
PICKLED = "it is no file that numpy wrote, or holds Python objects, which are not read"
DEMO_FILES = {"demo": "calibration.npz", "demo:test": "test.npz"}


@dataclass(frozen=True)
class Images:
    """Images in memory, ready for the network, with labels where they are known.

    `inputs` is float32 (N, C, H, W), or (N, C, L) or (N, C, D, H, W); `labels` is int64 (N,) or
    None; `skipped` says which files could not be read and why; `notes` are for people. `packing` says
    how several inputs lie in `inputs`, None where an image is all that the network takes.
    """

    inputs: Tensor
    labels: Tensor | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    packing: Packing | None = None

    def __post_init__(self) -> None:
        _check_inputs(self.inputs)
        if self.inputs.is_inference():  # no gradient could be taken of what these go through
            object.__setattr__(self, "inputs", self.inputs.clone())
        if self.labels is not None:
            _check_labels(self.labels, len(self.inputs))
            object.__setattr__(self, "labels", self.labels.long())

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        return self.batches(64)

    def take(self, n: int, seed: int = 0) -> Images:
        """A random subset of n images, the same one for the same seed; all where n is larger."""
        n = whole("n", n, 1, error=DataError)
        return self if n >= len(self) else self._at(shuffled(len(self), seed)[:n])

    def led_by(self, place: int) -> Images:
        """The same images, with the one at this place first."""
        others = [i for i in range(len(self)) if i != place]
        return self._at(torch.tensor([place, *others])) if place else self

    def split(self, held_out: float, seed: int = 0) -> tuple[Images, Images]:
        """A random split into (the rest, the held-out images).

        `held_out` is a number of images (int) or a fraction of them (float below 1).
        """
        n = number_of(held_out, len(self))
        if not 0 < n < len(self):
            raise DataError(
                f"{held_out} of {len(self)} images cannot be held out: at least one must remain on "
                "each side; give more images"
            )
        order = shuffled(len(self), seed)
        return self._at(order[n:]), self._at(order[:n])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """(inputs, labels or None), `size` images at a time, in order."""
        for start in range(0, len(self), size):
            chosen = slice(start, start + size)
            yield self.inputs[chosen], None if self.labels is None else self.labels[chosen]

    def _at(self, index: Tensor) -> Images:
        labels = None if self.labels is None else self.labels[index]
        return replace(self, inputs=self.inputs[index], labels=labels)


def as_classes(classes: object) -> tuple[str, ...] | None:
    """The names of classes in the network's order, or None; DataError for what are no names."""
    if classes is None:
        return None
    given = None if isinstance(classes, str) or not isinstance(classes, Iterable) else [*classes]
    if given is None or not all(isinstance(name, str) for name in given):
        raise DataError(
            f"classes={classes!r} are no names: give a text for each class, in the network's order"
        )
    return tuple(given) or None


def open_images(
    data: Any,
    preprocess: Preprocess | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    classes: tuple[str, ...] | None = None,
    names: tuple[str, ...] = (),
    memory: int | None = None,
) -> Images:
    """Images from `data`, at most `limit` of them, and of batches no more than fit in `memory` bytes.

    `data` is one of
      - a float tensor or array (N, C, H, W), taken as it is; uint8 is divided by 255 and normalized
        by `preprocess`, and uint8 arrays may be (N, H, W, C) or, for one channel, (N, H, W);
      - a dict of several inputs, by their names in the network's forward: tensors or arrays with
        the images as their first axis, or lists or dicts of such, taken as they are;
      - a tuple (images, labels) of those;
      - a `.npy` file, or a `.npz` file with `images` (or `x`, `arr_0`) and, where there are labels,
        `labels` (or `y`), or else with several inputs by their names; those in `names`, where it has
        all of them;
      - a folder of image files; the folders in it, sorted by name, give the labels, or the names in
        `classes` where all of them are found there;
      - a DataLoader or any iterable of batches: a batch is a tensor, or a tuple, list or dict whose
        first item is one, or a tuple or list whose first item is a dict of several inputs; a second
        item of N integers is taken as labels;
      - "demo" (1,024 training images) or "demo:test" (5,000 labeled test images), built in.

    From tensors, arrays and folders a random subset is taken, the same one for the same `seed`;
    from an iterable the first images. Raises `DataError` on what is missing, unreadable, of the
    wrong shape, not finite, or would have to be normalized without `preprocess`.
    """
    check_preprocess(preprocess)
    classes = as_classes(classes)
    if limit is not None and (not is_whole(limit) or limit < 1):
        raise DataError(
            f"limit={limit!r} does not fit: a whole number of at least 1 image is needed"
        )
    if isinstance(data, Images):
        images = data
    elif isinstance(data, str) and data in DEMO_FILES:
        file = DEMO / DEMO_FILES[data]
        return _from_file(file, preprocess or DEMO_PREPROCESS, limit, seed)
    elif isinstance(data, str | Path):
        return _from_path(Path(data), preprocess, limit, seed, classes, names)
    elif isinstance(data, Tensor | np.ndarray):
        images = Images(_inputs(data, preprocess))
    elif isinstance(data, Mapping):
        images = _several(data)
    elif isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Mapping):
        images = _several(data[0], data[1])
    elif isinstance(data, tuple) and len(data) == 2 and _is_pair(*data):
        images = _labeled(_inputs(data[0], preprocess), data[1])
    elif isinstance(data, Iterable):
        images = _from_batches(data, preprocess, limit, memory)
    else:
        raise DataError(
            f"{type(data).__name__} is no data: a tensor, array, dict of inputs, (images, labels) "
            "pair, folder, .npy or .npz file, DataLoader or iterable of batches is expected"
        )
    return images if limit is None else images.take(limit, seed)


def check_held_out(held_out: Images, example: Tensor, packing: Packing | None) -> None:
    """Raise `DataError` where the held-out images are not like those worked with."""
    if held_out.packing != packing:
        raise DataError(
            f"the inputs are {described(packing)}, those held out {described(held_out.packing)}: give "
            "both with the same names, in the same order"
        )
    check_images(held_out, example, "held_out: ")


def check_images(images: Images | Tensor, example: Tensor, where: str = "") -> None:
    """Raise `DataError` where the images have not the axes or channels of the network's example.

    `where` stands before the message: what they are, or where they are from.
    """
    inputs = images.inputs if isinstance(images, Images) else images
    given, taken = _shape(inputs), _shape(example)
    if inputs.ndim != example.ndim:
        raise DataError(f"{where}the images are {given} each, the network takes {taken}")
    if inputs.shape[1] != example.shape[1]:
        raise DataError(
            f"{where}the images have {_channels(inputs.shape[1])} ({given}), the network takes "
            f"{example.shape[1]} ({taken}): give images of that kind, or load the network with "
            "another input size"
        )


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def _shape(inputs: Tensor) -> str:
    return "×".join(map(str, inputs.shape[1:]))


def number_of(held_out: float, images: int) -> int:
    """How many of so many images are held out: so many, or a fraction of them if it is no whole number."""
    if is_whole(held_out):
        return whole("held_out", held_out, 0, error=DataError)
    if not 0 <= held_out < 1:
        raise DataError(
            f"held_out={held_out!r} does not fit: give how many are held out, or a fraction below 1"
        )
    return math.ceil(held_out * images)


def _is_pair(first: Any, second: Any) -> bool:
    """Whether (first, second) is images and labels rather than two batches."""
    if not (
        isinstance(first, Tensor | np.ndarray) and isinstance(second, Tensor | np.ndarray | list)
    ):
        return False
    # Labels of another shape are told so: a batch of images has the axes of the first.
    return np.ndim(second) == 1 or (np.ndim(second) < np.ndim(first) and len(first) == len(second))


def _from_path(
    path: Path,
    preprocess: Preprocess | None,
    limit: int | None,
    seed: int,
    classes: tuple[str, ...] | None,
    names: tuple[str, ...],
) -> Images:
    if path.is_dir():
        folder = read_folder(path, preprocess, limit=limit, seed=seed, classes=classes)
        return Images(folder.inputs, folder.labels, folder.skipped, folder.notes)
    if not path.exists():
        raise DataError(f"{path} does not exist: give a folder of images, a .npy or a .npz file")
    if path.suffix.lower() not in (".npy", ".npz"):
        raise DataError(f"{path} is neither a folder of images nor a .npy or .npz file")
    return _from_file(path, preprocess, limit, seed, names)


def _from_file(
    path: Path, preprocess: Preprocess | None, limit: int | None, seed: int,
    names: tuple[str, ...] = (),
) -> Images:  # fmt: skip
    """The images of an array file; those beyond the limit are never turned into floats."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {"images": loaded}
        else:
            with loaded:
                arrays = dict(loaded)
    except Exception as error:
        said = PICKLED if "pickle" in str(error) or "Python objects" in str(error) else error
        raise DataError(f"{path} cannot be read as an array of numbers: {said}") from error
    try:
        return _from_arrays(arrays, preprocess, limit, seed, names)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _from_arrays(
    arrays: Mapping[str, np.ndarray], preprocess: Preprocess | None, limit: int | None, seed: int,
    names: tuple[str, ...],
) -> Images:  # fmt: skip
    """The images among a file's arrays, with a note of those that nothing reads."""
    named = {k: arrays[k] for k in names} if names and set(names) <= set(arrays) else {}
    inputs = next((arrays[k] for k in ("images", "x", "arr_0") if k in arrays), None)
    labels = next((arrays[k] for k in ("labels", "y") if k in arrays and k not in named), None)
    several = named or {k: v for k, v in arrays.items() if k not in ("labels", "y")}
    if named or (inputs is None and len(several) > 1):
        images = _several(several, labels)
        return images if limit is None else images.take(limit, seed)
    if inputs is None:
        expected = ", ".join(names) or "`images` (or `x`, `arr_0`)"
        raise DataError(
            f"it has the arrays {', '.join(arrays) or 'none'}: {expected} {'are' if names else 'is'} "
            "expected, and `labels` (or `y`) where there are labels"
        )
    count = len(inputs) if inputs.ndim else 0
    unread = [k for k, v in arrays.items() if v is not inputs and v is not labels]
    notes = (
        (f"arrays that nothing reads: {', '.join(unread)} (several inputs, one of them called "
         "`images`, `x` or `arr_0`, are given as a dict)",)
        if unread else ()
    )  # fmt: skip
    if labels is not None:
        labels = _classes(labels, count)
    if limit is not None and limit < count:
        index = shuffled(count, seed)[:limit]
        inputs = inputs[index.numpy()]
        labels = None if labels is None else labels[index]
    return Images(_inputs(inputs, preprocess), labels, notes=notes)


def _several(given: Mapping[str, Tensor | np.ndarray], labels: Any = None) -> Images:
    inputs, packing = pack(given)
    known = None if labels is None else _classes(labels, len(inputs))
    note = (
        f"the network takes {packing.text}; as the input of a plan they are one row of "
        f"{inputs.shape[-1]:,} values"
    )
    return Images(inputs, known, notes=(note,), packing=packing)


def _labeled(inputs: Tensor, labels: Any) -> Images:
    return Images(inputs, _classes(labels, len(inputs)))


def _classes(labels: Any, count: int) -> Tensor:
    """Labels of so many images as class numbers."""
    try:
        tensor = _own(labels) if isinstance(labels, np.ndarray) else torch.as_tensor(labels)
    except (TypeError, ValueError) as error:
        raise DataError(f"the labels are no whole numbers: {error}") from None
    _check_labels(tensor, count)
    return tensor.long()


def _own(array: np.ndarray) -> Tensor:
    """A tensor of the array's values, copied, whichever byte order they have."""
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def dense(images: Tensor) -> Tensor:
    """The tensor itself; DataError for sparse and nested ones, whose images are not all alike."""
    if images.is_nested:
        raise DataError("the images are a nested tensor: give one of a single shape (torch.stack)")
    if images.layout != torch.strided:
        raise DataError(
            f"the images are of layout {images.layout}: give a dense tensor (.to_dense())"
        )
    return images


def _inputs(values: Tensor | np.ndarray, preprocess: Preprocess | None) -> Tensor:
    """Images as float32; uint8 ones are normalized by `preprocess`."""
    if isinstance(values, np.ndarray):
        if values.dtype == np.uint8:
            values = _channels_first(values, preprocess)
        elif values.dtype.kind not in "fiub":
            raise DataError(f"an array of {values.dtype} is no array of images")
        values = _own(values)
    values = dense(values.detach()).cpu()
    if values.dtype == torch.uint8:
        if preprocess is None:
            raise DataError(
                "the images are uint8 and the network's normalization is not known: give "
                "--mean and --std (in Python a Preprocess), or images already normalized to float "
                "(for a network that does so itself, images.float())"
            )
        _check_channels(values, preprocess)
        values = preprocess.normalize(values)
    elif not values.is_floating_point():
        raise DataError(
            f"the images are {str(values.dtype).removeprefix('torch.')}: float images, normalized "
            "as the network takes them, or uint8 ones are expected"
        )
    return values.to(torch.float32).contiguous()


def _channels_first(values: np.ndarray, preprocess: Preprocess | None) -> np.ndarray:
    """(N, H, W, C) and (N, H, W) as (N, C, H, W), where the shape leaves no doubt."""
    channels = preprocess.size[0] if preprocess else None
    if values.ndim == 3 and channels == 1:
        return values[:, None]
    if values.ndim == 4 and values.shape[-1] in (1, 3) and channels in (None, values.shape[-1]):
        first = values.shape[1]
        if first != values.shape[-1] and first not in (1, 3):
            return values.transpose(0, 3, 1, 2)
    return values


def _check_channels(values: Tensor, preprocess: Preprocess) -> None:
    if values.ndim < 3 or values.shape[1] != preprocess.size[0]:
        raise DataError(
            f"the images are {_shape(values) or 'single numbers'} each, the network takes "
            f"{_channels(preprocess.size[0])}: (N, {preprocess.size[0]}, H, W) is expected"
        )


def _check_inputs(inputs: Tensor) -> None:
    dense(inputs)
    if inputs.ndim not in (3, 4, 5) or 0 in inputs.shape:
        raise DataError(
            f"the images have shape {tuple(inputs.shape)}: (N, C, H, W) with at least one image is "
            "expected, or (N, C, L), or (N, C, D, H, W); what is no image, such as the vectors of a "
            "generator, is given in a dict by its name in the network's `forward`"
        )
    if not inputs.is_floating_point():
        raise DataError(f"the images are {inputs.dtype}: float ones are expected")
    wrong = ~torch.isfinite(inputs.flatten(1)).all(dim=1)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise DataError(
            f"{int(wrong.sum())} of {len(inputs)} images hold NaN or infinite values (the first is "
            f"number {first}): leave them out or mend them"
        )


def _check_labels(labels: Tensor, n: int) -> None:
    if labels.ndim != 1 or len(labels) != n:
        raise DataError(
            f"labels of shape {tuple(labels.shape)} were given for {n} images: ({n},) fits"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"the labels are {labels.dtype}: class numbers from 0 are expected")
    least = int(labels.long().min()) if len(labels) else 0  # unsigned types have no minimum
    if least < 0:
        raise DataError(f"a label is {least}: class numbers start at 0")


def _from_batches(
    batches: Iterable[Any],
    preprocess: Preprocess | None,
    limit: int | None,
    memory: int | None,
) -> Images:
    """The images of all batches, or of the first ones up to `limit` and to `memory` bytes."""
    parts: list[Images] = []
    seen, taken, notes = 0, 0, ()
    for batch in batches:
        if parts and memory is not None and taken + parts[0].inputs.nbytes > memory:
            notes = (
                f"the first {seen:,} images were taken: more do not fit in "
                f"{memory / (1 << 30):.2g} GiB (half of memory=, --memory)",
            )
            break
        parts.append(_batch(batch, preprocess))
        _check_same(parts[0], parts[-1])
        seen += len(parts[-1])
        taken += parts[-1].inputs.nbytes
        if limit is not None and seen >= limit:
            break
    if not parts:
        raise DataError("the data gave no batch: at least one image is needed")
    known = [part.labels for part in parts if part.labels is not None]
    labels = torch.cat(known)[:limit] if len(known) == len(parts) else None
    inputs = torch.cat([p.inputs for p in parts])[:limit]
    return replace(parts[0], inputs=inputs, labels=labels, notes=(*parts[0].notes, *notes))


def _batch(batch: Any, preprocess: Preprocess | None) -> Images:
    """A batch's inputs, and its labels if its second item is N whole numbers."""
    items: list[Any] = [batch]
    if isinstance(batch, Mapping):
        items = list(batch.values())
    elif isinstance(batch, tuple | list):
        items = list(batch)
    if not items or not isinstance(items[0], Tensor | np.ndarray | Mapping):
        kind = type(items[0]).__name__ if items else "nothing"
        raise DataError(
            f"a batch's first item is {kind}: a tensor (N, C, H, W) is expected, or a dict of several "
            "inputs"
        )
    first = items[0]
    images = _several(first) if isinstance(first, Mapping) else Images(_inputs(first, preprocess))
    if len(items) < 2 or not isinstance(items[1], Tensor | np.ndarray | list | tuple):
        return images
    try:
        y = torch.as_tensor(items[1])
    except (TypeError, ValueError, RuntimeError):  # names, boxes, captions
        return images
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not (whole and y.ndim == 1 and len(y) == len(images)):
        return images
    return replace(images, labels=y.long().cpu())


def _check_same(first: Images, other: Images) -> None:
    """Raise DataError where two batches cannot be put together."""
    if first.packing != other.packing:
        raise DataError(
            f"the batches differ: inputs of {described(first.packing)} and of "
            f"{described(other.packing)}; give the same, in the same order"
        )
    if first.inputs.shape[1:] != other.inputs.shape[1:]:
        raise DataError(
            f"the batches differ: images of {_shape(first.inputs)} and of {_shape(other.inputs)}; "
            "bring all to one size"
        )
