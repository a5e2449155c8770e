"""Networks of several inputs: their tensors side by side in one, and a network that takes them apart."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from onebyone.errors import DataError, ModelError
from onebyone.tree import shallow_copy, tensors_in

WHOLE = 1 << 24  # up to here float32 has every whole number
PACKED = "onebyone_packed"  # in the class, or a graph's `meta`, of a network that takes them packed
KEY = re.compile(r"[^.\[\]]+")
NAME = re.compile(
    rf"{KEY.pattern}((\[\d+\])|(\.{KEY.pattern}))*"
)  # x, x[0] of a list, x.key of a dict
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Packing:
    """How the inputs of a network lie in one tensor (N, 1, values), one behind the other.

    For each tensor its name in the network's `forward` (x[0] where x is a list, x.key where it is a
    dict), its shape without the batch (none of its axes for one number an image), and its dtype:
    floating ones follow the network's, others hold whole numbers.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @property
    def text(self) -> str:
        """For people: image 3×32×32, step (one number)."""
        sizes = ("×".join(map(str, s)) or "(one number)" for s in self.shapes)
        return ", ".join(f"{name} {size}" for name, size in zip(self.names, sizes, strict=True))

    def apart(self, packed: Float[Tensor, "n 1 values"]) -> dict[str, Any]:
        """What each parameter of the forward takes, by its name, with a batch as the first axis."""
        return nested(self.names, [taken_out(packed, *place) for place in self.places])

    @property
    def by_name(self) -> dict[str, tuple[int, ...]]:
        """The shape of each input, whatever their order."""
        return dict(zip(self.names, self.shapes, strict=True))

    @property
    def places(self) -> tuple[tuple[int, tuple[int, ...], torch.dtype], ...]:
        """Where each input begins in the row, its shape and its dtype."""
        starts = accumulate(map(prod, self.shapes), initial=0)
        return tuple(zip(starts, self.shapes, self.dtypes, strict=False))

    def drawn(self) -> Float[Tensor, "1 1 values"]:
        """One image at random, the same one every time; whole numbers are 0, which any index can be."""
        generator = torch.Generator().manual_seed(0)
        parts = [
            torch.randn(prod(s), generator=generator) * d.is_floating_point
            for s, d in zip(self.shapes, self.dtypes, strict=True)
        ]
        return torch.cat(parts)[None, None]

    def to_json(self) -> list[dict[str, Any]]:
        """Name, shape and dtype of each."""
        each = zip(self.names, self.shapes, self.dtypes, strict=True)
        return [
            {"name": n, "shape": list(s), "dtype": str(d).removeprefix("torch.")}
            for n, s, d in each
        ]

    @classmethod
    def from_json(cls, values: list[dict[str, Any]]) -> Packing:
        """What `to_json` gave."""
        return cls(
            tuple(str(v["name"]) for v in values),
            tuple(tuple(map(int, v["shape"])) for v in values),
            tuple(getattr(torch, v["dtype"]) for v in values),
        )


def described(packing: Packing | None) -> str:
    """For people, also where an image is all that a network takes."""
    return packing.text if packing else "one image"


