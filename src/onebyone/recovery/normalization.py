"""BatchNorm's statistics of averaged weights, taken anew on images as they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from onebyone.running import call, suited
from onebyone.tree import evaluating

NORMS = nn.modules.batchnorm._BatchNorm


def reestimate(model: nn.Module, like: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give the running statistics of BatchNorm layers the mean over these batches, in place.

    What training keeps on the way belongs to other weights and to changed images. Layers whose twin
    in `like` is in eval mode keep theirs, as do those without running statistics.
    Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018, §3.2.
    """
    norms = [
        module
        for module, twin in zip(model.modules(), like.modules(), strict=True)
        if isinstance(module, NORMS) and twin.training and module.running_mean is not None
    ]
    if not norms:
        return
    momenta = [module.momentum for module in norms]
    with evaluating(model), torch.no_grad():
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # the plain mean over the batches
            module.train()
        try:
            for batch in batches:
                call(model, suited(model, batch))
        finally:
            for module, momentum in zip(norms, momenta, strict=True):
                module.momentum = momentum
