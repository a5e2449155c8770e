"""Insertions as JSON that a person can read."""

from __future__ import annotations

from typing import Any

from onebyone.deepening.insertions import ACTIVATIONS, INSERTIONS, Activation, Insertion
from onebyone.errors import PlanError


def insertion_to_json(insertion: Insertion) -> dict[str, Any]:
    """JSON-ready values; costs are written for the reader and not read back."""
    values: dict[str, Any] = {"place": insertion.place, "kind": insertion.kind}
    if not insertion.refused:
        values |= {
            "channels": insertion.channels, "width": insertion.width,
            "kernel": list(insertion.kernel), "norm": insertion.norm,
            "activation": [insertion.activation.name, *insertion.activation.options],
            "macs": insertion.macs, "params": insertion.params,
        }  # fmt: skip
    return values | {
        "positions": insertion.positions, "score_nats": insertion.score, "reason": insertion.reason,
    }  # fmt: skip


def insertion_from_json(values: Any, where: str) -> Insertion:
    """What `insertion_to_json` wrote; PlanError names what does not fit."""
    try:
        kind, place, reason = values["kind"], values["place"], str(values["reason"])
        if kind != "refuse" and kind not in INSERTIONS:
            raise PlanError(
                f"{where}: there is no insertion {kind!r}; there are {', '.join(INSERTIONS)} and "
                "refuse (nothing inserted)"
            )
        score = values["score_nats"]
        score = None if score is None else float(score)
        positions = _number(values["positions"], least=0)
        if kind == "refuse":
            return Insertion(str(place), kind, positions=positions, score=score, reason=reason)
        return Insertion(
            str(place), kind, _number(values["channels"]), _number(values["width"]),
            _kernel(values["kernel"]), positions, _flag(values["norm"]),
            _activation(values["activation"]), score, reason,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise PlanError(f"{where} is damaged: {said}") from error


def _number(value: Any, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} stands where a whole number from {least} is expected")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r} stands where true or false is expected")
    return value


def _kernel(values: Any) -> tuple[int, ...]:
    kernel = tuple(map(_number, values))
    if len(kernel) > 3 or any(k % 2 == 0 for k in kernel):
        raise ValueError(f"the kernel {list(kernel)} has not up to three odd lengths")
    return kernel


def _activation(values: Any) -> Activation:
    name, options = values[0], tuple(values[1:])
    if name not in ACTIVATIONS or len(options) != len(ACTIVATIONS[name][1]):
        raise ValueError(f"{values!r} is no activation of ours")
    if not all(isinstance(o, int | float | str) for o in options):
        raise ValueError(f"{values!r} is no activation of ours")
    return Activation(name, options)
