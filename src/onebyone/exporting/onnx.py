"""A network as one ONNX file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from onebyone.errors import MissingExtraError, ModelError
from onebyone.exporting.program import quiet


def export_onnx(program: ExportedProgram, path: Path) -> None:
    """Write the program as ONNX with its weights inside.

    Raises MissingExtraError without the packages, ModelError for what ONNX cannot express.
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
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ModelError(f"ONNX export failed ({type(error).__name__}: {first[:200]})") from error
