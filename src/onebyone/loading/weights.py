"""Weight files → state dicts → models; no pickle is executed unless it is trusted."""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from tarfile import is_tarfile
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.errors import ModelError
from onebyone.tree import tensor_state

BEGINS = b"PK", b"\x80"  # a zip archive, a pickle
POINTER = b"version https://git-lfs"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".tar", ".ckpt")
# Where training scripts keep the weights; averaged ones are what their authors evaluate.
NESTINGS = (
    "state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "net",
    "network", "weights", "params",
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "model.")


def read_weights(path: str | Path, *, trust: bool = False) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` or PyTorch file, on the CPU.

    Nestings such as {"state_dict": …} are opened. Raises `ModelError` on a missing or damaged file,
    and on one that needs full unpickling, which runs whatever code the file holds, unless `trust`.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path} is a folder: the file of weights is expected")
    if not path.is_file():
        raise ModelError(f"the weights file {path} does not exist")
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(f"{path} is no weights file: one of {', '.join(SUFFIXES)} is expected")
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    state = _state_of(read_pickle(path, trust=trust))
    if state is None:
        raise ModelError(
            f"{path} holds no weights: a dictionary from names to tensors is expected, perhaps "
            f"under one of {', '.join(NESTINGS)}"
        )
    return state


def _check_begin(path: Path) -> None:
    """Raise ModelError for what is no file of PyTorch's: failed downloads are pages of text."""
    with path.open("rb") as file:
        begin = file.read(len(POINTER))
    if begin == POINTER:
        raise ModelError(
            f"{path} is a pointer of Git LFS and not the file itself: fetch that with git lfs pull"
        )
    if begin and not begin.startswith(BEGINS) and not is_tarfile(path):
        raise ModelError(
            f"{path} is damaged or no PyTorch file: it begins with {begin[:16]!r}, perhaps "
            "left by a download that failed"
        )


def read_pickle(path: Path, *, trust: bool = False) -> Any:
    """What `torch.save` wrote; only tensors and plain containers unless `trust`."""
    _check_begin(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*TorchScript archive")
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if trust or "weights_only" not in str(error).lower():
            raise ModelError(f"{path} is damaged or no PyTorch file: {error}") from error
        raise ModelError(
            f"{path} holds more than tensors ({_culprit(error)}), and reading that runs whatever "
            "code the file contains. Give a file with the state dict alone (torch.save("
            "model.state_dict(), …) or .safetensors); if you trust its author, give --trust "
            "(trust=True)"
        ) from None
    except Exception as error:
        if not trust and "TorchScript archives" in str(error):
            raise ModelError(
                f"{path} is a TorchScript archive, which holds code. Give a file with the state dict of "
                "the network that it was made from; to measure it as it is, if you trust its author, "
                "give --trust (trust=True)"
            ) from None
        raise ModelError(f"{path} is damaged or no PyTorch file: {error}") from error


def fit_weights(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a state dict into the model, every name and shape exactly.

    Prefixes that wrappers leave ("module.", "_orig_mod.", "model.") are dropped where that makes
    the names match. Raises `ModelError` naming the first missing, unexpected and misshapen tensors;
    the model is untouched then.
    """
    own = tensor_state(model)
    state = unprefixed(state, own)
    # Old files lack BatchNorm's counters, which PyTorch itself forgives.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    misshapen = mismatches(own, state)
    if missing or unexpected or misshapen:
        shapes = [f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in misshapen]
        found = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        raise ModelError(
            f"the weights in {path} do not fit the model: "
            + "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in found if names)
            + ". Give the file that belongs to this model, or the model that made it"
        )
    # Some modules load no weights without their format's version, which few files keep; names and
    # shapes fit, so it is the model's own.
    versioned = OrderedDict(state)
    versioned._metadata = getattr(model.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    model.load_state_dict(versioned, strict=False)


def mismatches(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Names that both have, with different shapes."""
    return [k for k, v in own.items() if k in state and state[k].shape != v.shape]


def unprefixed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with those wrapper prefixes dropped that the model's own names do not have."""
    result = dict(state)
    for _ in PREFIXES:
        for prefix in PREFIXES:
            if (
                result
                and all(k.startswith(prefix) for k in result)
                and not result.keys() & own.keys()
            ):
                result = {k.removeprefix(prefix): v for k, v in result.items()}
    return result


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged or no safetensors file: {error}") from error


def _state_of(loaded: Any, depth: int = 0) -> dict[str, Tensor] | None:
    """The state dict in what a file held: itself, a module's, or one nesting deeper."""
    if isinstance(loaded, nn.Module):
        return loaded.state_dict()
    if not isinstance(loaded, Mapping) or not loaded:
        return None
    if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        return dict(loaded)
    if depth == 2:
        return None
    candidates = (_state_of(loaded[k], depth + 1) for k in NESTINGS if k in loaded)
    return next((state for state in candidates if state), None)


def _culprit(error: Exception) -> str:
    """What the file would run, from torch's long message."""
    for line in str(error).splitlines():
        if "Unsupported" in line or "GLOBAL" in line:
            return line.strip().split("WeightsUnpickler error: ")[-1].split(" was not an")[0]
    return "objects of other classes"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
