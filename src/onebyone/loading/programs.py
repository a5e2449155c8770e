"""Exported programs → plain modules, their convolution calls turned back into layers."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from onebyone.errors import ModelError
from onebyone.loading.computed import gather_computed
from onebyone.loading.layers import bound, layer_of, operator_of
from onebyone.tree import kept

CHECKS = ("_assert_scalar", "_assert_tensor_metadata", "_assert_async", "sym_constrain_range")
NAME = "Program"  # the class of what is made here
SIZES = "sizes"  # of a program's input, in its node's `meta`
BATCHES = "num_batches_tracked"
TRAINING = {  # operators with a flag for training, and its name
    "dropout": "train", "feature_dropout": "train", "alpha_dropout": "train",
    "feature_alpha_dropout": "train", "native_dropout": "train", "rrelu": "training",
    "batch_norm": "training", "instance_norm": "use_input_stats",
}  # fmt: skip
RANDOM = (
    "bernoulli", "exponential", "multinomial", "normal", "normal_functional", "poisson", "rand",
    "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm", "uniform",
)  # fmt: skip
OF_BATCHES = ("_native_batch_norm_legit_functional",)
TIES = 0.01  # of the whole numbers that a network returns may differ from batch to batch
VIEWS = ("view", "reshape", "_unsafe_view", "view_copy", "_reshape_alias")


@dataclass(frozen=True)
class Program:
    """A program as a module, its example inputs (N, …), the only N it takes (None: any), and what there is
    to say of it."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    fixed_batch: int | None
    notes: tuple[str, ...] = ()


def is_program(model: nn.Module) -> bool:
    """Whether `module_of` made it."""
    return isinstance(model, GraphModule) and type(model).__name__ == NAME


def made_for(model: nn.Module, size: tuple[int, ...]) -> bool:
    """Whether a program's one input may have the size C×H×W: that of its export, but for lengths left free.

    Lengths that were fixed may stand anywhere among its numbers.
    """
    assert isinstance(model, GraphModule)
    own = next(n.meta[SIZES] for n in model.graph.nodes if n.op == "placeholder")[1:]
    return len(own) == len(size) and all(a in (b, None) for a, b in zip(own, size, strict=True))


def module_of(program: ExportedProgram) -> Program:
    """The program as a `torch.fx.GraphModule` of plain layers, in eval mode.

    Calls of convolution, linear, batch normalization and dropout become `nn.Conv2d`, `nn.Linear`, …
    under the names that their weights had; everything else stays the call that it was. The
    program's checks of its input's shape are left out, and reshapes to its example's batch size are
    freed, so that most programs exported with one image take any number; the others refuse it.
    Several inputs have the names that they had. Raises `ModelError` on inputs that are no tensors with
    one batch size.
    """
    inputs = _inputs(program)
    batch = len(inputs[0])
    graph, root = _plain(program)
    _free_batch(graph, batch)
    _to_evaluation(graph)
    _restore_layers(graph, root)
    notes = _notes(graph)
    whole = GraphModule(root, graph)
    _drop_checks(whole.graph)
    gather_computed(whole.graph, whole)
    model = GraphModule(whole, whole.graph, NAME)  # with what its graph names, and nothing else
    model.eval()
    if batch_free(program) or takes_any_batch(model, inputs):
        return Program(model, tuple(x[:1] for x in inputs), None, notes)
    _fix_batch(model, batch)
    return Program(model, inputs, batch, notes)


def _inputs(program: ExportedProgram) -> tuple[Tensor, ...]:
    """The inputs that the program was exported with, or random ones of their shapes."""
    names = list(program.graph_signature.user_inputs)
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    wrong = [str(n) for n in names if not isinstance(values.get(str(n)), Tensor)]
    if wrong or not names:
        raise ModelError(
            f"the program takes {', '.join(wrong) or 'nothing'}, which is no tensor: programs of tensors "
            "are taken"
        )
    shapes = [values[str(n)].shape for n in names]
    if not all(shapes) or len({s[0] for s in shapes if isinstance(s[0], int)}) > 1:
        said = ", ".join(f"{n} {tuple(map(str, s))}" for n, s in zip(names, shapes, strict=True))
        raise ModelError(f"the program's inputs have not one batch size as their first: {said}")
    given = pytree.tree_leaves(program.example_inputs) if program.example_inputs else []
    if len(given) == len(names) and all(isinstance(x, Tensor) for x in given):
        return tuple(x.detach() for x in given)
    return tuple(_drawn(values[str(n)]) for n in names)


