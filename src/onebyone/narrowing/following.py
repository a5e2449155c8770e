"""Follow channels through one pass: which layers write them, which read them, and what else does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from onebyone.conv import ConvSpec
from onebyone.narrowing.marks import (
    ALONG,
    ELEMENTWISE,
    NORMS,
    PIXELWISE,
    PRODUCTS,
    REDUCTIONS,
    SPLITS,
    VIEWS,
    Found,
    Segment,
    Tag,
    Vector,
    along,
    length_of,
    permuted,
    pieces,
    reduced,
    starts,
    taken_apart,
    viewed,
)  # fmt: skip
from onebyone.narrowing.spaces import NUMBER, OUTPUT, Cut, tensor_name
from onebyone.narrowing.tying import Spaces
from onebyone.tree import modules_by_name, tensors_in

INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class Follower(TorchDispatchMode):
    """Watches every operator of a pass; `layers` are the ones whose channels can be left out."""

    def __init__(self, model: nn.Module, layers: dict[str, ConvSpec]) -> None:
        super().__init__()
        self.layers = layers
        self.spaces = Spaces()
        self.marks: dict[int, Tag | Vector] = {}
        self.alive: list[Tensor] = []  # an id could be given again
        self.operators: list[str] = []
        self.inside = 0
        self.named = {
            id(t): n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.ndim
        }
        self.modules = modules_by_name(model)

    def attach(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Hooks that follow the layers themselves."""
        handles = []
        for name in self.layers:
            module = self.modules[name]
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave(name)))
        for name, module in self.modules.items():
            if type(module) in INSTANCE_NORMS:  # a class of its own may do more
                handles.append(module.register_forward_pre_hook(self._enter))
                leave = self._leave_norm(name)
                handles.append(module.register_forward_hook(leave, with_kwargs=True))
        return handles

    def _enter(self, module: nn.Module, args: tuple) -> None:
        self.inside += 1

    def _leave(self, name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
        def leave(_: nn.Module, args: tuple, output: Tensor) -> None:
            self.inside -= 1
            self.operators.append(name)
            self._layer(name, args[0], output)

        return leave

    def _leave_norm(self, name: str) -> Callable[..., None]:
        """PyTorch runs it on all channels of all images as one batch: it is taken as a whole."""

        def leave(module: nn.Module, args: tuple, named: dict[str, Any], output: Tensor) -> None:
            self.inside -= 1
            self.operators.append("instance_norm")
            own = [t for t in (*module.parameters(), *module.buffers()) if t.ndim]
            (given,) = (*args, *named.values())
            mark = self._mark(given)
            if not own and isinstance(mark, Tag) and mark.axis == 1:
                count = Cut(tensor_name(name, NUMBER), 0)
                self._attach(mark.segments, Vector(0, (count,)))
            self._normalize("instance_norm", [given, *own], output)

        return leave

    def result(self, output: object) -> list[Found]:
        """The spaces, once the pass has ended with this output."""
        for tensor in tensors_in(output):
            self._refuse(tensor, OUTPUT)
        return [*self.spaces.roots()]

    def _refuse(self, tensor: Tensor, reason: str) -> None:
        mark = self._mark(tensor)
        for segment in mark.segments if isinstance(mark, Tag) else ():
            found = self.spaces.found(segment)
            found.refusal = found.refusal or reason

    # --- tensors

    def _mark(self, tensor: Tensor) -> Tag | Vector | None:
        mark = self.marks.get(id(tensor))
        if isinstance(mark, Tag):
            return self._now(mark)
        if mark is None and id(tensor) in self.named:
            long = [axis for axis, size in enumerate(tensor.shape) if size != 1]
            if len(long) == 1:
                mark = Vector(long[0], (Cut(self.named[id(tensor)], long[0]),))
                self._set(tensor, mark)
        return mark

    def _now(self, mark: Tag) -> Tag:
        return Tag(mark.axis, tuple(s for old in mark.segments for s in self.spaces.now(old)))

    def _set(self, tensor: Tensor, mark: Tag | Vector | None) -> None:
        if mark is None:
            self.marks.pop(id(tensor), None)
        else:
            self.marks[id(tensor)] = mark
        self.alive.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.inside:
            schema = getattr(func, "_schema", None)
            name = str(func) if schema is None else schema.name.removeprefix("aten::")
            self.operators.append(name)
            tensors = [*tensors_in(args), *tensors_in(tuple((kwargs or {}).values()))]
            pointwise = name in ELEMENTWISE or torch.Tag.pointwise in getattr(func, "tags", ())
            if any(self._mark(t) is not None for t in tensors):
                self._follow(name, pointwise, tensors, args, result)
        return result

    def _follow(
        self, name: str, pointwise: bool, tensors: list[Tensor], args: Any, result: Any
    ) -> None:
        outputs = list(tensors_in(result))
        if not outputs:
            return self._lost(name, tensors, outputs)
        source, output = tensors[0], outputs[0]
        mark = self._mark(source)
        if (
            name == "as_strided_" and output.shape == source.shape
        ):  # in memory alone (channels last)
            return None
        if pointwise:
            return self._elementwise(name, tensors, outputs)
        if name in NORMS:
            return self._normalize(name, tensors, output)
        if name == "cat":
            return self._concatenate(name, args, tensors, output)
        if isinstance(mark, Tag) and self._parted(name, mark, source, outputs, args):
            return None
        moved: Tag | Vector | None = None
        if mark is None or any(self._mark(t) is not None for t in tensors[1:]):
            pass
        elif name in PIXELWISE and mark.axis == 1:
            moved = mark
        elif name in REDUCTIONS:
            moved = reduced(mark, source, output, name, args)
        elif name in VIEWS:
            moved = viewed(mark, source, output)
            if moved is None and isinstance(mark, Tag):
                moved = self._apart(mark, source, output)
        elif name in SPLITS or (name == "slice" and output.shape == source.shape):
            moved = mark  # along another axis, or all of them
        elif name in ALONG:
            moved = along(mark, source, output, args)
        elif name in ("permute", "transpose", "t"):
            moved = permuted(mark, source, name, args)
        elif name == "expand":
            moved = replace(mark, axis=mark.axis + output.ndim - source.ndim)
        if moved is None or output.shape[moved.axis] != length_of(moved, source, mark):
            return self._lost(name, tensors, outputs)
        for tensor in outputs:
            if tensor.ndim > moved.axis and tensor.shape[moved.axis] == output.shape[moved.axis]:
                self._set(tensor, moved)
        return None

    def _lost(self, name: str, tensors: list[Tensor], outputs: list[Tensor]) -> None:
        """An operator that is not understood reads the channels."""
        for tensor in tensors:
            self._refuse(tensor, f"the operator {name} mixes or counts its channels")
        for tensor in outputs:
            self._set(tensor, None)

    def _elementwise(self, name: str, tensors: list[Tensor], outputs: list[Tensor]) -> None:
        output = outputs[0]
        marks = [(t, self._mark(t)) for t in tensors]
        tags = [(t, m) for t, m in marks if isinstance(m, Tag)]
        vectors = [(t, m) for t, m in marks if isinstance(m, Vector)]
        shared = (tags or vectors)[0]
        behind = shared[0].ndim - shared[1].axis  # the axis, counted from the last
        for tensor, mark in marks:
            if behind > tensor.ndim or tensor.shape[-behind] == 1:
                fits = mark is None or (isinstance(mark, Vector) and tensor.numel() == 1)
            else:
                fits = mark is not None and tensor.ndim - mark.axis == behind
            if not fits:
                return self._lost(name, tensors, outputs)
        axis = output.ndim - behind
        if not tags:
            cuts = tuple(dict.fromkeys(c for _, v in vectors for c in v.cuts))
            for tensor in outputs:
                self._set(tensor, Vector(axis, cuts))
            return None
        first = tags[0][1].segments
        for _, other in tags[1:]:
            if not self._united(name, first, other.segments):
                return self._lost(name, tensors, outputs)
        for _, vector in vectors:
            self._attach(first, vector)
        for tensor in outputs:
            if tensor.shape == output.shape:
                self._set(tensor, Tag(axis, first))
        return None

    def _united(self, name: str, one: tuple[Segment, ...], other: tuple[Segment, ...]) -> bool:
        """Take two lists of channels for the same; False where they are cut up differently."""
        if [(s.channels, s.block) for s in one] != [(s.channels, s.block) for s in other]:
            return False
        for a, b in zip(one, other, strict=True):
            if self.spaces.join(a, b):
                self.spaces.found(a).summed |= name not in (*PRODUCTS, *SPLITS)
        return True

    def _attach(self, segments: tuple[Segment, ...], vector: Vector) -> None:
        """Parameters with an entry for each of these channels belong to their spaces."""
        for start, segment in starts(segments):
            found = self.spaces.found(segment)
            for cut in vector.cuts:
                found.cuts.append(replace(cut, start=start, block=segment.block))

    def _normalize(self, name: str, tensors: list[Tensor], output: Tensor) -> None:
        mark = self._mark(tensors[0])
        if not isinstance(mark, Tag) or mark.axis != 1:
            return self._lost(name, tensors, [output])
        for tensor in tensors[1:]:
            vector = self._mark(tensor)
            if not isinstance(vector, Vector):
                return self._lost(name, tensors, [output])
            self._attach(mark.segments, vector)
        self._set(output, mark)
        return None

    def _concatenate(self, name: str, args: Any, tensors: list[Tensor], output: Tensor) -> None:
        axis = args[1] % output.ndim if len(args) > 1 else 0
        tensors = [t for t in tensors if t.ndim == output.ndim]  # torch.empty(0) may stand in front
        first = self._mark(tensors[0])
        if isinstance(first, Tag) and first.axis != axis:
            return self._stacked(name, first, tensors, output)
        segments: list[Segment] = []
        for tensor in tensors:
            mark = self._mark(tensor)
            if isinstance(mark, Vector) or (mark is not None and mark.axis != axis):
                return self._lost(name, tensors, [output])
            if mark is None:  # channels that are not followed keep their place
                refusal = "no layer that can be changed writes it"
                mark = Tag(axis, (self.spaces.new(tensor.shape[axis], refusal),))
            segments += mark.segments
        self._set(output, Tag(axis, tuple(segments)))
        return None

    def _stacked(self, name: str, mark: Tag, tensors: list[Tensor], output: Tensor) -> None:
        """Put together along another axis than that of the channels, which are the same then."""
        for tensor in tensors[1:]:
            other = self._mark(tensor)
            if not isinstance(other, Tag) or other.axis != mark.axis:
                return self._lost(name, tensors, [output])
            if not self._united(name, mark.segments, other.segments):
                return self._lost(name, tensors, [output])
        self._set(output, mark)
        return None

    # --- channels that are taken apart

    def _parted(
        self, name: str, mark: Tag, source: Tensor, outputs: list[Tensor], args: Any
    ) -> bool:
        """Whether the channels go into parts of one size, of which every part keeps the same ones."""
        output, length = outputs[0], source.shape[mark.axis]
        if name == "pixel_shuffle":
            return self._shuffled(mark, source, output, args[1] ** 2)
        if (name not in SPLITS and name != "slice") or output.ndim != source.ndim:
            return False
        size = output.shape[mark.axis]
        if not 0 < size < length or length % size:
            return False
        first = args[2] if name == "slice" and len(args) > 2 and args[2] is not None else 0
        step = args[4] if name == "slice" and len(args) > 4 else 1
        even = all(t.shape == output.shape for t in outputs) and first % size == 0 and step == 1
        parts = self._even(mark, length // size) if even else None
        if parts is None:
            return False
        for index, tensor in enumerate(outputs, first % length // size):
            self._set(tensor, Tag(mark.axis, parts[index]))
        return True

    def _even(self, mark: Tag, many: int) -> list[tuple[Segment, ...]] | None:
        """The channels in so many parts whose channels are the same; None where they cannot be."""
        if len(mark.segments) == 1 and not self.spaces.tie(mark.segments[0], many, beside=True):
            return None
        parts = pieces(self._now(mark).segments, many)
        if parts is None or not all(self._united("split", parts[0], part) for part in parts[1:]):
            return None
        return [self._now(Tag(mark.axis, part)).segments for part in parts]

    def _grouped(self, mark: Tag, many: int) -> Tag | None:
        """So many channels side by side as one: in a block, where they are not in one already."""
        for segment in {s.space: s for s in mark.segments}.values():
            if segment.block % many and not self.spaces.tie(segment, many, beside=False):
                return None
        return self._now(mark)

    def _shuffled(self, mark: Tag, source: Tensor, output: Tensor, many: int) -> bool:
        """`pixel_shuffle`: of so many channels side by side there is one, larger."""
        grouped = self._grouped(mark, many) if mark.axis == source.ndim - 3 else None
        if grouped is None:
            return False
        parts = tuple(replace(s, block=s.block // many) for s in grouped.segments)
        self._set(output, Tag(mark.axis, parts))
        return True

    def _apart(self, mark: Tag, source: Tensor, output: Tensor) -> Tag | Vector | None:
        """Channels along two axes: where the first is the shorter one, they are so many parts, and
        otherwise groups of those side by side."""
        axis = taken_apart(mark, source, output)
        if axis is None:
            return None
        many, behind = output.shape[axis], output.shape[axis + 1]
        if many >= behind:
            grouped = self._grouped(mark, behind)
            return None if grouped is None else viewed(grouped, source, output)
        parts = self._even(mark, many)
        return None if parts is None else Tag(axis + 1, parts[0])

    # --- layers

    def _layer(self, name: str, x: Tensor, y: Tensor) -> None:
        conv, mark = self.layers[name], self._mark(x)
        axis = 1 if conv.kernel else y.ndim - 1
        if conv.groups != 1:
            whole = conv.depthwise and isinstance(mark, Tag) and mark.axis == 1
            if whole and not conv.transposed and isinstance(mark, Tag):
                return self._depthwise(name, conv, mark, y)
            self._refuse(x, f"the grouped layer {name} reads it")
            space = self.spaces.new(conv.c_out, "a grouped layer writes it")
        else:
            self._read(name, conv, x)
            space = self.spaces.new(conv.c_out)
        found = self.spaces.found(space)
        found.writers.append(name)
        found.cuts += self._rows(name)
        self._set(y, Tag(axis, (space,)))
        return None

    def _rows(self, name: str, start: int = 0, block: int = 1) -> Iterator[Cut]:
        for tensor in ("weight", "bias"):
            if self.modules[name]._parameters.get(tensor) is not None:
                yield Cut(tensor_name(name, tensor), 0, start, block)

    def _read(self, name: str, conv: ConvSpec, x: Tensor) -> None:
        mark = self._mark(x)
        if not isinstance(mark, Tag):
            return None
        if mark.axis != (1 if conv.kernel else x.ndim - 1):
            return self._refuse(x, f"the layer {name} reads it along another axis")
        blocks = {s.block for s in mark.segments}
        if blocks != {1} and (conv.kernel or len(mark.segments) > 1):
            return self._refuse(x, f"the layer {name} reads it in pieces")
        for start, segment in starts(mark.segments):
            found = self.spaces.found(segment)
            found.readers.append(name)
            found.cuts.append(Cut(tensor_name(name, "weight"), 1, start, segment.block))
        return None

    def _depthwise(self, name: str, conv: ConvSpec, mark: Tag, y: Tensor) -> None:
        many = conv.c_out // conv.c_in
        for start, segment in starts(mark.segments):
            found = self.spaces.found(segment)
            found.through.append(name)
            found.cuts += self._rows(name, start * many, segment.block * many)
        wider = tuple(replace(s, block=s.block * many) for s in mark.segments)
        self._set(y, Tag(1, wider))
