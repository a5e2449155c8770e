"""torchvision's and timm's models by name, with their own preprocessing and classes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.errors import DataError, MissingExtraError, ModelError, line_of
from onebyone.loading.weights import mismatches, unprefixed
from onebyone.preprocessing import Preprocess


@dataclass(frozen=True)
class Zoo:
    """A named model that is not built yet.

    `build(None)` gives random weights and `build(n)` so many classes; `pretrained()` fetches the
    weights that its makers trained.
    """

    build: Callable[[int | None], nn.Module]
    pretrained: Callable[[], nn.Module]
    size: tuple[int, ...] | None
    preprocess: Preprocess | None
    classes: tuple[str, ...] | None


def torchvision_model(name: str) -> Zoo:
    """A model of `torchvision.models`; raises `ModelError` with near names if there is none."""
    models = _import("torchvision").models
    names = [n for n in models.list_models() if not n.startswith("quantized_")]
    if name not in names:
        raise _unknown("torchvision", name, names)
    options = _torchvision_options(models, name)
    best = getattr(models.get_model_weights(name), "DEFAULT", None)
    preprocess = None if best is None else _torchvision_preprocess(best.transforms())

    def build(classes: int | None) -> nn.Module:
        chosen = {} if classes is None else {"num_classes": classes}
        return models.get_model(name, weights=None, **options, **chosen)

    return Zoo(
        build,
        lambda: models.get_model(name, weights="DEFAULT"),
        None if preprocess is None else preprocess.size,
        preprocess,
        None if best is None else tuple(best.meta.get("categories", ())) or None,
    )


def timm_model(name: str) -> Zoo:
    """A model of timm; raises `ModelError` with near names if there is none."""
    timm = _import("timm")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models() + timm.list_pretrained())
    with torch.device("meta"):
        config = timm.data.resolve_data_config({}, model=timm.create_model(name))

    def build(classes: int | None) -> nn.Module:
        chosen = {} if classes is None else {"num_classes": classes}
        return timm.create_model(name, pretrained=False, **chosen)

    return Zoo(
        build,
        lambda: timm.create_model(name, pretrained=True),
        tuple(config["input_size"]),
        _timm_preprocess(config),
        None,
    )


def may_have(package: str, name: str) -> bool:
    """Whether it has a model of that name, or is not installed so that one cannot know."""
    try:
        found = _import(package)
    except MissingExtraError:
        return True
    return found.is_model(name) if package == "timm" else name in found.models.list_models()


def fetch(zoo: Zoo, spec: str) -> nn.Module:
    """The model with its makers' weights; raises `ModelError` if they cannot be fetched."""
    try:
        with _no_pickle():
            return zoo.pretrained()
    except Exception as error:
        raise ModelError(
            f"the pretrained weights of {spec} cannot be fetched ({type(error).__name__}: "
            f"{line_of(error)}). Give them as a file (--weights FILE), or take random ones "
            "(--weights random)"
        ) from error


def class_count(model: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a fine-tuned state dict, where it alone differs from the model's.

    That is when all misshapen tensors differ in their first axis only, with one length in common.
    """
    own = model.state_dict()
    state = unprefixed(state, own)
    wrong = mismatches(own, state)
    if any(state[k].ndim < 1 or state[k].shape[1:] != own[k].shape[1:] for k in wrong):
        return None
    counts = {state[k].shape[0] for k in wrong}
    return counts.pop() if len(counts) == 1 else None


def _import(package: str) -> ModuleType:
    try:
        if package == "timm":
            import timm
            import timm.data

            return timm
        import torchvision

        return torchvision
    except ImportError as error:
        raise MissingExtraError(
            f"{package} is needed for {package}: models and cannot be imported ({error}): "
            f'pip install "onebyone[{package}]"'
        ) from error
    except RuntimeError as error:
        raise MissingExtraError(mismatched(package, error)) from error


def mismatched(package: str, error: Exception) -> str:
    """What to tell when a compiled torchvision sits beside a torch that it was not built for."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        beside = version("torchvision")
    except PackageNotFoundError:
        beside = "unknown"
    return (
        f"{package} cannot be imported: torchvision {beside} was not built for the installed torch "
        f"{torch.__version__} ({line_of(error)}). Install a matching pair, from one index: "
        "pip install --force-reinstall torch torchvision"
    )


def _unknown(zoo: str, name: str, names: list[str]) -> ModelError:
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    hint = f"the nearest are {', '.join(near)}" if near else f"see {zoo}'s list of models"
    return ModelError(f"{zoo} has no model {name!r}: {hint}")


def _torchvision_options(models: ModuleType, name: str) -> dict[str, Any]:
    import inspect

    options: dict[str, Any] = {}
    builder = models.get_model_builder(name)
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        # As torchvision itself builds them for its weights, whose inputs they rescale.
        options |= {"transform_input": True, "init_weights": True}
    best = getattr(models.get_model_weights(name), "DEFAULT", None)
    if name.startswith("vit_") and best is not None:
        # Position embeddings are made for one size: that of the weights whose preprocessing is known.
        options["image_size"] = best.meta["min_size"][0]
    return options


def _torchvision_preprocess(preset: Any) -> Preprocess | None:
    """A classification preset as a Preprocess; None for presets of other kinds."""
    if not hasattr(preset, "crop_size") or not hasattr(preset, "resize_size"):
        return None
    crop, resize = list(preset.crop_size), list(preset.resize_size)
    if len(preset.mean) != 3 or type(preset).__name__ != "ImageClassification":
        return None
    height, width = crop if len(crop) == 2 else (crop[0], crop[0])
    return Preprocess(
        (3, height, width),
        tuple(preset.mean),
        tuple(preset.std),
        resize[0] if len(resize) == 1 else (resize[0], resize[1]),
        preset.interpolation.value,
    )


def _timm_preprocess(config: Mapping[str, Any]) -> Preprocess | None:
    channels, height, width = config["input_size"]
    scaled = tuple(int(n / config["crop_pct"]) for n in (height, width))
    squash = config.get("crop_mode") == "squash" or height != width
    try:
        return Preprocess(
            (channels, height, width),
            tuple(config["mean"]),
            tuple(config["std"]),
            (scaled[0], scaled[1]) if squash else scaled[0],
            config["interpolation"] if config["interpolation"] != "random" else "bilinear",
        )
    except DataError:
        return None


@contextmanager
def _no_pickle() -> Iterator[None]:
    """Whatever `torch.load` runs inside reads tensors only, also where its caller asks for more."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
