"""`onebyone demo`: the main job on the built-in network and images."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from onebyone.cli.failures import failures
from onebyone.cli.showing import progress, show_slimmed


class Network(StrEnum):
    """The built-in networks."""

    vgg = "vgg"
    resnet = "resnet"


def demo(
    macs: Annotated[
        float, typer.Option(metavar="FRACTION", help="Fraction of the MACs to keep.")
    ] = 0.5,
    network: Annotated[
        Network, typer.Option(help="Which network: a plain one, or one with shortcuts.")
    ] = Network.vgg,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="Write the slimmed network there."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace FOLDER even if onebyone did not write it.")
    ] = False,
    latency: Annotated[bool, typer.Option(help="Time both networks on this machine.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Slim a small trained network that comes along, offline.

    Takes 512 unlabeled images of clothes to slim a CNN that was trained on
    such images (Fashion-MNIST), and 5,000 others, with labels, to measure
    what that cost in accuracy.

    \b
    Examples:
      [bold]onebyone demo
      onebyone demo --macs 0.2 --network resnet -o out/[/bold]
    """
    with failures() as outcome:
        with progress() as tell:
            tell("load", 0)
            from onebyone.data import open_images
            from onebyone.loading import load
            from onebyone.plans import Budget
            from onebyone.saving import check_folder
            from onebyone.slimming import slim

            Budget(macs)
            if out is not None:
                check_folder(out, force=force)
            loaded = load(f"demo:{network.value}")
            slimmed = slim(
                loaded.model, open_images("demo"), macs=macs, held_out=open_images("demo:test"),
                preprocess=loaded.preprocess, classes=loaded.classes, source=loaded.source,
                latency=latency, progress=tell,
            )  # fmt: skip
            if out is not None:
                tell("save", 0)
                outcome.written = slimmed.save(out, force=force)
        show_slimmed(slimmed, out, as_json)
