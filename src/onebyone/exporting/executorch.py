"""ExecuTorch programs, their operators handed to XNNPACK as far as it takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map_only

from onebyone.errors import OneByOneError
from onebyone.exporting.network import FLOAT16, FLOAT32, INT8, Network, refusal
from onebyone.exporting.program import export_any_batch, silent
from onebyone.tree import deep_copy

NUMBERS = (FLOAT32, FLOAT16, INT8)
MOST_BATCH = 64  # memory for a whole batch is planned when the file is written


def export_executorch(network: Network, path: Path) -> None:
    """Write the network; float16 computes in halves between float32 inputs and outputs.

    int8 is torchao's PT2E quantization with XNNPACK's own quantizer, a scale a channel. Batches of
    up to 64 where the program takes any. Raises ModelError for what ExecuTorch does not take.
    """
    try:
        with silent():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
                XnnpackPartitioner,
            )
            from executorch.exir import to_edge_transform_and_lower

            edge = to_edge_transform_and_lower(
                _program(network), partitioner=[XnnpackPartitioner()],
                constant_methods={"onebyone": network.about_text},
            )  # fmt: skip
            buffer = edge.to_executorch().buffer
    except (OSError, OneByOneError):
        raise
    except Exception as error:
        raise refusal("ExecuTorch", network, error) from error
    path.write_bytes(buffer)


def _program(network: Network) -> ExportedProgram:
    module = network.exported.module()
    if network.dtype == INT8:
        module = _quantized(module, network)
    elif network.dtype == FLOAT16:
        module = _Half(module)
    if network.any_batch:
        return export_any_batch(module, network.inputs, MOST_BATCH)
    return torch.export.export(module, network.inputs)


class _Half(nn.Module):
    """Computes in float16 between float32 inputs and outputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = deep_copy(module).half()  # the weights are the user's own

    def forward(self, *inputs: Tensor) -> Any:
        outputs = self.module(*(x.half() if x.is_floating_point() else x for x in inputs))
        return tree_map_only(Tensor, lambda y: y.float(), outputs)


def _quantized(module: nn.Module, network: Network) -> nn.Module:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    assert network.calibration is not None
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(module, quantizer)  # type: ignore[arg-type]
    with torch.no_grad():
        for part in network.calibration.split(2):
            if len(part) == 2 or not network.any_batch:
                prepared(part)
    return convert_pt2e(prepared)


def open_executorch(path: Path, threads: int) -> Any:
    """The file in ExecuTorch's runtime; its pool of threads is one for the whole process."""
    with silent():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        portable_lib._unsafe_reset_threadpool(threads)
        program = Runtime.get().load_program(str(path))
        method = program.load_method("forward")

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        return [y for y in method.execute(list(inputs)) if isinstance(y, Tensor)]

    run.__dict__["program"] = program  # its memory is the method's too
    return run


def about_executorch(path: Path) -> str | None:
    """What onebyone embedded in the file, as JSON; None where it did not write it."""
    with silent():
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(str(path))
        if "onebyone" not in program.method_names:
            return None
        return str(program.load_method("onebyone").execute([])[0])
