"""A network as one ONNX file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from onebyone.errors import MissingExtraError, ModelError
from onebyone.exporting.program import first_line, quiet


def export_onnx(program: ExportedProgram, path: Path) -> None:
    """Write the program as ONNX with its weights inside.

    Raises MissingExtraError without the packages, ModelError for what ONNX cannot express, OSError
    where the file cannot be written.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f'ONNX needs the package {error.name}: pip install "onebyone[onnx]"'
        ) from error
    try:
        with quiet():
            torch.onnx.export(program, f=str(path), dynamo=True, external_data=False, verbose=False)
    except OSError:
        raise
    except Exception as error:
        raise ModelError(
            f"ONNX export failed ({type(error).__name__}: {first_line(error)})"
        ) from error
