"""`onebyone measure`: what a network costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebyone.cli import values
from onebyone.cli.failures import failures, stop
from onebyone.cli.reading import with_inputs
from onebyone.cli.showing import note, progress, show
from onebyone.cli.writing import Outputs

if TYPE_CHECKING:
    from onebyone.loading import Loaded

DTYPES = ("float32", "bfloat16", "float16", "float64")


def measure(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="torchvision:NAME, timm:NAME, package.module:factory, FILE.pt2, FILE.onnx, a slimmed "
            "folder, or demo. Costs do not depend on weights: none are fetched.",
        ),
    ],
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="SIZE",
            show_default=False,
            help="Size of the input, such as 3x224x224; again for each further input.",
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Weights to load.", show_default=False)
    ] = None,
    trust: Annotated[bool, values.trust_option()] = False,
    latency: Annotated[
        bool, typer.Option("--latency", help="Time it, whole and layer by layer, on this machine.")
    ] = False,
    training: Annotated[
        bool, typer.Option("--training", help="Time a training step too (with --latency).")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Time what torch.compile makes of it too.")
    ] = False,
    threads: Annotated[int, values.threads_option("CPU threads.")] = 1,
    batch: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=2**31 - 1, help="Images at once, for memory and latency."
        ),
    ] = 1,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", help="float32, bfloat16, float16 or float64.", show_default=False
        ),
    ] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Weights and images in that layout.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu or cuda.", show_default=False)
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure the limits of this machine anew.")
    ] = False,
    sort: Annotated[
        str, typer.Option(metavar="KEY", help="order, macs, params, bytes or time.")
    ] = "order",
    top: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Show so many layers.", show_default=False),
    ] = None,
    tree: Annotated[bool, typer.Option("--tree", help="Show modules with their layers.")] = False,
    depth: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Sum up what lies deeper.", show_default=False),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show layers without MACs too.")] = False,
    operators: Annotated[
        bool, typer.Option("--operators", help="List every operator that ran.")
    ] = False,
    peaks: Annotated[
        bool,
        typer.Option("--peaks", help="List the tensors that are alive at the peaks of memory."),
    ] = False,
    as_json: Annotated[str | None, values.file_option("JSON", name="--json")] = None,
    as_csv: Annotated[
        str | None, values.file_option("CSV, timm's columns in it", name="--csv")
    ] = None,
    as_html: Annotated[str | None, values.file_option("a page", name="--html")] = None,
) -> None:
    """Count what a network costs, exactly: MACs, parameters, memory; time it with --latency.

    \b
    Examples:
      [bold]onebyone measure torchvision:resnet50
      onebyone measure my_code:make_net --input 3x128x128 --latency --threads 4
      onebyone measure demo --tree --depth 1 --csv demo.csv[/bold]
    """
    sizes = [values.lengths(size, "--input", (1, 2, 3, 4)) for size in input_ or []]
    _check_usage(latency, training, compiled, device, sort, top, tree, dtype, again)
    with failures("a smaller --input or a smaller --batch"):
        from onebyone.files import json_text
        from onebyone.measurement.measuring import measure as take
        from onebyone.report.measurement import (
            measurement_table,
            operators_table,
            peaks_table,
        )
        from onebyone.report.measurement_files import measurement_csv, measurement_json
        from onebyone.report.measurement_page import measurement_html
        from onebyone.report.measurement_rows import View

        view = View(sort, top, tree, depth, every)
        wanted = Outputs.checked(as_json, as_csv, as_html, inputs=(model, weights))
        with progress() as tell:
            tell("load", 0)
            loaded = _read(model, weights, sizes, trust)
            tell("load", 1)
            tell("measure", 0)
            found = take(
                loaded.model, loaded.inputs, latency=latency, training=training, compiled=compiled,
                threads=threads, batch=batch if batch > 1 else None, dtype=_dtype(dtype),
                channels_last=channels_last, device=device, again=again, partial=True,
            )  # fmt: skip
            tell("measure", 1)
        wanted.write(
            lambda: json_text(measurement_json(model, found, operations=operators)),
            lambda: measurement_csv(model, found),
            lambda: measurement_html(model, found),
        )
        if not wanted.on_stdout:
            show(measurement_table(model, found, view))
            if operators:
                show(operators_table(found))
            if peaks:
                show(peaks_table(found))
        if found.failure is not None:
            stop(f"the counts are partial: {found.failure}")


def _check_usage(
    latency: bool, training: bool, compiled: bool, device: str | None, sort: str, top: int | None,
    tree: bool, dtype: str | None, again: bool,
) -> None:  # fmt: skip
    """Refuse options that would say nothing."""
    timed = {
        "--training": training, "--compile": compiled, "--device": device is not None,
        "--sort time": sort == "time", "--again": again,
    }  # fmt: skip
    for option, given in timed.items():
        if given and not latency:
            raise typer.BadParameter("it needs --latency", param_hint=option)
    if tree and (sort != "order" or top is not None):
        left_out = "--sort" if sort != "order" else "--top"
        raise typer.BadParameter(
            f"it shows every layer in order, so leave {left_out} out", param_hint="--tree"
        )
    if dtype is not None and dtype not in DTYPES:
        raise typer.BadParameter(f"{dtype!r} is none of {', '.join(DTYPES)}", param_hint="--dtype")


def _read(
    spec: str, weights: str | None, sizes: list[tuple[int, ...] | None], trust: bool
) -> Loaded:
    """The network with an input of each size that was given; weights are drawn where none are."""
    from onebyone.loading import load

    if weights is None and spec.partition(":")[0] in ("torchvision", "timm"):
        weights = "random"
    loaded = load(spec, weights=weights, input_size=sizes[0] if sizes else None, trust=trust)
    if sizes:
        loaded = with_inputs(loaded, [size for size in sizes if size])
    note(*loaded.notes)
    return loaded


def _dtype(name: str | None) -> Any:
    if name is None:
        return None
    import torch

    return getattr(torch, name)
