"""load: what a model spec names → a Loaded."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.data import DEMO, DEMO_PREPROCESS
from onebyone.errors import ModelError, is_whole, seeded
from onebyone.files import PLAN
from onebyone.loading import zoo
from onebyone.loading.archive import open_program
from onebyone.loading.factories import call_factory, find_again, find_factory, is_factory
from onebyone.loading.loaded import KINDS, Loaded, example_of, inputs_of
from onebyone.loading.onnx_graphs import constants_note, read_onnx
from onebyone.loading.programs import is_program, made_for, module_of, takes_any_batch
from onebyone.loading.slimmed import is_slimmed, load_folder
from onebyone.loading.weights import SUFFIXES, fit_weights, read_pickle, read_weights
from onebyone.running import call, suited
from onebyone.tree import kept, random_state, without_shape
from onebyone.windows import shape_text

RANDOM = "random"


def load(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    input_size: tuple[int, ...] | None = None,
    trust: bool = False,
    seed: int = 0,
    architecture: nn.Module | None = None,
) -> Loaded:
    """The model that `spec` names, in eval mode, with an example input.

    It unpacks as `model, example`.

    `spec` is one of
      - `torchvision:NAME` or `timm:NAME`: with the weights that its makers trained (fetched, or
        from the local cache), with those in the file `weights`, or with `weights="random"`, drawn
        by `seed`;
      - `package.module:factory`: a function without arguments that returns a module, or a module
        and an example input, or a module and the tuple of what its forward takes (tensors, lists or
        dicts of them); importable from the working directory; `weights` may be a file;
      - `FILE.pt2`, an exported program; `FILE.onnx`, through onnx2torch;
      - a folder that `Slimmed.save` wrote: the source that its plan names is built again, or
        `architecture`, the original network, is taken for it, and else the exported program in it;
      - `demo` (or `demo:vgg`) and `demo:resnet`: two small trained networks, built in.

    `input_size` is C×H×W of the example input, needed where the model does not say it; a file, a
    folder or a built-in network that says it may take another one, and is tried with it. Files are
    read without executing anything in them unless `trust`. Raises `ModelError`, or
    `MissingExtraError` where an optional package is missing.
    """
    text, seed = str(spec), seeded(seed, ModelError)
    if weights is not None:
        weights = RANDOM if str(weights) == RANDOM else str(Path(weights).absolute())
    input_size = _as_size(input_size)
    size = None if input_size is None else list(input_size)
    given = {"spec": text, "weights": weights, "input_size": size, "seed": seed}
    if not text.strip():
        raise ModelError(f"no model is named: give {KINDS}")
    path = Path(text)
    kind, _, name = text.partition(":")
    if path.is_dir():
        return _of_size(_load_folder(path, weights, trust, architecture), input_size, text)
    if path.suffix.lower() in (".pt2", ".onnx", *SUFFIXES):
        return _of_size(_load_file(path, weights, input_size, trust, given), input_size, text)
    if kind in ("torchvision", "timm"):
        return _load_named(kind, name, weights, input_size, trust, given)
    if kind == "demo":
        return _of_size(_load_demo(name or "vgg", weights, trust, given), input_size, text)
    if is_factory(text):
        return _load_factory(text, weights, input_size, trust, given)
    raise ModelError(f"{text!r} names no model{_hint(text)}: give {KINDS}")


def _as_size(given: Any) -> tuple[int, ...] | None:
    """Lengths as a tuple; ModelError for anything else."""
    if given is None:
        return None
    lengths = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if not lengths or not all(is_whole(n) and n > 0 for n in lengths):
        raise ModelError(
            f"input_size={given!r} does not fit: give the lengths C×H×W, such as (3, 224, 224)"
        )
    return tuple(map(int, lengths))


def _of_size(loaded: Loaded, size: tuple[int, ...] | None, spec: str) -> Loaded:
    """With an example of the size that is given, where the network takes it; ModelError where not."""
    own = loaded.example
    if size is None or size == loaded.input_size:
        return loaded
    if loaded.several:
        raise ModelError(
            f"{spec} takes several inputs, and one size was given: leave it out, and the sizes that it "
            "was made with are taken"
        )
    drawn = example_of(size, loaded.fixed_batch or 1).to(own.dtype)
    if is_program(loaded.model) and not made_for(loaded.model, size):
        raise ModelError(
            f"{spec} is a program for inputs of {shape_text(own.shape[1:])}, not of {shape_text(size)}: "
            "export the network with that size, or with free sizes"
        )
    with torch.no_grad(), random_state(0), kept(loaded.model):
        try:
            call(loaded.model, suited(loaded.model, drawn))
        except ModelError as error:
            raise ModelError(
                f"{spec} was made with inputs of {shape_text(own.shape[1:])}, and does not take "
                f"{shape_text(size)}: {error}"
            ) from error
    fitting = loaded.preprocess is not None and loaded.preprocess.size == size
    preprocess = loaded.preprocess if fitting else None
    return replace(loaded, inputs=(drawn,), preprocess=preprocess)


def _hint(text: str) -> str:
    if os.sep in text or Path(text).suffix in (".py", ".pth"):
        return " (there is no such folder)" if not Path(text).exists() else ""
    if Path(text).is_file():
        return " (that file holds no network)"
    near = difflib.get_close_matches(text, ["demo"])
    near = near or [f"{z}:{text}" for z in ("torchvision", "timm") if zoo.may_have(z, text)]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _load_folder(
    path: Path, weights: str | None, trust: bool, architecture: nn.Module | None
) -> Loaded:
    if not (path / PLAN).is_file():
        raise ModelError(
            f"the folder {path} was not written by onebyone: it has no {PLAN}. Give {KINDS}"
        )
    if weights == RANDOM:
        raise ModelError(f"random weights are for torchvision: and timm: models, not for {path}")

    def build(source: Mapping[str, Any], shape: tuple[int, ...] | None) -> nn.Module:
        return _rebuilt(source, shape, trust)

    return load_folder(path, build, weights=weights, trust=trust, architecture=architecture)


def _rebuilt(source: Mapping[str, Any], shape: tuple[int, ...] | None, trust: bool) -> nn.Module:
    """The architecture that a slimmed folder's plan names; its weights will be replaced."""
    spec = str(source.get("spec"))
    kind, _, name = spec.partition(":")
    if kind in ("torchvision", "timm"):
        entry = zoo.torchvision_model(name) if kind == "torchvision" else zoo.timm_model(name)
        return _seeded(entry, source.get("classes"), 0)
    if kind == "demo":
        return load(spec, weights=RANDOM).model
    if not trust and is_factory(spec):
        raise ModelError(
            f"its plan names {spec}, and calling that runs code. If you trust the folder, give "
            "--trust (trust=True) to build the network by it"
        )
    if is_slimmed(Path(spec)):
        raise ModelError(f"its plan names the slimmed folder {spec} without the plan in that")
    if is_factory(spec):
        find_again(source)
    return load(spec, input_size=shape, trust=trust).model


