"""What a form costs at any number of channels and any ranks, for whole arrays of them at once."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from onebyone.conv import ConvSpec, Places
from onebyone.forms import FORMS

Floats = NDArray[np.float64]


class FormCosts:
    """MACs and parameters of one form of one layer.

    Every part of a form has each number of channels at most once as a factor, so the cost is affine
    in each of c_in, c_out and the ranks: the values at 0 and 1 of all give its coefficients exactly.
    A grouped layer keeps its channels in each group, so that its cost is proportional to c_out.
    """

    def __init__(self, form: str, conv: ConvSpec, places: Places) -> None:
        row = FORMS[form]
        channels = 2 if conv.groups == 1 else 0
        numbers = channels + len(row.ranks)
        found = np.zeros((2,) * numbers + (2,))
        for corner in product((0, 1), repeat=numbers):
            there, ranks = conv, corner[channels:]
            if channels:
                there = replace(conv, c_in=corner[0], c_out=corner[1])
            found[corner] = row.macs(there, ranks, places), row.params(there, ranks)
        for axis in range(numbers):
            low, high = np.take(found, [0], axis), np.take(found, [1], axis)
            found = np.concatenate([low, high - low], axis)
        if not channels:
            whole, found = found, np.zeros((2, 2, *found.shape))
            found[0, 1] = whole / conv.c_out
        self.coefficients = found

    def at_ranks(self, ranks: NDArray[np.int64]) -> Floats:
        """Coefficients (n, 4, 2) of 1, c_out, c_in and c_in · c_out, for ranks (n, number of them)."""
        found = np.broadcast_to(self.coefficients, (len(ranks), *self.coefficients.shape))
        for index in reversed(range(ranks.shape[1])):
            number = ranks[:, index].reshape(-1, *[1] * (found.ndim - 2))
            found = found[..., 0, :] + found[..., 1, :] * number
        return found.reshape(len(ranks), 4, 2)


def cost_at(coefficients: Floats, c_in: Floats | float, c_out: Floats | float) -> Floats:
    """Costs (…, budgets) from coefficients (…, 4, budgets), for one number of channels each way."""
    basis = np.asarray([1.0, float(c_out), float(c_in), float(c_in) * float(c_out)])
    return np.einsum("...fb,f->...b", coefficients, basis)
