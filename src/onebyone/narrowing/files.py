"""Narrowings as JSON that a person can read and edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import inf
from typing import Any

from onebyone.errors import PlanError, is_number
from onebyone.narrowing.spaces import Cut, Narrowing


def narrowings_to_json(narrowings: Sequence[Narrowing]) -> list[dict[str, Any]]:
    """One entry a space: its width can be edited, the first channels of the order stay."""
    return [
        {
            "layer": n.layer, "form": "narrow", "width": n.width, "of": n.channels,
            "predicted_error_nats": n.error,
            "params_each": n.params_each,
            "cuts": [asdict(cut) for cut in n.cuts],
            "order": " ".join(map(str, n.order)),
        }
        for n in narrowings
    ]  # fmt: skip


def narrowings_from_json(values: Any, where: str) -> tuple[Narrowing, ...]:
    """What `narrowings_to_json` wrote, perhaps edited; PlanError names what does not fit."""
    if not isinstance(values, list):
        raise PlanError(f"{where} is damaged: its narrowings are no list")
    found = [_one(v, f"{where}, narrowing {i}") for i, v in enumerate(values, start=1)]
    if len({n.layer for n in found}) < len(found):
        raise PlanError(f"{where} narrows the outputs of one layer twice: leave one of them out")
    return tuple(n for n in found if n.width < n.channels)


def _one(values: Any, where: str) -> Narrowing:
    if not isinstance(values, dict):
        raise PlanError(f"{where} is damaged: {values!r} is no narrowing")
    try:
        if not isinstance(values["order"], str):
            raise ValueError(f"its order {values['order']!r} is no text of the channels' numbers")
        order = tuple(map(int, values["order"].split()))
        if sorted(order) != list(range(len(order))):
            raise ValueError("its order does not have every channel once")
        width = values["width"]
        if type(width) is not int or not 1 <= width <= len(order):
            raise PlanError(
                f"{where} ({values['layer']}): width={width!r} is not a whole number from 1 to "
                f"{len(order)}"
            )
        if not isinstance(values["cuts"], list) or not all(
            isinstance(cut, dict) for cut in values["cuts"]
        ):
            raise ValueError(f"its cuts {values['cuts']!r} are no list of tensors and their axes")
        cuts = tuple(
            Cut(str(c["tensor"]), _whole(c["axis"]), _whole(c["start"]), _whole(c["block"]))
            for c in values["cuts"]
        )
        return Narrowing(
            str(values["layer"]), width, order, cuts, _whole(values["params_each"]),
            nats(values["predicted_error_nats"]),
        )  # fmt: skip
    except KeyError as error:
        raise PlanError(f"{where} is damaged: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise PlanError(f"{where} is damaged: {error}") from error


def nats(value: Any) -> float:
    """A predicted rise of the loss: a finite number from 0 up, or ValueError."""
    if not is_number(value) or not 0 <= value < inf:
        raise ValueError(
            f"predicted_error_nats={value!r} stands where a number of 0 or more is expected"
        )
    return float(value)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} stands where a whole number is expected")
    return value