def _load_file(
    path: Path,
    weights: str | None,
    input_size: tuple[int, ...] | None,
    trust: bool,
    given: dict[str, Any],
) -> Loaded:
    if not path.is_file():
        raise ModelError(f"the model file {path} does not exist")
    given |= {"spec": str(path.absolute())}
    fixed: int | None = None
    notes: tuple[str, ...] = ()
    if path.suffix.lower() == ".pt2":
        program = module_of(open_program(path, trust=trust))
        model, inputs, fixed = program.model, program.inputs, program.fixed_batch
        notes = program.notes
    elif path.suffix.lower() == ".onnx":
        model, inputs = read_onnx(path, input_size)
        fixed = None if takes_any_batch(model, inputs) else len(inputs[0])
        notes = constants_note(model)
    else:
        model, inputs = _pickled_module(path, trust), (_sized(input_size, str(path)),)
    if fixed is not None:
        notes = (*notes, f"{path} takes batches of {fixed} only: export it with a free batch size")
    if weights is not None:
        _fill(model, weights, trust, str(path))
    return Loaded(model.eval(), inputs, None, None, given, fixed, notes)


def _pickled_module(path: Path, trust: bool) -> nn.Module:
    """A whole module in a PyTorch file; only where it is trusted."""
    loaded = read_pickle(path, trust=trust) if path.suffix.lower() != ".safetensors" else None
    if isinstance(loaded, nn.Module):
        return loaded
    raise ModelError(
        f"{path} holds weights, not the network that they belong to: give the network "
        f"(package.module:factory, torchvision:NAME or timm:NAME) with --weights {path}"
    )


