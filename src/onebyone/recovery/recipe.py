"""Recipe: everything that decides how a network is fine-tuned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from math import cos, isfinite, pi
from typing import Any

from onebyone.errors import TrainingError, is_number, names_in, seeded, whole

OPTIMIZERS = {  # learning rate, weight decay
    "shampoo": (0.05, 5e-4), "sgd": (0.05, 5e-4), "adamw": (2e-3, 0.01),
}  # fmt: skip
AUGMENTATIONS = ("shift", "mirror")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune; the defaults were chosen on images that no test has seen (docs/recovery.md).

    epochs: passes over the data, fractions too. optimizer: shampoo (`recovery.shampoo`), sgd (with Nesterov
    momentum) or adamw.
    learning_rate, weight_decay: None for the optimizer's default; decay applies to weights, not to
    biases and normalization. batch_size: images a step, over all processes. warmup: the fraction of
    the steps in which the learning rate rises; then it falls as a cosine to 0.
    soft: the share of the teacher's soft targets in the loss, 1 − soft that of the labels (1 where
    there are none, 0 without a teacher); temperature: by which both sides' logits are divided.
    features: the weight of the features at block ends beside that. smoothing: of the labels.
    clip: the largest norm of a step's gradient, 0 for no limit. average: decay of the exponential
    moving average of the weights, which is what is measured and kept; 0 for none.
    augment: of "shift" (by up to a fourteenth of the size) and "mirror"; () for none.
    precision: "auto" times float32 and bfloat16 and takes what is faster. channels_last: train in
    that memory format, where the networks run in it. patience: stop after so many measurements without
    a better one. measure_every: measure on held-out images every so many epochs.
    """

    epochs: float = 2.0
    optimizer: str = "shampoo"
    learning_rate: float | None = None
    weight_decay: float | None = None
    momentum: float = 0.9
    batch_size: int = 128
    warmup: float = 0.1
    soft: float = 0.1
    temperature: float = 2.0
    features: float = 0.3
    smoothing: float = 0.0
    clip: float = 5.0
    average: float = 0.998
    augment: tuple[str, ...] = ()
    precision: str = "auto"
    channels_last: bool = True
    patience: int | None = None
    measure_every: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _within("epochs", self.epochs, 0, None, open_below=True)
        _among("optimizer", self.optimizer, tuple(OPTIMIZERS))
        _among("precision", self.precision, PRECISIONS)
        if isinstance(self.augment, str):
            object.__setattr__(self, "augment", tuple(names_in(self.augment)))
        if not isinstance(self.augment, Iterable):
            raise TrainingError(
                f"augment={self.augment!r} does not fit: give names, such as ('mirror',), or ()"
            )
        for name in self.augment:
            _among("augment", name, AUGMENTATIONS)
        for name in ("learning_rate", "weight_decay"):
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), 0, None, open_below=name == "learning_rate")
        for name in ("warmup", "soft", "smoothing", "momentum", "average"):
            _within(name, getattr(self, name), 0, 1)
        seeded(self.seed, TrainingError)
        whole("batch_size", self.batch_size, 1, error=TrainingError)
        if self.patience is not None:
            whole("patience", self.patience, 1, error=TrainingError)
        _within("temperature", self.temperature, 0, None, open_below=True)
        _within("features", self.features, 0, None)
        _within("clip", self.clip, 0, None)
        _within("measure_every", self.measure_every, 0, None, open_below=True)

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return self.learning_rate or OPTIMIZERS[self.optimizer][0]

    @property
    def decay(self) -> float:
        """The weight decay."""
        own = self.weight_decay
        return OPTIMIZERS[self.optimizer][1] if own is None else own

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of step 0 … steps − 1: a line up, then half a cosine down to 0.

        >>> [round(Recipe(learning_rate=1.0, warmup=0.5).rate_at(s, 4), 2) for s in range(4)]
        [0.5, 1.0, 1.0, 0.5]
        """
        rising = round(self.warmup * steps)
        if step < rising:
            return self.rate * (step + 1) / rising
        return self.rate * 0.5 * (1 + cos(pi * (step - rising) / max(1, steps - rising)))

    def fitting(self, images: int) -> Recipe:
        """With batches that so few images can fill when a twentieth of them is held out."""
        return replace(self, batch_size=min(self.batch_size, max(1, images - images // 20 - 1)))

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return asdict(self) | {"augment": list(self.augment)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Recipe:
        """What `to_json` gave."""
        made: dict[str, Any] = {**values, "augment": tuple(values["augment"])}
        return Recipe(**made)


def check_recipe(recipe: object) -> None:
    """TrainingError for what is no Recipe; None is one by default."""
    if recipe is not None and not isinstance(recipe, Recipe):
        raise TrainingError(
            f"recipe={recipe!r} does not fit: give a Recipe, such as Recipe(epochs=2)"
        )


def _within(
    name: str, value: float, low: float, high: float | None, *, open_below: bool = False
) -> None:
    number = is_number(value) and isfinite(value)
    below = number and (value < low or (open_below and value == low))
    if not number or below or (high is not None and value > high):
        span = f"above {low}" if open_below else f"{low} or more"
        span = f"from {low} to {high}" if high is not None else span
        raise TrainingError(f"{name}={value!r} does not fit: give a number {span}")


def _among(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise TrainingError(f"{name} {value!r} is not known: give one of {', '.join(known)}")
