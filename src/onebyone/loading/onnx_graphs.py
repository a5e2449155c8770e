"""ONNX files → modules, through onnx2torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.errors import MissingExtraError, ModelError
from onebyone.loading.loaded import example_of
from onebyone.loading.zoo import mismatched

ADVICE = (
    "Export the model from PyTorch to .pt2 instead (torch.export.save), or write the ONNX file "
    "with an older operator set (13 to 17)"
)


def read_onnx(path: Path, input_size: tuple[int, ...] | None) -> tuple[nn.Module, Tensor]:
    """The model in eval mode and an example input.

    Raises `ModelError` where an operator is not taken or the input's size is not known, and
    `MissingExtraError` where onnx2torch is not installed. Where onnxruntime is installed, the
    outputs of both must agree.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist")
    onnx, convert = _converter()
    try:
        graph = onnx.load(str(path))
        size = input_size or _input_size(graph, path)
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
    example = example_of(size)
    _check_outputs(model, path, example)
    return model, example


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


def _input_size(graph: Any, path: Path) -> tuple[int, ...]:
    """C×H×W of the only input; raises `ModelError` where it is not fixed in the file."""
    weights = {w.name for w in graph.graph.initializer}
    inputs = [i for i in graph.graph.input if i.name not in weights]
    if len(inputs) != 1:
        raise ModelError(f"{path} has {len(inputs)} inputs: networks of one image input are taken")
    size = tuple(d.dim_value for d in inputs[0].type.tensor_type.shape.dim)[1:]
    if not size or min(size) < 1:
        raise ModelError(
            f"the input size of {path} is not fixed in the file: give it, such as --input 3x224x224"
        )
    return size


def _check_outputs(model: nn.Module, path: Path, example: Tensor) -> None:
    """Compare with onnxruntime, where that is installed."""
    try:
        with torch.no_grad():
            outputs = model(example)
    except Exception as error:
        raise ModelError(f"{path} was converted but does not run: {error}. {ADVICE}") from error
    try:
        import onnxruntime
    except ImportError:
        return
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: example.numpy()})
    found = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    for ours, theirs in zip(found, map(torch.as_tensor, expected), strict=True):
        scale = float(theirs.abs().max()) or 1.0
        if not torch.allclose(ours.to(theirs.dtype), theirs, rtol=1e-3, atol=1e-3 * scale):
            raise ModelError(
                f"{path} computes something else after conversion: outputs differ by up to "
                f"{float((ours - theirs).abs().max()):.3g} from onnxruntime's. {ADVICE}"
            )