def _load_named(
    kind: str,
    name: str,
    weights: str | None,
    input_size: tuple[int, ...] | None,
    trust: bool,
    given: dict[str, Any],
) -> Loaded:
    entry = zoo.torchvision_model(name) if kind == "torchvision" else zoo.timm_model(name)
    classes = entry.classes
    fetched = weights is None
    model = zoo.fetch(entry, given["spec"]) if fetched else _seeded(entry, None, given["seed"])
    if weights not in (None, RANDOM):
        state = read_weights(weights, trust=trust)  # type: ignore[arg-type]
        count = zoo.class_count(model, state)
        if count is not None:
            model, classes = _seeded(entry, count, given["seed"]), None
            given |= {"classes": count}
        fit_weights(model, state, weights)  # type: ignore[arg-type]
    size = input_size or entry.size
    preprocess = entry.preprocess
    if preprocess is not None and size != preprocess.size:
        preprocess = None
    return Loaded(model.eval(), (_sized(size, given["spec"]),), preprocess, classes, given)


def _seeded(entry: zoo.Zoo, classes: int | None, seed: int) -> nn.Module:
    """Random weights by `seed`, the caller's random state given back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return entry.build(classes)


def _load_demo(name: str, weights: str | None, trust: bool, given: dict[str, Any]) -> Loaded:
    from onebyone.demo.networks import CLASSES, NETWORKS

    if name not in NETWORKS:
        raise ModelError(f"there is no demo:{name}: demo:vgg and demo:resnet are built in")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(given["seed"])
        model = NETWORKS[name]()
    if weights != RANDOM:
        _fill(model, weights or str(DEMO / f"{name}.safetensors"), trust, given["spec"])
    return Loaded(model.eval(), (_demo_example(),), DEMO_PREPROCESS, CLASSES, given)


def _demo_example() -> Tensor:
    return example_of(DEMO_PREPROCESS.size)


def _load_factory(
    spec: str,
    weights: str | None,
    input_size: tuple[int, ...] | None,
    trust: bool,
    given: dict[str, Any],
) -> Loaded:
    module, factory = find_factory(spec)
    model, inputs = call_factory(factory, spec)
    if weights == RANDOM:
        raise ModelError(
            f"random weights are for torchvision:, timm: and demo: models; {spec} makes its own"
        )
    if weights is not None:
        _fill(model, weights, trust, spec)
    if input_size is None and inputs is None:
        inputs = inputs_of(getattr(module, "example", None))
    if input_size is not None or inputs is None:
        inputs = (_sized(input_size, spec),)
    given |= {"directory": os.getcwd()}
    model.eval()
    if without_shape(model) is not None:  # layers that get their shapes from the first input
        with torch.no_grad():
            call(model, *inputs)
    return Loaded(model, inputs, None, None, given)


def _sized(size: tuple[int, ...] | None, spec: str) -> Tensor:
    if size is None:
        raise ModelError(
            f"the input size of {spec} is not known: give it, such as --input 3x224x224, or for several "
            "inputs let the function return (network, inputs), a tuple of one tensor for each"
        )
    return example_of(size)


def _fill(model: nn.Module, weights: str, trust: bool, spec: str) -> None:
    if weights == RANDOM:
        raise ModelError(
            f"random weights are for torchvision:, timm: and demo: models, not for {spec}"
        )
    fit_weights(model, read_weights(weights, trust=trust), weights)
