"""Programs made easier for a target: the same numbers by operators and outputs that it knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.fx import Node
from torch.utils._pytree import tree_structure

from onebyone.loading.layers import bound, operator_of


def with_attention_as_products(program: ExportedProgram) -> ExportedProgram:
    """Attention over other than four axes as matrix products: ONNX's exporter knows four axes only."""
    attention = torch.ops.aten.scaled_dot_product_attention.default
    nodes = [n for n in program.graph.nodes if n.target is attention]
    if all(n.args[0].meta["val"].ndim == 4 for n in nodes):
        return program

    def products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, p: float = 0.0,
                 causal: bool = False, **given: Any) -> Tensor:  # fmt: skip
        made = torch.ops.aten._scaled_dot_product_attention_math
        return made(q, k, v, mask, p, causal, None, **given)[0]

    return program.run_decompositions({attention: products})


def with_circles_joined(program: ExportedProgram) -> ExportedProgram:
    """Circular padding as slices joined at both ends, in place: OpenVINO has no such padding."""
    aten = torch.ops.aten
    graph = program.graph
    for node in list(graph.nodes):
        if operator_of(node) != "pad":
            continue
        given = bound(node)
        if given["mode"] != "circular":
            continue
        sizes = list(given["pad"])
        made: Node = given["self"]
        axes = len(node.meta["val"].shape)
        with graph.inserting_before(node):
            for axis, before, after in zip(
                range(axes - 1, -1, -1), sizes[::2], sizes[1::2], strict=False
            ):
                parts = [made]
                if before:
                    parts.insert(0, graph.call_function(aten.slice.Tensor, (made, axis, -before)))
                if after:
                    parts.append(graph.call_function(aten.slice.Tensor, (made, axis, 0, after)))
                if len(parts) > 1:
                    made = graph.call_function(aten.cat.default, (parts, axis))
                for new in {*parts, made} - {given["self"]}:
                    new.meta = dict(node.meta)  # the layer; lengths are worked out anew
        node.replace_all_uses_with(made)
        graph.erase_node(node)
    program.graph_module.recompile()
    return program


def with_tensors_alone(program: ExportedProgram) -> ExportedProgram:
    """Without outputs that are no tensors, such as None and numbers, in place: no runtime has them."""
    signature = program.graph_signature
    kept = [
        spec.kind is not OutputKind.USER_OUTPUT or isinstance(spec.arg, TensorArgument)
        for spec in signature.output_specs
    ]
    if all(kept):
        return program
    last = next(n for n in reversed(program.graph.nodes) if n.op == "output")
    last.args = (tuple(v for v, keep in zip(last.args[0], kept, strict=True) if keep),)
    signature.output_specs[:] = [
        spec for spec, keep in zip(signature.output_specs, kept, strict=True) if keep
    ]
    whole = program.module_call_graph[0].signature
    if whole is not None:
        whole.outputs[:] = [v for v in whole.outputs if isinstance(v, TensorArgument)]
        whole.out_spec = tree_structure((0,) * len(signature.user_outputs))
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program
