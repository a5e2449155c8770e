"""Muon: steps whose singular values are alike, for weights that are matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

TURN = 0.1  # of the learning rate: how far a step goes, in parts of the weight's own norm
LEAST = 0.3  # norm of a weight's rows that is assumed at the least, so that zeros start to move
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al.: a, b, c of a s + b s³ + c s⁵
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum; a weight's step is U Vᵀ where the gradient's is U S Vᵀ.

    Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024. A step of plain
    gradients is led by the few directions in which a batch has much to say; this one goes as far in
    all. Its length is `TURN` times the learning rate in parts of the weight's own norm (as in You et
    al., *Large Batch Training of Convolutional Networks*, 2017): the factors of a slimmed layer have
    norms far apart, and one rate suits all of them. A kernel (c_out, c_in, …) is a matrix with a row
    for each output, one for each of `matrices` groups of them. Parameters of fewer than two dimensions
    take steps of SGD. `torch.optim.Muon` takes matrices alone, and has steps of a fixed length.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, momentum: float = 0.9) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "matrices": 1}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step from the gradients that the parameters hold."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient, state = weight.grad, self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(momentum).add_(gradient)
                wanted = gradient + momentum * state["momentum"]
                if weight.ndim < 2:
                    weight.add_(wanted, alpha=-rate)
                    continue
                step = _turned(weight, wanted, group["matrices"])
                weight.mul_(1 - rate * group["weight_decay"])
                weight.add_(step, alpha=-rate * TURN)


def _turned(weight: Tensor, wanted: Tensor, matrices: int) -> Tensor:
    """The direction of a step, as long as the weight is."""
    rows = wanted.reshape(matrices, len(wanted) // matrices, -1).float()
    norm = weight.norm().clamp_min(LEAST * len(weight) ** 0.5)  # a tensor: nothing waits for a GPU
    size = (matrices * min(rows.shape[1:])) ** 0.5
    return orthogonal(rows).reshape(wanted.shape).to(weight.dtype) * (norm / size)


def orthogonal(
    matrices: Float[Tensor, "n rows columns"],
) -> Float[Tensor, "n rows columns"]:
    """Near to U Vᵀ of each U S Vᵀ: all singular values above a thousandth of their norm become 0.7 to 1.2.

    By an iteration of Newton and Schulz, in matrix products alone. Zeros stay zeros.

    >>> orthogonal(torch.eye(2)[None] * torch.tensor([3.0, 0.1])).round().abs()
    tensor([[[1., 0.],
             [0., 1.]]])
    """
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, b * square + c * square @ square, x, beta=a)
    return x.mT if tall else x
