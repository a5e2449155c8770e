"""ONNX, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebyone.errors import MissingExtraError, ModelError, line_of
from onebyone.exporting.easing import with_attention_as_products, with_tensors_alone
from onebyone.exporting.network import FLOAT16, FLOAT32, INT8, Network, refusal
from onebyone.exporting.program import quiet, silent
from onebyone.exporting.tracing import Traced, write_traced

NUMBERS = (FLOAT32, FLOAT16, INT8)


def export_onnx(network: Network, path: Path) -> None:
    """Write the network as ONNX with its weights inside.

    float16 keeps inputs and outputs in float32; int8 is onnxruntime's static quantization (QDQ, a
    scale a channel; 7 bits a weight, which older processors need so that sums do not overflow).
    Raises MissingExtraError without the packages, ModelError for what ONNX cannot express, OSError
    where the file cannot be written.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f'ONNX needs the package {error.name}: pip install "onebyone[onnx]"'
        ) from error
    try:
        with quiet():
            if isinstance(network.program, Traced):
                write_traced(network.program, network.inputs, _names(network), path)
            else:
                torch.onnx.export(
                    with_attention_as_products(with_tensors_alone(network.program)), f=str(path),
                    dynamo=True, external_data=False, verbose=False, input_names=_names(network),
                )  # fmt: skip
            if network.dtype == FLOAT16:
                _to_float16(path)
            elif network.dtype == INT8:
                _to_int8(path, network)
    except OSError:
        raise
    except Exception as error:
        raise refusal("ONNX", network, error) from error
    made = onnx.load(str(path))
    del made.metadata_props[:]
    entry = made.metadata_props.add()
    entry.key, entry.value = "onebyone", network.about_text
    path.write_bytes(made.SerializeToString())


def _names(network: Network) -> list[str]:
    """What the file calls its inputs: several bear the names that the network's forward has for them."""
    if len(network.inputs) == 1:
        return ["input"]
    program = network.exported
    taken = {*program.state_dict, *program.constants}
    names = map(str, program.graph_signature.user_inputs)
    return [f"{name}_input" if name in taken else name for name in names]


def _to_float16(path: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(str(path))
    _copy_weights_given_out(model.graph)
    made = convert_float_to_float16(model, keep_io_types=True)
    path.write_bytes(made.SerializeToString())


def _copy_weights_given_out(graph: Any) -> None:
    """Outputs that are weights themselves become copies of them: the converter casts outputs under their
    names, which weights keep."""
    import onnx

    given_out = {output.name for output in graph.output}
    for weight in graph.initializer:
        if weight.name in given_out:
            own, name = f"{weight.name}.weight", weight.name
            for node in graph.node:
                node.input[:] = [own if given == name else given for given in node.input]
            weight.name = own
            graph.node.append(onnx.helper.make_node("Identity", [own], [name]))


def _to_int8(path: Path, network: Network) -> None:
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_name("prepared.onnx")
    try:
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        grouped = [  # whose scales a channel the quantizer takes for those of an ungrouped one
            node.name
            for node in onnx.load(str(prepared)).graph.node
            if node.op_type == "ConvTranspose"
            and any(a.name == "group" and a.i > 1 for a in node.attribute)
        ]
        with silent():
            quantize_static(
                str(prepared), str(path), _reader(network), quant_format=QuantFormat.QDQ,
                per_channel=True, reduce_range=True, weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8, nodes_to_exclude=grouped,
            )  # fmt: skip
    finally:
        with suppress(OSError):
            prepared.unlink()


def _reader(network: Network) -> Any:
    """The calibration images one by one, as onnxruntime's quantizer asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    assert network.calibration is not None
    parts: Iterator[Tensor] = iter(network.calibration.split(1))
    (name,) = _names(network)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:  # type: ignore[override]
            part = next(parts, None)
            return None if part is None else {name: part.numpy()}

    return Reader()


def open_onnx(path: Path, threads: int) -> Any:
    """The file in onnxruntime with so many threads: tensors → list of tensors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return [torch.as_tensor(y) for y in session.run(None, feed)]

    return run


def about_onnx(path: Path) -> str | None:
    """What onebyone embedded in the file, as JSON; None where it did not write it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map.get("onebyone")


def inputs_of_onnx(path: Path, size: tuple[int, ...] | None) -> tuple[Tensor, ...]:
    """A drawn input (1, …) for each that an ONNX file takes; `size` (C×H×W) where it leaves that open.

    Raises MissingExtraError without onnxruntime, ModelError where a size is not known or the file is
    damaged.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            'ONNX files are run by onnxruntime: pip install "onebyone[onnx]"'
        ) from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"onnxruntime cannot read {path}: {line_of(error)}") from error
    found = []
    for given in session.get_inputs():
        shape = size or tuple(given.shape[1:])
        if given.type != "tensor(float)" or not all(isinstance(n, int) for n in shape):
            raise ModelError(
                f"the input {given.name} of {path} is {given.type} of the shape {given.shape}: networks "
                "of float32 images are timed; give their size, such as --input 3x224x224"
            )
        found.append(torch.randn((1, *shape), generator=torch.Generator().manual_seed(0)))
    return tuple(found)