def batch_free(program: object) -> bool:
    """Whether it is a program whose batch size is free; sizes of what it finds may be free as well.

    Its images may influence each other all the same.
    """
    if not isinstance(program, ExportedProgram):
        return False
    named = set(program.graph_signature.user_inputs)
    inputs = (
        n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in named
    )
    batches = [x.shape[0] for x in inputs if isinstance(x, Tensor) and x.ndim]
    return bool(batches) and not any(isinstance(size, int) for size in batches)


def _drawn(like: Tensor) -> Tensor:
    """A random input of this shape, 1 where a length is free; whole numbers are 0."""
    size = [n if isinstance(n, int) else 1 for n in like.shape]
    if not like.is_floating_point():
        return torch.zeros(size, dtype=like.dtype)
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def _plain(program: ExportedProgram) -> tuple[Graph, nn.Module]:
    """The program's graph with its weights as attributes of a tree of modules."""
    specs = {s.arg.name: s for s in program.graph_signature.input_specs if hasattr(s.arg, "name")}
    graph, root = Graph(), nn.Module()
    copies: dict[Node, Any] = {}
    tied: dict[Hashable, nn.Parameter] = {}
    for node in program.graph.nodes:
        spec = specs.get(node.name) if node.op == "placeholder" else None
        if node.op == "output":
            graph.output(_output(program, node, copies))
        elif spec is not None and spec.kind is not InputKind.USER_INPUT:
            if spec.target is None or spec.target not in {
                **program.state_dict,
                **program.constants,
            }:
                raise ModelError(f"the program's input {node.name} ({spec.kind.name}) is not taken")
            _attach(root, spec.target, program, tied)
            copies[node] = graph.get_attr(spec.target)
        else:
            if node.op == "get_attr":  # the graphs of control flow
                setattr(root, str(node.target), getattr(program.graph_module, str(node.target)))
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            copies[node].meta = {"val": node.meta.get("val")}
    return graph, root


def _attach(
    root: nn.Module, name: str, program: ExportedProgram, tied: dict[Hashable, nn.Parameter]
) -> None:
    """Put one parameter, buffer or constant at its qualified name; parameters that a file holds once are
    one, whatever objects it gave for them."""
    *path, last = name.split(".")
    parent = root
    for part in path:
        if part not in parent._modules:
            parent.add_module(part, nn.Module())
        parent = cast(nn.Module, parent._modules[part])
    value = program.state_dict.get(name, program.constants.get(name))
    if isinstance(value, nn.Parameter):
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        parent.register_parameter(last, tied.setdefault(place, value) if value.numel() else value)
    elif isinstance(value, Tensor):
        parent.register_buffer(last, value, persistent=name in program.state_dict)
    else:
        raise ModelError(
            f"the program holds {name}, a {type(value).__name__}: only tensors are taken"
        )


def _output(program: ExportedProgram, node: Node, copies: dict[Node, Any]) -> Any:
    """What the user gets: mutated buffers left out, nested as the original returned it."""
    flat = []
    for spec, value in zip(
        program.graph_signature.output_specs, cast("tuple[Any, ...]", node.args[0]), strict=True
    ):
        if spec.kind is OutputKind.USER_OUTPUT:
            flat.append(copies[value] if isinstance(value, Node) else value)
    spec = program.call_spec.out_spec
    return flat[0] if spec is None else pytree.tree_unflatten(flat, spec)


