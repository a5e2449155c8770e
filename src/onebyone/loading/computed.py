"""Calls of convolutions in a program whose weights are computed anew at each pass → layers that do so.

Weight standardization and weight and spectral normalization come out of `torch.export` as calls on the
parameters that a module held. Such a module comes back, so that its weights belong to a layer again.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any, cast

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from onebyone.loading.layers import bound, operator_of
from onebyone.watching import CALLS

NAME = "ComputedLayer"  # the class of what is made here
FUNCTIONS = {function.__name__: function for function in CALLS}  # by the operator's name too
PARTS = "parametrizations"  # beneath a layer: the tensors that its parametrized ones are made from


def gather_computed(graph: Graph, root: nn.Module) -> None:
    """Put a module in place of each call whose weights are computed from tensors that it alone has.

    The tensors keep their names. In place, on the graph and the tree of modules.
    """
    for node in list(graph.nodes):
        if node.op == "call_function" and _function(node):
            inside = _computing(node)
            path = _place(node, inside, graph, root)
            if path is not None:
                _gather(node, inside, path, graph, root)


def _function(node: Node) -> Callable[..., Any] | None:
    """The function that a call stands for, if it is one that layers make."""
    if operator_of(node) != "convolution":  # as decompositions write all of them
        return FUNCTIONS.get(operator_of(node))
    values = bound(node)
    return FUNCTIONS[f"conv{'_transpose' * values['transposed']}{len(values['stride'])}d"]


def _computing(node: Node) -> list[Node]:
    """What a call's weights come from, in the order of the graph; [] where they are not computed."""
    found: dict[Node, None] = {}
    waiting = [a for a in (*node.args[1:], *node.kwargs.values()) if isinstance(a, Node)]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        if one.op != "get_attr" and not _is_pure(one):
            return []
        found[one] = None
        waiting += one.all_input_nodes
    if all(one.op == "get_attr" for one in found):
        return []
    return [one for one in node.graph.nodes if one in found]


def _is_pure(node: Node) -> bool:
    """Whether it computes the same from the same tensors and changes nothing."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return node.op == "call_function" and getattr(target, "__module__", "") == "_operator"
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def _place(node: Node, inside: list[Node], graph: Graph, root: nn.Module) -> str | None:
    """The module that has all of these tensors and nothing else, and that nothing else reads."""
    names = {str(n.target) for n in inside if n.op == "get_attr"}
    trained = {n for n, _ in root.named_parameters(remove_duplicate=False)}
    own = {node, *inside}
    fetched = [n for n in graph.nodes if n.op in ("get_attr", "call_module")]
    alone = all(
        set(n.users) <= own for n in inside + [n for n in fetched if str(n.target) in names]
    )
    if not names & trained or not alone:
        return None
    parents = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = [parts[0] for parts in takewhile(lambda parts: len({*parts}) == 1, parents)]
    path = ".".join(shared[: shared.index(PARTS)] if PARTS in shared else shared)
    if not path or not _has_only(root.get_submodule(path), path, names, fetched):
        return None
    return path


def _has_only(there: nn.Module, path: str, names: set[str], fetched: list[Node]) -> bool:
    read = {str(n.target) for n in fetched if f"{n.target}.".startswith(f"{path}.")}
    return read <= names and all(type(module) is nn.Module for module in there.modules())


def _gather(node: Node, inside: list[Node], path: str, graph: Graph, root: nn.Module) -> None:
    made = Graph()
    copies: dict[Any, Node] = {cast(Any, node.args[0]): made.placeholder("input")}
    for one in inside:
        copies[one] = made.node_copy(one, copies.__getitem__)
        if one.op == "get_attr":
            copies[one].target = str(one.target).removeprefix(f"{path}.")
    function, values = _function(node), bound(node)
    assert function is not None
    if not values.pop("transposed", True):  # aten.convolution of one that is not
        values.pop("output_padding")
    made.output(made.call_function(function, kwargs=map_arg(values, copies.__getitem__)))
    parent, _, name = path.rpartition(".")
    there = root.get_submodule(path)
    setattr(root.get_submodule(parent), name, GraphModule(there, made, NAME))
    with graph.inserting_before(node):
        call = graph.call_module(path, (node.args[0],))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    for one in (node, *reversed(inside)):
        graph.erase_node(one)
