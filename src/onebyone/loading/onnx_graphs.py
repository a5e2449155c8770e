"""ONNX files → modules, through onnx2torch."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from onebyone.errors import MissingExtraError, ModelError, line_of
from onebyone.loading.loaded import example_of
from onebyone.loading.zoo import mismatched

STATISTICS = ("running_mean", "running_var")
ADVICE = (
    "Export the model from PyTorch to .pt2 instead (torch.export.save), or write the ONNX file "
    "with an older operator set (13 to 17)"
)


def read_onnx(
    path: Path, input_size: tuple[int, ...] | None
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model in eval mode and example inputs; several ones have the file's names.

    Raises `ModelError` where an operator is not taken or an input's size is not known, and
    `MissingExtraError` where onnx2torch is not installed. Where onnxruntime is installed, the
    outputs of both must agree.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist")
    onnx, convert = _converter()
    try:
        graph = onnx.load(str(path))
        inputs = _inputs(onnx, graph, path, input_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = convert(_folded(onnx, graph)).eval()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path} cannot be turned into a PyTorch model: {type(error).__name__}: {error}. "
            f"{ADVICE}"
        ) from error
    _name_inputs(model, list(inputs))
    _check_outputs(model, path, inputs)
    return model, tuple(inputs.values())


def constants_note(model: nn.Module) -> tuple[str, ...]:
    """A note on the weights that onnx2torch makes constants, where there are more than one in a hundred."""
    held = sum(
        buffer.numel()
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point() and not name.endswith(STATISTICS)
    )
    if held * 100 <= sum(p.numel() for p in model.parameters()):
        return ()
    return (
        f"{held:,} numbers of the file that no layer holds (weights of products and sums) are constants "
        "here: not among the parameters, not trained, not slimmed",
    )


def _converter() -> tuple[Any, Any]:
    try:
        import onnx
        from onnx2torch import convert
    except ImportError as error:
        raise MissingExtraError(
            f'onnx2torch is needed to load ONNX files ({error}): pip install "onebyone[onnx2torch]"'
        ) from error
    except RuntimeError as error:
        raise MissingExtraError(mismatched("onnx2torch", error)) from error
    return onnx, convert


def _folded(onnx: Any, model: Any) -> Any:
    """Weights that reach a layer through Constant or Identity nodes as plain initializers.

    onnx2torch looks for a convolution's weights among the initializers only, while PyTorch's older
    exporter stores equal tensors once and hands them on by Identity.
    """
    graph = model.graph
    weights = {w.name: w for w in graph.initializer}
    for node in list(graph.node):
        value = None
        if node.op_type == "Identity" and node.input[0] in weights:
            value = weights[node.input[0]]
        elif node.op_type == "Constant" and node.attribute[0].name == "value":
            value = node.attribute[0].t
        if value is None or node.output[0] in {o.name for o in graph.output}:
            continue
        folded = onnx.TensorProto()
        folded.CopyFrom(value)
        folded.name = node.output[0]
        graph.initializer.append(folded)
        weights[folded.name] = folded
        graph.node.remove(node)
    return model


def _inputs(onnx: Any, model: Any, path: Path, size: tuple[int, ...] | None) -> dict[str, Tensor]:
    """A random tensor for each input by its name, of the size C×H×W that is given or the file's own.

    Raises `ModelError` where the file does not fix it, and where a size is given for several inputs.
    """
    weights = {w.name for w in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    if len(inputs) > 1 and size is not None:
        raise ModelError(
            f"{path} has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}), and one size was "
            "given: leave it out, and the sizes in the file are taken"
        )
    found: dict[str, Tensor] = {}
    for given in inputs:
        kind = given.type.tensor_type
        own = size or tuple(d.dim_value for d in kind.shape.dim)[1:]
        if (not own and len(inputs) == 1) or (own and min(own) < 1):
            advice = "give it, such as --input 3x224x224"
            if len(inputs) > 1:
                advice = "export the network with fixed sizes, but for the first, the batch"
            raise ModelError(
                f"the size of the input {given.name} is not fixed in the file {path}: {advice}"
            )
        batch = kind.shape.dim[0].dim_value if own else 1
        kept = np.zeros((batch or 1, *own), onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        drawn = torch.from_numpy(kept)
        if own and drawn.is_floating_point():
            drawn = example_of(own, len(drawn)).to(drawn.dtype)
        found[given.name] = drawn
    return found


def _name_inputs(model: nn.Module, names: list[str]) -> None:
    """Call a converted network's inputs what the file calls them."""
    assert isinstance(model, GraphModule)
    places = [n for n in model.graph.nodes if n.op == "placeholder"]
    own = [re.sub(r"\W", "_", name) for name in names]
    if len(places) == len(own) == len(set(own)) > 1 and all(n.isidentifier() for n in own):
        for node, name in zip(places, own, strict=True):
            node.target = name
        model.recompile()


def _check_outputs(model: nn.Module, path: Path, inputs: dict[str, Tensor]) -> None:
    """Compare with onnxruntime, where that is installed."""
    try:
        with torch.no_grad():
            outputs = model(*(x.clone() for x in inputs.values()))
    except Exception as error:
        raise ModelError(f"{path} was converted but does not run: {error}. {ADVICE}") from error
    try:
        import onnxruntime
    except ImportError:
        return
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        expected = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    except Exception as error:  # each of onnxruntime's is of a class of its own
        if type(error).__name__ == "NotImplemented":
            return  # it has no kernels for such a type, as for convolutions in float64
        sizes = ", ".join("×".join(map(str, x.shape)) for x in inputs.values())
        raise ModelError(
            f"{path} does not run in onnxruntime on an input of {sizes}: {line_of(error)}"
        ) from error
    found = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    if len(found) != len(expected):
        raise ModelError(
            f"{path} has {len(expected)} outputs, and {len(found)} after conversion. {ADVICE}"
        )
    for ours, theirs in zip(found, map(torch.as_tensor, expected), strict=True):
        own, other = ours.double(), theirs.double()
        scale = float(other.abs().max()) if other.numel() else 0.0
        if own.shape != other.shape:
            differ = f"have shape {tuple(own.shape)} where onnxruntime's have {tuple(other.shape)}"
        elif not torch.allclose(own, other, rtol=1e-3, atol=1e-3 * (scale or 1.0)):
            differ = f"differ by up to {float((own - other).abs().max()):.3g} from onnxruntime's"
        else:
            continue
        raise ModelError(
            f"{path} computes something else after conversion: outputs {differ}. {ADVICE}"
        )
