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
    """The program with any batch size, else with the example's; or the reason why there is none."""
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
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            return f"the model cannot be exported by torch.export ({type(error).__name__}: {first[:200]})"


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
