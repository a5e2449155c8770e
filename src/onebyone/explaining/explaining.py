"""explain: one page that shows what 1×1 convolutions do, on a network and a photo of the reader's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from onebyone.displaying import Displayed
from onebyone.errors import DataError
from onebyone.explaining.bench import measured_start
from onebyone.explaining.defaults import default_network, slimmed_demo
from onebyone.explaining.layers import Network, NothingToShowError, Shown, show_layers
from onebyone.explaining.page import Opening, page
from onebyone.explaining.photos import (
    ASTRONAUT,
    CAT,
    Photo,
    built_in,
    cropped,
    of_input,
    open_photo,
    shown,
)  # fmt: skip
from onebyone.explaining.report import versus
from onebyone.explaining.saved import Saved
from onebyone.explaining.versus import versus_json
from onebyone.files import write_text
from onebyone.preprocessing import Preprocess
from onebyone.report.cards import headline
from onebyone.tree import check_weights

if TYPE_CHECKING:
    from PIL.Image import Image

HEADLINE = "See what a 1×1 convolution does"


@dataclass(frozen=True)
class Explanation(Displayed):
    """A page, whole and self-contained, and what there is to say about how it was made."""

    html: str
    notes: tuple[str, ...] = ()

    def save(self, path: str | Path) -> Path:
        """Write the page; it appears whole or not at all. OutputError where it cannot be written."""
        write_text(path, self.html)
        return Path(path)


def explain(
    model: nn.Module | None = None,
    image: object = None,
    path: str | Path | None = None,
    *,
    layers: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    name: str | None = None,
    latency: bool = True,
    saved: Saved | None = None,
) -> Explanation:
    """The interactive page on 1×1 convolutions; written to `path` if that is given.

    model: its own 1×1 convolutions are shown on the image, at most eight spread over its depth, or
    those named in `layers`; it is not changed. Without a model it is EfficientNet-Lite0, trained on
    ImageNet, where its packages are installed, else the built-in network after slimming. image: a file,
    a PIL picture or a tensor (C, H, W) or (N, C, H, W), of which the first image is shown, as the
    network takes it; files and pictures need `preprocess` where there is a model. By default a photo
    that comes along. name: what the network is called. latency: time the worked example of the cost
    bench here, about a second. saved: what the last screen shows, a slimmed network beside its original;
    by default the built-in one.

    Raises ModelError for a model without 1×1 convolutions (but one that is `saved`, whose page goes
    without them) and for unknown layers, DataError for images
    that cannot be read or do not suit the model, OutputError where the page cannot be written.

    >>> page = explain(latency=False)
    >>> page.html.startswith("<!doctype html>")
    True
    """
    if model is not None:
        check_weights(model=model)
    model, batch, photo, name = _chosen(model, image, preprocess, name)
    found, left_out = _layers(model, batch, layers, saved)
    network = Network(name, photo, found) if found else None
    notes = [*photo.notes, *left_out]
    lesson = _lesson(image)
    notes = [*notes, *lesson.notes]
    last = saved or slimmed_demo()
    insight, said = saved.look(model, batch) if saved else (slimmed_demo().insight, ())
    notes += said
    whose = "Before and after" if saved else "The demo network, slimmed"
    title = f"{whose}: {headline(last.verification)}"
    html = page(
        Opening(1, "explain", name, HEADLINE, f"{name}: 1×1 convolutions, by onebyone"),
        {
            "network": None if network is None else network.to_json(),
            "versus": versus_json(last.verification, last.plan, insight),
        },
        photo=lesson,
        timed=measured_start() if latency else None,
        notes=notes,
        versus=versus(last.verification, last.plan, insight, title),
    )  # fmt: skip
    made = Explanation(html, tuple(notes))
    if path is not None:
        made.save(path)
    return made


def _layers(
    model: nn.Module, batch: Tensor, names: Sequence[str] | None, saved: Saved | None
) -> tuple[tuple[Shown, ...], tuple[str, ...]]:
    """What to show and notes; of a slimmed network nothing, if it must be: it has a screen of its own."""
    try:
        return show_layers(model, batch, names)
    except NothingToShowError as error:
        if saved is None:
            raise
        return (), (f"screen 4 has no layers of the network: {error.why}",)


def _chosen(
    model: nn.Module | None, image: object, preprocess: Preprocess | None, name: str | None
) -> tuple[nn.Module, Tensor, Photo, str]:
    """The network, one input of it, the same as a picture, and what it is called."""
    if model is None:
        shipped = default_network()
        model, preprocess = shipped.model, shipped.preprocess
        name = name or shipped.name
        image = image if shipped.example is None else shipped.example
    batch, photo = _input(image, preprocess)
    return model, batch, photo, name or type(model).__name__


def _input(image: object, preprocess: Preprocess | None) -> tuple[Tensor, Photo]:
    """One input of the network (1, C, H, W), and the same as a picture."""
    if isinstance(image, Tensor):
        batch = image if image.ndim == 4 else image[None]
        if batch.ndim != 4 or not batch.is_floating_point() or not batch.numel():
            raise DataError(
                f"the image is a tensor of shape {tuple(image.shape)} and type {image.dtype}: one of "
                "floating point, (C, H, W) or (1, C, H, W), normalized as the network takes it, is "
                "expected"
            )
        photo = of_input(batch[0].detach().cpu())
        if len(batch) > 1:
            photo = replace(photo, notes=(f"the first of {len(batch)} images is shown",))
        return batch[:1], photo
    picture, caption = _picture(image, CAT)
    if preprocess is None:
        raise DataError(
            "how the network takes pictures is not known: give preprocess= (on the command line "
            "--size, --mean and --std), or the image as a tensor that suits the network"
        )
    return preprocess.apply(picture)[None], cropped(picture, preprocess, caption)


def _lesson(image: object) -> Photo:
    """The photo in colors on which screen 4 has its first two lessons."""
    if isinstance(image, Tensor):
        return shown(*built_in(ASTRONAUT))
    return shown(*_picture(image, ASTRONAUT))


def _picture(image: object, default: tuple[str, str]) -> tuple[Image, str]:
    """A picture and its credit, the default where none is given."""
    from PIL.Image import Image as Picture

    if image is None:
        return built_in(default)
    if isinstance(image, Picture):
        return image, ""
    if isinstance(image, str | Path):
        return open_photo(image), Path(image).name
    raise DataError(
        f"the image is {type(image).__name__}: a file, a PIL picture or a tensor is expected"
    )
