"""LiteRT's flatbuffers (.tflite), the format that was TensorFlow Lite's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebyone.errors import OneByOneError
from onebyone.exporting.network import FLOAT16, FLOAT32, INT8, Network, refusal
from onebyone.exporting.program import silent

NUMBERS = (FLOAT32, FLOAT16, INT8)


def export_litert(network: Network, path: Path) -> None:
    """Write the network for batches of 1; float16 and int8 by LiteRT's own quantizer.

    float16 stores halves of weights, int8 takes the ranges of activations from the calibration
    images. Raises ModelError for what LiteRT does not take.
    """
    try:
        with silent():
            import litert_torch

            module = network.exported.module()
            litert_torch.convert(module, network.inputs).export(str(path))
            if network.dtype != FLOAT32:
                _quantize(path, network)
    except (OSError, OneByOneError):
        raise
    except Exception as error:
        raise refusal("LiteRT", network, error) from error


def _quantize(path: Path, network: Network) -> None:
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(path.read_bytes())
    if network.dtype == FLOAT16:
        made.update_quantization_recipe(
            ".*", recipe.TFLOperationName.ALL_SUPPORTED, _halves(),
            algorithm_key=recipe.AlgorithmName.FLOAT_CASTING,
        )  # fmt: skip
        found = made.quantize()
    else:
        made.load_quantization_recipe(recipe.static_wi8_ai8())
        for end in (recipe.TFLOperationName.INPUT, recipe.TFLOperationName.OUTPUT):
            made.update_quantization_recipe(
                ".*", end, algorithm_key=recipe.AlgorithmName.NO_QUANTIZE
            )
        assert network.calibration is not None
        ((signature, names),) = _signatures(path).items()
        rows = [{names[0]: x.numpy()} for x in network.calibration.split(1)]
        found = made.quantize(made.calibrate({signature: rows}, num_threads=1))
    path.write_bytes(found.quantized_model)


def _halves() -> Any:
    """Weights stored as halves, made float32 again before they are used."""
    from ai_edge_quantizer import qtyping

    return qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=16, dtype=qtyping.TensorDataType.FLOAT
        ),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )


def _signatures(path: Path) -> dict[str, list[str]]:
    """The inputs of every entry point."""
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(str(path)).get_signature_list()
    return {name: list(entry["inputs"]) for name, entry in found.items()}


def open_litert(path: Path, threads: int) -> Any:
    """The file in LiteRT's interpreter with XNNPACK and so many threads."""
    with silent():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
    inside = [d["index"] for d in interpreter.get_input_details()]
    outside = [d["index"] for d in interpreter.get_output_details()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        for index, x in zip(inside, inputs, strict=True):
            interpreter.set_tensor(index, x.numpy())
        interpreter.invoke()
        return [torch.from_numpy(interpreter.get_tensor(index)) for index in outside]

    return run
