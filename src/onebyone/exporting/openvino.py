"""OpenVINO's intermediate representation: model.xml with the weights in model.bin."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from onebyone.errors import MissingExtraError, ModelError, OneByOneError
from onebyone.exporting.easing import with_circles_joined
from onebyone.exporting.network import (
    FLOAT16,
    FLOAT32,
    INT8,
    Network,
    layer_of_node,
    not_taken,
    refusal,
)
from onebyone.exporting.onnx import export_onnx
from onebyone.exporting.program import silent
from onebyone.exporting.tracing import Traced
from onebyone.loading.layers import operator_of

NUMBERS = (FLOAT32, FLOAT16, INT8)
KEY = ["onebyone", "about"]


def export_openvino(network: Network, path: Path) -> None:
    """Write the network; float16 stores halves of weights, int8 is NNCF's post-training quantization.

    Raises MissingExtraError where int8 needs NNCF, ModelError for what OpenVINO does not take.
    """
    import openvino

    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, silent():
            # Through ONNX: openvino.convert_model tells its makers that it was called.
            between = Path(folder, "model.onnx")
            if isinstance(network.program, ExportedProgram):
                with_circles_joined(network.program)
            export_onnx(replace(network, dtype=FLOAT32), between)
            made = openvino.Core().read_model(str(between))
            if network.dtype == INT8:
                made = _quantized(made, network)
            made.set_rt_info(network.about_text, KEY)
            openvino.save_model(made, str(path), compress_to_fp16=network.dtype == FLOAT16)
    except (OSError, OneByOneError):
        raise
    except Exception as error:
        raise _unconverted(network, error) or refusal("OpenVINO", network, error) from error


def _unconverted(network: Network, error: Exception) -> ModelError | None:
    """The message on the last operator in OpenVINO's log of what it did not convert: those before may
    have failed for want of it. None where there is no such log."""
    _, *failed = re.split(r"^-- ", str(error).partition("\nSummary:")[0], flags=re.MULTILINE)
    if not failed or isinstance(network.program, Traced):
        return None
    operator = failed[-1].partition("-")[0]
    named = re.findall(r"<Node\(\w+\): ([^>]+)>", failed[-1])
    nodes = [
        *(n for n in network.program.graph.nodes if n.name in named),
        *(n for n in network.program.graph.nodes if operator_of(n) == operator.lower()),
    ]
    layer = layer_of_node(nodes[0]) if nodes else None
    return not_taken("OpenVINO", operator, layer, failed[-1].strip().splitlines()[-1])


def _quantized(made: Any, network: Network) -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # else NNCF tells its makers that it was called
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError(
            'int8 for OpenVINO needs NNCF: pip install "onebyone[openvino]"'
        ) from error
    assert network.calibration is not None
    images = [x.numpy() for x in network.calibration.split(1)]
    return nncf.quantize(made, nncf.Dataset(images), subset_size=len(images))


def open_openvino(path: Path, threads: int) -> Any:
    """The file on OpenVINO's processor plugin, computing in float32, one stream of so many threads."""
    import openvino

    compiled = openvino.Core().compile_model(
        str(path),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        },
    )
    request = compiled.create_infer_request()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        found = request.infer([x.numpy() for x in inputs], share_inputs=True)
        return [torch.as_tensor(found[port]) for port in compiled.outputs]

    return run


def about_openvino(path: Path) -> str | None:
    """What onebyone embedded in the file, as JSON; None where it did not write it."""
    import openvino

    model = openvino.Core().read_model(str(path))
    return str(model.get_rt_info(KEY).astype(str)) if model.has_rt_info(KEY) else None
