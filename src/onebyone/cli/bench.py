"""`onebyone bench`: one network in every runtime that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onebyone.cli import values
from onebyone.cli.failures import failures
from onebyone.cli.showing import note, progress, show
from onebyone.cli.writing import Outputs


def bench(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="torchvision:NAME, timm:NAME, package.module:function, FILE.pt2, FILE.onnx, a slimmed "
            "folder, or demo. Times do not depend on weights: none are fetched.",
        ),
    ],
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="eager, channels-last, compile, onnx, openvino, executorch, litert, ncnn: one or "
            "more with commas between, or all that are installed.",
        ),
    ] = "all",
    threads: Annotated[int, values.threads_option("CPU threads.")] = 1,
    batch: Annotated[int, typer.Option(metavar="N", min=1, max=4096, help="Images at once.")] = 1,
    input_size: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="CxHxW",
            help="The input size, where it is not known.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Weights to load.", show_default=False)
    ] = None,
    trust: Annotated[bool, values.trust_option()] = False,
    as_json: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write JSON; - is stdout.")
    ] = None,
) -> None:
    """Time a network in every runtime that is installed, in turn, on this machine.

    \b
    Examples:
      [bold]onebyone bench torchvision:resnet18
      onebyone bench out/ --runtime eager,onnx,openvino --threads 2
      onebyone bench model.onnx --json -[/bold]
    """
    size = values.lengths(input_size, "--input", (1, 2, 3, 4))
    with failures("a smaller --input or a smaller --batch"):
        wanted = Outputs.checked(as_json, inputs=(model, weights))
        with progress() as tell:
            tell("load", 0)
            from onebyone.benching import bench as take
            from onebyone.benching import chosen
            from onebyone.files import json_text
            from onebyone.report.bench import bench_json, bench_table

            names = chosen(runtime)
            network, inputs, file = _read(model, weights, size, trust)
            tell("load", 1)
            found = take(
                network, inputs, runtimes=names, threads=threads, batch=batch, file=file,
                progress=lambda done: tell("bench", done),
            )  # fmt: skip
        cost = _cost(network, inputs)
        wanted.write(lambda: json_text(bench_json(model, found, cost)))
        if not wanted.on_stdout:
            show(bench_table(model, found, cost))


def _read(
    spec: str, weights: str | None, size: tuple[int, ...] | None, trust: bool
) -> tuple[Any, tuple[Any, ...], Path | None]:
    """The network (None where only other runtimes can read it), its inputs, and an ONNX file."""
    from onebyone.errors import ModelError, OneByOneError
    from onebyone.exporting.network import converted_note
    from onebyone.loading import load

    file = Path(spec) if spec.lower().endswith(".onnx") and Path(spec).is_file() else None
    if weights is None and spec.partition(":")[0] in ("torchvision", "timm"):
        weights = "random"
    try:
        loaded = load(spec, weights=weights, input_size=size, trust=trust)
    except OneByOneError as error:
        if file is None:
            raise
        note(f"only in onnxruntime and OpenVINO: {error}")
        return None, _inputs_of(file, size), file
    note(*loaded.notes)
    if not loaded.of_tensors:
        raise ModelError(f"{spec} takes more than tensors: only networks of tensors are timed here")
    note(*converted_note(loaded.model))
    return loaded.model, loaded.call, file


def _inputs_of(file: Path, size: tuple[int, ...] | None) -> tuple[Any, ...]:
    """Drawn inputs of an ONNX file that PyTorch does not read."""
    from onebyone.exporting.onnx import inputs_of_onnx

    return inputs_of_onnx(file, size)


def _cost(network: Any, inputs: tuple[Any, ...]) -> Any:
    if network is None:
        return None
    from onebyone.measurement.counting import count
    from onebyone.report.exports import Cost

    params = sum(p.numel() for p in network.parameters())
    return Cost(count(network, *inputs).macs, params)
