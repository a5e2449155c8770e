"""Whether calibration images are like those that a network's normalisation layers were trained on."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor, nn

from onebyone.tree import modules_by_name

# Nats between what channels get and their running statistics, in the mean over layers. Images of the
# training data give 0.00 to 0.03, their negatives, noise or another normalisation 0.26 and more.
FAR = 0.2
MOST = 1.0  # what one layer can count


class Agreement:
    """Compares, in one batch, what enters each normalisation layer with its running statistics."""

    def __init__(self) -> None:
        self.gaps: dict[str, float] = {}
        self.images = 1

    def attach(self, model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Watch every layer that holds a running mean and variance and uses them."""
        return [
            module.register_forward_pre_hook(self._hook(name))
            for name, module in modules_by_name(model).items()
            if isinstance(getattr(module, "running_mean", None), Tensor)
            and isinstance(getattr(module, "running_var", None), Tensor)
            and not module.training
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def hook(module: nn.Module, args: tuple[object, ...]) -> None:
            x = args[0] if args else None
            mean, variance = module.running_mean, module.running_var
            assert isinstance(mean, Tensor)
            assert isinstance(variance, Tensor)
            if name in self.gaps or not isinstance(x, Tensor) or not x.is_floating_point():
                return
            if x.ndim < 2 or x.shape[1] != len(mean) or x.numel() < 2 * len(mean):
                return
            rows = x.detach().transpose(0, 1).flatten(1).float()
            self.images = max(self.images, len(x))
            self.gaps[name] = gap(rows.mean(1), rows.var(1), mean.float(), variance.float())

        return hook

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say: nothing where the images agree with most layers."""
        if not self.gaps:
            return ()
        found = sum(min(gap, MOST) for gap in self.gaps.values()) / len(self.gaps)
        if found <= FAR + 1 / self.images:  # of so few images the statistics are that far by chance
            return ()
        return (
            "the calibration images are unlike those that the network was trained on: what arrives in its "
            f"{len(self.gaps)} normalisation layer{'s' * (len(self.gaps) > 1)} is {found:.2g} nats from "
            f"their running statistics, where {FAR} or less is usual. Check that the images are of the "
            "same kind, with the channels in the same order, and normalised as in training",
        )


def gap(
    mean: Float[Tensor, " c"], variance: Float[Tensor, " c"],
    running_mean: Float[Tensor, " c"], running_variance: Float[Tensor, " c"],
) -> float:  # fmt: skip
    """The median over channels of the divergence between two normal distributions, in nats.

    KL(N(m, v) ‖ N(μ, σ²)) = ½ (v/σ² + (m − μ)²/σ² − 1 − ln(v/σ²)); infinite for a constant channel.
    """
    scale = running_variance.clamp_min(1e-10)
    ratio = variance.clamp_min(1e-10) / scale
    found = (ratio + (mean - running_mean).square() / scale - 1 - ratio.log()) / 2
    return median(found.tolist())