def _free_batch(graph: Graph, batch: int) -> None:
    """Let reshapes whose first length is the example's batch size follow the batch instead."""
    for node in graph.nodes:
        if node.op != "call_function" or operator_of(node) not in VIEWS:
            continue
        given, sizes = node.args[0], node.args[1]
        value = given.meta.get("val") if isinstance(given, Node) else None
        if not isinstance(value, Tensor) or not value.ndim or not isinstance(sizes, list | tuple):
            continue
        made = node.meta.get("val")
        if -1 in sizes and isinstance(made, Tensor) and all(isinstance(n, int) for n in made.shape):
            sizes = [*made.shape]  # what was left open is fixed, and the batch free
        if sizes and sizes[0] == batch == value.shape[0] and -1 not in sizes:
            node.args = (given, [-1, *sizes[1:]], *node.args[2:])


def _fix_batch(model: GraphModule, batch: int) -> None:
    """Let the program refuse any other batch: what it computed of one could be anything."""
    graph = model.graph
    *_, last = (node for node in graph.nodes if node.op == "placeholder")
    said = f"this program takes batches of {batch} only: it was exported with that batch size fixed"
    with graph.inserting_after(last):
        size = graph.call_method("size", (last, 0))
    with graph.inserting_after(size):
        same = graph.call_function(operator.eq, (size, batch))
    with graph.inserting_after(same):
        graph.call_function(torch._assert, (same, said))
    model.recompile()


def _to_evaluation(graph: Graph) -> None:
    """Let calls of operators that know of training be those of evaluation, as modules are in eval mode."""
    for node in graph.nodes:
        flag = TRAINING.get(operator_of(node).rstrip("_"))
        if flag is None:
            continue
        values = bound(node)
        if values.get(flag) is True and values.get("running_mean", True) is not None:
            names = [argument.name for argument in cast(Any, node.target)._schema.arguments]
            node.args = tuple(False if name == flag else values[name] for name in names)
            node.kwargs = {}


def _notes(graph: Graph) -> tuple[str, ...]:
    """Calls that no flag turns into those of evaluation, as decompositions leave them."""
    names = {operator_of(node) for node in graph.nodes}
    found = sorted(names & {*RANDOM, *OF_BATCHES})
    if not found:
        return ()
    what = (
        "draws random numbers" if set(found) & {*RANDOM} else "takes the statistics of each batch"
    )
    return (
        f"the program {what} whenever it runs (aten.{', aten.'.join(found)}): if it was exported in "
        "training mode, export it anew after model.eval()",
    )


