"""Shampoo: steps in which every direction of a weight's inputs and outputs counts by its own scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

TURN = 0.2  # of the learning rate: how far a step goes, in parts of the weight's own norm
LEAST = 0.3  # norm of a weight's rows that is assumed at the least, so that zeros start to move
MEMORY = 0.98  # of the second moments, from one step to the next
EVERY = 10  # steps: how often the roots follow the moments
FIRST = (1, 2, 4, 7)  # and at these steps, while there are few moments
LONGEST = 1024  # an axis with more entries is left as it is: its moments are too large a matrix
JOINED = 512  # inputs and places are one axis where they are no more than these together
SMALLEST = 1e-20  # norm of a direction, whose size is about 1, that is not 0
DAMPING = 1e-4  # of the largest eigenvalue, added to all; more at first

Matrices = Float[Tensor, "matrices outputs inputs places"]


class Shampoo(torch.optim.Optimizer):
    """The mean gradient times the inverse square roots of its second moments along each axis of a weight.

    Gupta et al., *Shampoo: Preconditioned Stochastic Tensor Optimization*, 2018, with the power that
    Morwani et al., *A New Perspective on Shampoo's Preconditioner*, 2024, found the best approximation
    of a full matrix, and moments that forget. A step of plain gradients is led by the few directions in
    which a batch has much to say. A step's length is `TURN` times the learning rate in parts of the
    weight's own norm (as in You et al., *Large Batch Training of Convolutional Networks*, 2017): the
    factors of a slimmed layer have norms far apart, and one rate suits all of them. The axes of a kernel
    (c_out, c_in, …) are its outputs and its inputs, at each of its places or (of large ones) with the
    places an axis of their own, for each of `matrices` groups of outputs. Parameters of fewer than two
    dimensions take steps of SGD with Nesterov momentum.
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
                state = self.state[weight]
                if weight.ndim < 2:
                    mean = state.setdefault("mean", torch.zeros_like(weight))
                    mean.mul_(momentum).add_(weight.grad)
                    weight.add_(weight.grad + momentum * mean, alpha=-rate)
                    continue
                gradient = _as_matrices(weight.grad, group["matrices"])
                way = _direction(gradient, state, momentum).reshape(weight.shape)
                norm = weight.norm().clamp_min(LEAST * len(weight) ** 0.5)  # no waiting for a GPU
                way *= norm / way.norm().clamp_min(SMALLEST)
                weight.mul_(1 - rate * group["weight_decay"])
                weight.add_(way.to(weight.dtype), alpha=-rate * TURN)


def _as_matrices(gradient: Tensor, matrices: int) -> Matrices:
    inputs = gradient[0].numel()
    if inputs > JOINED:
        inputs = gradient.shape[1]
    return gradient.reshape(matrices, len(gradient) // matrices, inputs, -1).float()


def _direction(gradient: Matrices, state: dict[str, Any], momentum: float) -> Matrices:
    """The mean gradient by its scale along each of the axes; `state` is made, and goes on."""
    axes = [axis for axis in (1, 2, 3) if 1 < gradient.shape[axis] <= LONGEST]
    if "step" not in state:
        state |= {"step": torch.zeros(()), "mean": torch.zeros_like(gradient)}
        state |= {"size": torch.zeros_like(gradient[:, :1, :1, :1])}
        state |= {f"moments{axis}": torch.zeros_like(_moments(gradient, axis)) for axis in axes}
    state["step"] += 1
    state["mean"].lerp_(gradient, 1 - momentum)
    size = state["size"].lerp_(gradient.square().sum((1, 2, 3), keepdim=True), 1 - MEMORY)
    step = int(state["step"])
    way = gradient.lerp(state["mean"], momentum)  # a step ahead, as Nesterov's
    way /= size.clamp_min(torch.finfo(size.dtype).tiny).sqrt()  # so that groups go equally far
    for axis in axes:
        moments = state[f"moments{axis}"].lerp_(_moments(gradient, axis), 1 - MEMORY)
        if step in FIRST or step % EVERY == 0:
            state[f"root{axis}"] = _inverse_root(moments, step)
        moved = way.movedim(axis, 1)
        turned = state[f"root{axis}"] @ moved.flatten(2)
        way = turned.reshape(moved.shape).movedim(1, axis)
    return way


def _moments(values: Matrices, axis: int) -> Float[Tensor, "matrices n n"]:
    rows = values.movedim(axis, 1).flatten(2)
    return rows @ rows.mT


def _inverse_root(
    moments: Float[Tensor, "matrices n n"], step: int
) -> Float[Tensor, "matrices n n"]:
    """(moments + damping of their largest eigenvalue)^−½, in parts of the largest one's.

    The damping is `DAMPING`, and more by 1 / (n · step²): the first gradients span few directions, and
    what is rounding in the others would be made large.

    >>> _inverse_root(torch.diag(torch.tensor([4.0, 1.0]))[None], 1000).round()
    tensor([[[1., 0.],
             [0., 2.]]])
    """
    values, vectors = torch.linalg.eigh(moments)
    largest = values.amax(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    damping = DAMPING + 1 / (moments.shape[-1] * step**2)
    scales = (values / largest).clamp_min(0).add(damping).rsqrt()
    return (vectors * scales[:, None]) @ vectors.mT
