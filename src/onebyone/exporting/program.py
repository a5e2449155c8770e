"""A network as an exported PyTorch program (.pt2): it runs without onebyone and without its source."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from onebyone.tree import evaluating


def export_program(model: nn.Module, example: Tensor) -> ExportedProgram | str:
    """The program with any batch size, else with the example's; or the reason why there is none.

    example: (1, C, H, W); it is brought to the model's own dtype.
    """
    first = next(model.parameters(), None)
    if first is not None and first.is_floating_point():
        example = example.to(first.dtype)
    batch = Dim("batch", min=1, max=4096)
    pair = torch.cat([example, example])
    with evaluating(model), quiet():
        try:
            return torch.export.export(model, (pair,), dynamic_shapes=({0: batch},))
        except Exception:  # the model fixes its batch size, or cannot be traced at all
            pass
        try:
            return torch.export.export(model, (example,))
        except Exception as error:
            return (
                f"torch.export cannot export the network ({type(error).__name__}: "
                f"{first_line(error)})"
            )


def first_line(error: Exception) -> str:
    """What matters of an exporter's message, which can be pages long."""
    return (str(error).strip().splitlines() or [""])[0][:200]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print progress and warn about their own insides: neither is for the user."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