def taken_out(
    packed: Float[Tensor, "n 1 values"], start: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """One input of those in a row."""
    part = packed[:, 0, start : start + prod(shape)].reshape(-1, *shape)
    return part if dtype.is_floating_point else part.round().to(dtype)


def pack(
    given: Mapping[str, Tensor | np.ndarray],
) -> tuple[Float[Tensor, "n 1 values"], Packing]:
    """Inputs by their names in `forward`, each with the images as its first axis, in one tensor.

    One may be a list or dict of tensors, or those stand by themselves, as `x[0]` or `x.key`. Raises
    DataError for what are no numbers, for whole ones too large for float32, for different numbers of
    images, for names that fit into no list or dict.
    """
    tensors = {
        name: _tensor(name, leaf)
        for top, values in given.items()
        for name, leaf in leaves(top, values)
    }
    if not tensors:
        raise DataError("the dict of inputs is empty: give a tensor for each input of the network")
    nested(tuple(tensors), list(tensors.values()))
    counts = {name: len(t) for name, t in tensors.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{n} of {name}" for name, n in counts.items())
        raise DataError(f"the inputs differ in how many there are: {said}; give as many of each")
    packing = Packing(
        tuple(tensors), tuple(tuple(t.shape[1:]) for t in tensors.values()),
        tuple(torch.float32 if t.is_floating_point() else t.dtype for t in tensors.values()),
    )  # fmt: skip
    rows = [t.flatten(1) if t.ndim > 1 else t[:, None] for t in tensors.values()]
    return torch.cat([row.float() for row in rows], 1)[:, None], packing


def leaves(name: Any, value: Any) -> Iterator[tuple[Any, Any]]:
    """What is in lists and dicts, in order, each with the name of its place.

    Raises DataError for keys of which no name can be made.
    """
    if isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from leaves(f"{name}[{place}]", item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or not KEY.fullmatch(key):
                raise DataError(
                    f"the dict {name} has the key {key!r}: texts without dots and brackets are expected"
                )
            yield from leaves(f"{name}.{key}", item)
    else:
        yield name, value


def nested(names: tuple[str, ...], tensors: list[Tensor]) -> dict[str, Any]:
    """A tensor for each parameter, or the list or dict that the names of its tensors tell of.

    Raises DataError for names that fit into none.
    """
    tree: dict[str, Any] = {}
    for name, tensor in zip(names, tensors, strict=True):
        if not NAME.fullmatch(name):
            raise DataError(
                f"{name!r} is no name of an input: one in the network's forward is expected, such as x, "
                "x[0] of a list or x.key of a dict"
            )
        *path, last = re.findall(r"[^.\[\]]+|\[\d+", name)
        place = tree
        for key in path:
            place = place.setdefault(key, {}) if isinstance(place, dict) else place
        if not isinstance(place, dict) or last in place:
            raise DataError(f"the input {name!r} is part of another: a tensor has no parts")
        place[last] = tensor
    return {name: _listed(name, part) for name, part in tree.items()}


def _listed(name: str, part: Any) -> Any:
    """Lists where the keys are places."""
    if not isinstance(part, dict):
        return part
    places = [f"[{place}" for place in range(len(part))]
    if set(places) == set(part):
        return [_listed(f"{name}{place}]", part[place]) for place in places]
    if any(key.startswith("[") for key in part):
        raise DataError(
            f"of the list {name!r} there are {', '.join(key.strip('[') for key in part)}: its tensors are "
            "expected from 0 on, none left out"
        )
    return {key: _listed(f"{name}.{key}", item) for key, item in part.items()}


def _tensor(name: Any, values: Any) -> Tensor:
    if not isinstance(name, str) or not isinstance(values, Tensor | np.ndarray):
        raise DataError(
            f"this dict is no data: its {name!r} is {type(values).__name__}; of several inputs a tensor "
            "with the images as its first axis is expected for each, by its name in the network's forward"
        )
    try:
        tensor = torch.as_tensor(values).detach().cpu()
    except TypeError as error:
        raise DataError(f"the input {name!r} is no array of numbers: {error}") from None
    if not tensor.ndim or not tensor.numel() or tensor.is_complex():
        raise DataError(
            f"the input {name!r} has shape {tuple(tensor.shape)} and type {tensor.dtype}: real "
            "numbers with at least one image as the first axis are expected"
        )
    if not tensor.is_floating_point() and tensor.to(torch.int64).abs().max() >= WHOLE:
        raise DataError(f"the input {name!r} has whole numbers of {WHOLE:,} and more")
    return tensor


def packed(model: nn.Module, packing: Packing | None) -> nn.Module:
    """A copy that shares all weights and takes the packed tensor; the model itself without packing.

    Its modules have the names that they had. Raises ModelError where the inputs are not the first
    parameters of the network's forward, or the network's own forward cannot be wrapped.
    """
    if packing is None or takes_packed(model):
        return model
    order = _order(model, packing.names)
    _check_wrappable(model)
    _check_whole(model, packing)
    if isinstance(model, fx.GraphModule):
        return _packed_graph(model, packing, order)
    kind = type(model)

    def forward(self: nn.Module, values: Tensor) -> Any:
        parts = packing.apart(values)
        return kind.forward(self, *(parts[name] for name in order))

    return with_own(model, forward=forward, **{PACKED: (packing, order)})


def with_own(model: nn.Module, **own: Any) -> nn.Module:
    """A copy that shares all weights, of a class of the same name with these attributes of its own."""
    copied, kind = shallow_copy(model), type(model)
    copied.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, **own})
    return copied


def _check_wrappable(model: nn.Module) -> None:
    """ModelError where nothing can be put before the network's own forward."""
    if isinstance(model, fx.GraphModule):
        refused = type(model.graph._codegen) is not fx.CodeGen
    else:
        refused = isinstance(model, torch.jit.ScriptModule) or "forward" in vars(model)
    if refused:
        raise ModelError(
            f"{type(model).__name__} is compiled, takes nested inputs, or has a forward of its own "
            "instance: of such, networks of one input alone are slimmed; give the module that it was "
            "made from"
        )


def _check_whole(model: nn.Module, packing: Packing) -> None:
    """ModelError where the network's type would round whole numbers on their way."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    whole = [
        n for n, d in zip(packing.names, packing.dtypes, strict=True) if not d.is_floating_point
    ]
    if whole and first is not None and first.dtype in (torch.float16, torch.bfloat16):
        raise ModelError(
            f"the network computes in {first.dtype}, which has not every whole number of "
            f"{', '.join(whole)}: slim it in float32 and convert the result"
        )


def _packed_graph(model: fx.GraphModule, packing: Packing, order: list[str]) -> fx.GraphModule:
    """The same for a traced network: its graph begins with taking the row apart."""
    graph, places = fx.Graph(), dict(zip(packing.names, packing.places, strict=True))
    row = graph.placeholder("values")
    given: dict[fx.Node, Any] = {}
    for number, node in enumerate(n for n in model.graph.nodes if n.op == "placeholder"):
        if number < len(order):
            given[node] = graph.call_function(taken_out, (row, *places[order[number]]))
        else:
            given[node] = node.args[0]  # its default
    graph.output(graph.graph_copy(model.graph, given))
    made = fx.GraphModule(shallow_copy(model), graph, type(model).__name__)
    made.meta[PACKED] = (packing, order, model.graph)
    return made


def unpacked(model: nn.Module) -> nn.Module:
    """The same network taking its inputs as it did, changed in place."""
    if isinstance(model, fx.GraphModule) and takes_packed(model):
        graph = fx.Graph()
        graph.output(graph.graph_copy(model.meta.pop(PACKED)[2], {}))
        model.graph = graph
    elif takes_packed(model):
        model.__class__ = type(model).__mro__[1]
    return model


def takes_packed(model: nn.Module) -> bool:
    """Whether `packed` made it."""
    return bool(_made_with(model))


def _made_with(model: nn.Module) -> tuple[Any, ...]:
    """How the inputs are packed, and their places in the order of the network's forward; or ()."""
    if isinstance(model, fx.GraphModule):
        return model.meta.get(PACKED, ())
    return vars(type(model)).get(PACKED, ())


def packing_in(model: object) -> Packing | None:
    """How the inputs of a network are packed that `packed` made; None for anything else."""
    made = _made_with(model) if isinstance(model, nn.Module) else ()
    return made[0] if made else None


def taken_by(model: nn.Module) -> str:
    """What a network of several inputs takes, for people; "" for others."""
    packing = packing_in(model)
    return packing.text if packing else ""


def as_bytes(packing: Packing | None) -> str:
    """What a message says on inputs that may be pictures as they are in files; "" without such."""
    if packing is None:
        return ""
    each = zip(packing.names, packing.shapes, packing.dtypes, strict=True)
    bytes_ = [n for n, shape, dtype in each if dtype == torch.uint8 and len(shape) > 1]
    return (
        f"; {', '.join(bytes_)} of uint8 goes in as it is: where pictures are expected normalized, give "
        "them as floating point"
        if bytes_
        else ""
    )


def as_called(model: nn.Module, values: Tensor) -> Tensor | tuple[Any, ...]:
    """What the network itself is called with: the inputs in the order of its forward."""
    made = _made_with(model)
    if not made:
        return values
    packing, order = made[:2]
    parts = packing.apart(values)
    return tree_map(torch.clone, tuple(parts[name] for name in order))


def flat(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The tensors of its inputs, and a network of the same weights that takes them one by one.

    Itself where there are no lists or dicts. Raises ModelError for what is in them and no tensor.
    """
    if all(isinstance(x, Tensor) for x in inputs):
        return model, inputs
    packing = packing_of(model, inputs)
    _check_wrappable(model)
    kind, order = type(model), _order(model, packing.names)

    def forward(self: nn.Module, *tensors: Tensor) -> Any:
        parts = nested(packing.names, list(tensors))
        return kind.forward(self, *(parts[name] for name in order))

    # Exporters name the inputs after it: clips_0 of clips[0], batch_image of batch.image.
    names = ["self"]
    for name in packing.names:
        plain = re.sub(r"\W+", "_", name).strip("_")
        names.append(
            plain if plain.isidentifier() and plain not in names else f"input_{len(names)}"
        )
    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_own(model, forward=forward), tuple(tensors_in(inputs))


def pack_example(
    model: nn.Module, inputs: tuple[Any, ...], packing: Packing | None = None
) -> tuple[Float[Tensor, "n 1 values"], Packing]:
    """The inputs that the network is called with, packed; in the order of `packing` where it is given.

    Raises DataError where that is of other inputs.
    """
    own = packing_of(model, inputs)
    named = dict(zip(own.names, tensors_in(inputs), strict=True))
    if packing is None:
        return pack(named)
    if packing.by_name != own.by_name:
        raise DataError(
            f"the inputs are {packing.text}, and the example is {own.text}: give both alike"
        )
    return pack({name: named[name] for name in packing.names})[0], packing


def packing_of(model: nn.Module, inputs: tuple[Any, ...]) -> Packing:
    """How these inputs, as the network is called with them, are packed.

    Raises ModelError for what is no tensor, DataError for keys of which no name can be made.
    """
    kinds = list(inspect.signature(model.forward).parameters.values())
    names = [p.name for p in kinds if p.kind in POSITIONAL][: len(inputs)]
    names += [f"input_{i}" for i in range(len(names), len(inputs))]  # what *args take has no names
    found = [pair for name, x in zip(names, inputs, strict=True) for pair in leaves(name, x)]
    wrong = [f"{name} is {type(x).__name__}" for name, x in found if not isinstance(x, Tensor)]
    if wrong:
        raise ModelError(
            f"of what the network takes, {', '.join(wrong)}: tensors are taken, and lists and dicts of them"
        )
    shapes = tuple(tuple(x.shape[1:]) for _, x in found)
    return Packing(tuple(name for name, _ in found), shapes, tuple(x.dtype for _, x in found))


def _order(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """The names of what is given, a list or dict being one, in the order of the forward's parameters."""
    given = list(dict.fromkeys(re.split(r"[.\[]", name)[0] for name in names))
    kinds = inspect.signature(model.forward).parameters.values()
    taken = [p.name for p in kinds if p.kind in POSITIONAL]
    needed = [p.name for p in kinds if p.kind in POSITIONAL and p.default is p.empty]
    if any(p.kind is p.VAR_POSITIONAL for p in kinds) and not taken:
        return given
    by_name = [p.name for p in kinds if p.kind is p.KEYWORD_ONLY and p.name in given]
    if by_name:
        raise ModelError(
            f"the network's forward takes {', '.join(by_name)} by name alone (after a *), and networks "
            "are called here with their inputs in order: wrap it in one whose forward takes them so"
        )
    if set(taken[: len(given)]) != set(given) or not set(needed) <= set(given):
        raise ModelError(
            f"the inputs are {', '.join(given)}, and the network's forward takes "
            f"{', '.join(taken) or 'none'}: give each that it needs, from the first on, by its "
            "name"
        )
    return taken[: len(given)]
