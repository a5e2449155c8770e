"""ncnn's model.ncnn.param and model.ncnn.bin, converted by pnnx."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onebyone.errors import ModelError, OneByOneError
from onebyone.exporting.network import FLOAT16, FLOAT32, Network, refusal
from onebyone.exporting.program import silent
from onebyone.loading.programs import module_of

NUMBERS = (FLOAT32, FLOAT16)  # its quantizer is a program of its own that no package brings


def export_ncnn(network: Network, path: Path) -> None:
    """Write the network for one image at a time; float16 stores halves of weights.

    Raises ModelError for what pnnx or ncnn does not take.
    """
    with tempfile.TemporaryDirectory() as folder:
        stem = Path(folder, "model")
        try:
            with silent():
                import pnnx

                module = module_of(network.exported).model
                pnnx.export(module, f"{stem}.pt", network.inputs, fp16=network.dtype == FLOAT16)
        except OneByOneError:
            raise
        except Exception as error:
            raise refusal("ncnn", network, error) from error
        made = [Path(f"{stem}.ncnn.{kind}") for kind in ("param", "bin")]
        if not all(p.is_file() for p in made):
            raise ModelError("ncnn export failed: pnnx wrote no file; it does not take the network")
        for source, target in zip(made, (path, path.with_suffix(".bin")), strict=True):
            shutil.copyfile(source, target)


def open_ncnn(path: Path, threads: int) -> Any:
    """The file in ncnn, on the processor, computing in float32."""
    import ncnn

    with silent():
        net = ncnn.Net()
        net.opt.num_threads = threads
        for option in (
            "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage",
            "use_vulkan_compute",
        ):  # fmt: skip
            setattr(net.opt, option, False)
        failed = net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin")))
    if failed:
        raise ModelError(
            f"ncnn cannot read {path.name}: it has a layer that ncnn does not know, or is damaged"
        )

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with net.create_extractor() as extractor:
            for name, x in zip(net.input_names(), inputs, strict=True):
                extractor.input(name, ncnn.Mat(np.ascontiguousarray(x[0].numpy())))
            outputs = []
            for name in net.output_names():
                code, found = extractor.extract(name)
                if code:
                    raise ModelError(f"ncnn failed on {path.name} at the output {name}")
                outputs.append(torch.from_numpy(np.array(found))[None])
            return outputs

    return run
