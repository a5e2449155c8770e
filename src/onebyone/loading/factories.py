"""Models made by a Python function that the user names."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from onebyone.errors import ModelError
from onebyone.loading.loaded import KINDS, inputs_of
from onebyone.loading.weights import SUFFIXES


def is_factory(spec: str) -> bool:
    """Whether a spec names a Python function."""
    kind, colon, _ = spec.partition(":")
    path = Path(spec)
    file = path.is_dir() or path.suffix.lower() in (".pt2", ".onnx", *SUFFIXES)
    return bool(colon) and not file and kind not in ("torchvision", "timm", "demo")


def find_factory(spec: str) -> tuple[Any, Callable[[], Any]]:
    """The module and the function of `package.module:function`; ModelError if there is none."""
    module_name, _, attribute = spec.partition(":")
    module = _imported(module_name, spec)
    factory = getattr(module, attribute, None)
    if isinstance(factory, ModuleType):
        raise ModelError(
            f"{module_name}:{attribute} is a module: name a function in it that makes the model"
        )
    if not callable(factory):
        near = difflib.get_close_matches(attribute, [n for n in dir(module) if n[0] != "_"])
        hint = (
            f"the nearest are {', '.join(near)}" if near else "name a function that makes the model"
        )
        raise ModelError(f"{module_name} has no function {attribute!r}: {hint}")
    return module, factory


class MissingModuleError(ModelError):
    """The module that a function should be in is not there."""


def find_again(source: Mapping[str, Any]) -> None:
    """Import the module of the function that a plan's source names.

    Raises ModelError, with the directory that it was found in before, where it is not found now.
    """
    spec, made = str(source["spec"]), source.get("directory")
    try:
        find_factory(spec)
    except MissingModuleError as error:
        if made is None or made == os.getcwd():
            raise
        raise ModelError(
            f"the module of {spec!r} cannot be found in {os.getcwd()}: run this in {made}, where it was "
            "found when the folder was made"
        ) from error


def _imported(name: str, spec: str) -> Any:
    """A module, also from the working directory."""
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            advice = KINDS
            if name.endswith(".py"):
                advice = (
                    f"{spec.replace('.py:', ':', 1)}, the name without .py, in its own directory"
                )
            raise MissingModuleError(
                f"the module {name} of {spec!r} cannot be found, not in {here} either: give {advice}"
            ) from None
        raise ModelError(f"importing {name} of {spec!r} failed: {error}") from error
    except Exception as error:
        raise ModelError(
            f"importing {name} of {spec!r} failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def call_factory(factory: Any, spec: str) -> tuple[nn.Module, tuple[Any, ...] | None]:
    """What the function makes: a module, and the inputs that it gives, None where it gives none."""
    try:
        made = factory()
    except Exception as error:
        raise ModelError(
            f"{spec} failed: {type(error).__name__}: {error}. It is called without arguments"
        ) from error
    if isinstance(made, nn.Module):
        return made, None
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        inputs = inputs_of(made[1])
        if inputs is not None:
            return made[0], inputs
        raise ModelError(
            f"{spec} gave a module and a {type(made[1]).__name__} without a tensor, not an example "
            "tensor or a tuple of what its forward takes"
        )
    raise ModelError(
        f"{spec} gave a {type(made).__name__}: an nn.Module, or (module, example inputs), is "
        "expected"
    )