def _drop_checks(graph: Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op != "call_function" or node.users:
            continue
        # A restored BatchNorm counts its batches itself.
        counts = bool(node.args) and str(node.args[0]).endswith(BATCHES)
        if operator_of(node) in CHECKS or counts:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in graph.nodes:  # symbols and fake tensors can be neither copied nor kept in files
        node.meta = {SIZES: _sizes(node.meta["val"])} if node.op == "placeholder" else {}


def _sizes(like: Tensor) -> tuple[int | None, ...]:
    """The lengths that the export fixed, None where it left them free."""
    return tuple(n if isinstance(n, int) else None for n in like.shape)


def _restore_layers(graph: Graph, root: nn.Module) -> None:
    """Replace calls by layers; equal calls with equal weights share one layer."""
    fetch, found = _fetcher(root), []
    for node in graph.nodes:
        name = operator_of(node)
        layer = layer_of(name, bound(node), fetch) if name else None
        if layer is not None:
            found.append((node, (name, *map(repr, layer.key)), layer))
    distinct = {key: layer for _, key, layer in found}.values()
    users = Counter(name for layer in distinct for name in layer.tensors)
    made: dict[tuple[Any, ...], str] = {}
    calls: dict[Node, Node] = {}  # of layers, by what they stand for
    for node, key, layer in found:
        if not layer.tensors or key not in made:
            names = sorted(layer.tensors, key=users.__getitem__)
            made[key] = _place(root, names, layer.layer, node.name)
        with graph.inserting_before(node):
            call = graph.call_module(made[key], (calls.get(layer.input, layer.input),))
        call.meta = dict(node.meta)
        if layer.first_of_many:
            for user in list(node.users):
                if user.target is operator.getitem and user.args[1] == 0:
                    calls[user] = call
                    user.replace_all_uses_with(call)
                    graph.erase_node(user)
        else:
            calls[node] = call
            node.replace_all_uses_with(call)
        if not node.users:
            graph.erase_node(node)


def _fetcher(root: nn.Module) -> Callable[[Any], Tensor | None]:
    """A function from a `get_attr` node to the tensor that it gave in the program; None for any other
    value."""
    held = dict(_named_tensors(root))

    def fetch(value: Any) -> Tensor | None:
        if not isinstance(value, Node) or value.op != "get_attr":
            return None
        return held.get(str(value.target))

    return fetch


def _place(root: nn.Module, tensors: Sequence[str], layer: nn.Module, node: str) -> str:
    """Put the layer where its tensors were, or beside the first where no place holds them alone.

    A tied weight has one of its layers' names, so those that fewer layers have come first.
    """
    paths = [name.rpartition(".")[0] for name in tensors]
    for path in filter(None, paths):
        there = root.get_submodule(path)
        if type(there) is nn.Module and not there._modules and _holds(layer, there):
            parent, _, name = path.rpartition(".")
            layer._buffers.update(there._buffers)  # BatchNorm's counter
            setattr(root.get_submodule(parent), name, layer)
            return path
    path = paths[0] if paths else ""
    parent = root.get_submodule(path)
    name = node
    while hasattr(parent, name):
        name += "_"
    parent.add_module(name, layer)
    return f"{path}.{name}" if path else name


def _holds(layer: nn.Module, there: nn.Module) -> bool:
    """Whether the tensors of a place are the layer's own, by name; it counts its batches itself."""
    own = layer._parameters | layer._buffers
    return all(
        name in own and (name == BATCHES or tensor is None or own[name] is tensor)
        for name, tensor in (there._parameters | there._buffers).items()
    )


def _named_tensors(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from root.named_parameters(remove_duplicate=False)
    yield from root.named_buffers(remove_duplicate=False)


def takes_any_batch(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether two images together give what each gives alone. Buffers that the model changes come back.

    All random numbers are the same meanwhile: others could not be told from what a batch changes.
    """
    one = [_varied(x[:1], 0) for x in inputs]
    other = [_varied(x[:1], 1) for x in inputs]

    def outputs(given: list[Tensor]) -> list[Any]:
        with kept(model), _Drawn():
            return pytree.tree_leaves(model(*(x.clone() for x in given)))

    try:
        with torch.no_grad():
            joined = [torch.cat(pair) for pair in zip(one, other, strict=True)]
            found = zip(outputs(joined), outputs(one), outputs(other), strict=True)
            return all(agree(*leaves) for leaves in found)
    except Exception:  # any operator may refuse another batch in its own words
        return False


class _Drawn(TorchDispatchMode):
    """What is drawn at random is the same for every image: one half, of whole numbers 0."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = operator(*args, **(kwargs or {}))
        if operator.overloadpacket.__name__.rstrip("_") in RANDOM and isinstance(found, Tensor):
            found.fill_(0.5 if found.is_floating_point() else 0)
        return found


def _varied(image: Tensor, seed: int) -> Tensor:
    """An image that no other seed gives, of values between its own least and most (or normal ones, if
    it is all one value); whole numbers are turned around, since which others there may be is not known."""
    if not image.is_floating_point() or not image.numel():
        return image.flip(-1) if seed and image.ndim > 1 else image
    drawn = torch.rand(image.shape, generator=torch.Generator().manual_seed(seed)).to(image)
    least, most = image.aminmax()
    if least == most:
        return 2 * drawn - 1
    return least + (most - least) * drawn


def agree(both: Any, *each: Any) -> bool:
    """Whether an output for two images is those for each, side by side along one axis; one without axes
    may be any."""
    if not isinstance(both, Tensor) or not both.ndim:
        return True
    one = each[0]
    longer = [
        axis for axis in range(min(both.ndim, one.ndim)) if both.shape[axis] != one.shape[axis]
    ]
    if both.ndim != one.ndim or len(longer) > 1:
        return False
    expected = torch.cat(each, *longer)
    if both.shape != expected.shape or both.dtype != expected.dtype:
        return False
    if not (both.is_floating_point() or both.is_complex()):  # classes, of which few may be ties
        return float((both != expected).double().mean()) <= TIES
    scale = float(expected.abs().max()) or 1.0
    return torch.allclose(both, expected, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
