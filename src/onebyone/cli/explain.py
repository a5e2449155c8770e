"""`onebyone explain`: the page that shows what 1×1 convolutions do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onebyone.cli import values
from onebyone.cli.failures import failures
from onebyone.cli.originals import original_of
from onebyone.cli.reading import Pictures, read_model
from onebyone.cli.showing import note, progress
from onebyone.cli.writing import Outputs

if TYPE_CHECKING:
    from torch import nn

    from onebyone.explaining.saved import Saved
    from onebyone.loading import Loaded
    from onebyone.preprocessing import Preprocess

MODEL, IMAGE, OUTPUT = "The network", "The photo", "The page"
PAGE = "explain.html"


def explain(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            show_default=False,
            help="torchvision:NAME, timm:NAME, package.module:function, FILE.pt2, FILE.onnx or a folder "
            "that onebyone wrote; by default a network that comes along.",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=IMAGE,
            show_default=False,
            help="Your own photo; by default one that comes along.",
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=MODEL,
            show_default=False,
            help="Show this layer; may be repeated. By default at most eight, spread over the depth.",
        ),
    ] = None,
    out: Annotated[
        str,
        typer.Option(
            "-o", "--out", metavar="FILE", rich_help_panel=OUTPUT, help="Where to write it."
        ),
    ] = PAGE,
    open_it: Annotated[
        bool, typer.Option("--open", rich_help_panel=OUTPUT, help="Open it in a browser.")
    ] = False,
    weights: Annotated[str | None, values.weights_option(MODEL)] = None,
    trust: Annotated[bool, values.trust_option(MODEL)] = False,
    input_size: Annotated[str | None, values.input_option(MODEL)] = None,
    size: Annotated[str | None, values.size_option(IMAGE, "the photo")] = None,
    mean: Annotated[str | None, values.mean_option(IMAGE)] = None,
    std: Annotated[str | None, values.std_option(IMAGE)] = None,
    figure: Annotated[
        str | None,
        typer.Option(
            metavar="NAME.svg",
            rich_help_panel=OUTPUT,
            show_default=False,
            help="Write a picture instead: one-pixel, bottleneck or before-after, as .svg or .png; "
            "with a slimmed folder as MODEL before-after is of that.",
        ),
    ] = None,
    latency: Annotated[
        bool,
        typer.Option(
            rich_help_panel=OUTPUT, help="Time the worked example of the cost bench here."
        ),
    ] = True,
) -> None:
    """Show what a 1×1 convolution does, as a page to explore.

    Six screens: one pixel, all pixels, its siblings, a real network on a real
    photo, what it saves, and a network before and after slimming. One file,
    which opens without a network connection.

    \b
    Examples:
      [bold]onebyone explain --open
      onebyone explain torchvision:resnet50 --image cat.jpg -o cat.html
      onebyone explain --figure one-pixel.svg[/bold]
    """  # fmt: skip
    if figure is not None:
        others = (image, layer, weights, input_size, size, mean, std, open_it, out != PAGE)
        _write_figure(figure, model, others)
        return
    pictures = Pictures.parse(size, mean, std)
    shape = values.lengths(input_size, "--input", (2, 3, 4))
    if model is None and any((weights, shape, size, mean, std)):
        raise typer.BadParameter("say which network these options are for", param_hint="MODEL")
    with failures("a smaller --size or --input") as outcome:
        outputs = Outputs.checked(
            out, inputs=(model, weights, None if image is None else str(image))
        )
        with progress() as tell:
            tell("load", 0)
            from onebyone.errors import ModelError
            from onebyone.explaining.explaining import explain as make

            loaded = None if model is None else read_model(model, weights, shape, trust)
            if loaded is not None and loaded.example.ndim != 4:
                raise ModelError(
                    f"{model} takes inputs of {'×'.join(map(str, loaded.example.shape[1:]))}: the page "
                    "shows networks of images (C×H×W); onebyone measure and diff take this one"
                )
            preprocess = _preprocess(loaded, pictures)
            tell("load", 1)
            tell("explain", 0)
            given, own = image, False
            if loaded is not None and image is None and not _takes_photos(loaded, preprocess):
                given, own = loaded.example, True
            made = make(
                None if loaded is None else loaded.model, given, layers=layer or None,
                preprocess=preprocess, name=model, latency=latency,
                saved=None if loaded is None else _saved(str(model), loaded, trust),
            )  # fmt: skip
        if own:
            note("the network's own example input is shown: give --image for a photo")
        note(*made.notes)
        outputs.write(lambda: made.html)
        outcome.written = Path(out)
    if outputs.on_stdout:
        return
    note(f"written to {out}" + ("" if open_it else ": open it in a browser"))
    if open_it:
        _open(out)


def _write_figure(path: str, model: str | None, others: tuple[object, ...]) -> None:
    """One of the classic pictures; of a slimmed folder's own plan, where one is given."""
    if any(others):
        raise typer.BadParameter(
            "it takes a picture's name and, for before-after, a slimmed folder: leave other options out",
            param_hint="--figure",
        )
    if model is not None and Path(path).stem != "before-after":
        raise typer.BadParameter(
            "before-after alone is of a network: leave MODEL out", param_hint="--figure"
        )
    with failures() as outcome:
        from onebyone.errors import PlanError
        from onebyone.explaining.figures import write_figure
        from onebyone.files import PLAN
        from onebyone.plan_files import read_plan

        Outputs.checked(path, inputs=(model,))
        if model is not None and not Path(model, PLAN).is_file():
            raise PlanError(
                f"{model} is no slimmed folder (it has no {PLAN}): give one that slim wrote"
            )
        plan = None if model is None else read_plan(Path(model, PLAN))
        outcome.written = write_figure(path, plan)
    note(f"written to {path}")


def _saved(model: str, loaded: Loaded, trust: bool) -> Saved | None:
    """Before and after of a folder that `slim` wrote; None for other networks, and where it is damaged.

    A damaged folder whose network has no 1×1 convolution either has nothing to show: ModelError.
    """
    from onebyone.errors import ModelError, OneByOneError
    from onebyone.explaining.layers import pointwise_layers
    from onebyone.explaining.saved import read_saved
    from onebyone.loading.slimmed import is_slimmed

    folder = Path(model)
    if not is_slimmed(folder):
        return None

    def original() -> nn.Module:
        plan, spec, weights = original_of(folder, None, None, trust, option=None)
        return read_model(spec, weights, tuple(plan.input_shape), trust).model

    try:
        return read_saved(folder, original, loaded.classes)
    except OneByOneError as error:
        if not pointwise_layers(loaded.model):
            raise ModelError(
                f"{model} has no 1×1 convolution to show, nor its before and after: {error}"
            ) from error
        note(f"the last screen shows the demo network: {error}")
        return None


def _preprocess(loaded: Loaded | None, pictures: Pictures) -> Preprocess | None:
    return None if loaded is None else pictures.preprocess(loaded)


def _takes_photos(loaded: Loaded, preprocess: Preprocess | None) -> bool:
    """Whether the built-in photo of a cat suits the network: it is known how it takes colors."""
    return preprocess is not None and preprocess.size[0] == 3


def _open(path: str) -> None:
    """Show the page; where there is no browser, say so, and that is all."""
    import webbrowser

    try:
        opened = webbrowser.open(Path(path).absolute().as_uri())
    except webbrowser.Error:
        opened = False
    if not opened:
        note(f"no browser can be started from here: open {path} yourself")
