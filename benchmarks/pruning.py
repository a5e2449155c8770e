"""torch-pruning (Fang et al., "DepGraph", 2023) as its README calls it, down to a fraction of MACs.

pip install torch-pruning==1.6.1
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.measurement.counting import count

STEPS = 400  # of the global pruning; it stops at the first that is light enough
IMPORTANCES = {
    "group magnitude": "GroupMagnitudeImportance",
    "group Taylor": "GroupTaylorImportance",
}


def prune(
    model: nn.Module, inputs: Tensor, labels: Tensor, importance: str, macs: float
) -> nn.Module:
    """A pruned copy with at most this fraction of the MACs; Taylor takes the labeled images' gradients."""
    import torch_pruning as tp

    pruned = copy.deepcopy(model).eval().requires_grad_(True)
    last = [m for m in pruned.modules() if isinstance(m, nn.Linear)][-1]
    goal = macs * count(model, inputs[:1]).macs
    pruner = tp.pruner.BasePruner(
        pruned, inputs[:1], importance=getattr(tp.importance, IMPORTANCES[importance])(),
        pruning_ratio=0.98, global_pruning=True, iterative_steps=STEPS, ignored_layers=[last],
        isomorphic=False,
    )  # fmt: skip
    for _ in range(STEPS):
        if importance == "group Taylor":
            pruned.zero_grad()
            F.cross_entropy(pruned(inputs), labels).backward()
        pruner.step()
        if count(pruned, inputs[:1]).macs <= goal:
            break
    pruned.zero_grad()
    return pruned
