"""The targets as one plain table: what each writes, what runs it, and what it needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from onebyone.errors import MissingExtraError, ModelError
from onebyone.exporting import executorch, litert, ncnn, onnx, openvino
from onebyone.exporting.network import FLOAT32, Network

Session = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Target:
    """One row of the table.

    `runtime` runs the files and is the distribution whose version is told; `modules` are what Python
    must be able to import, `extra` the extra of onebyone that installs them. `dtypes` are the numbers
    that files can hold, `any_batch` whether one file takes batches of any size. `companions` are the
    suffixes of further files. `write` and `open` do what they say; `about` reads back the metadata,
    None where the format has no place for it and a JSON file lies beside.
    """

    name: str
    title: str
    runtime: str
    extra: str
    modules: tuple[str, ...]
    suffix: str
    companions: tuple[str, ...]
    dtypes: tuple[str, ...]
    any_batch: bool
    write: Callable[[Network, Path], None]
    open: Callable[[Path, int], Session]
    about: Callable[[Path], str | None] | None

    @property
    def missing(self) -> str | None:
        """The first module that is not installed, None where all are."""
        return next((m for m in self.modules if importlib.util.find_spec(m) is None), None)

    @property
    def version(self) -> str:
        """The runtime with its version."""
        return f"{self.runtime} {importlib.metadata.version(self.runtime)}"

    def require(self) -> None:
        """Raise MissingExtraError, with the command that installs it, where a package is missing."""
        if self.missing is not None:
            raise MissingExtraError(
                f"{self.title} needs the package {self.missing}: "
                f'pip install "onebyone[{self.extra}]"'
            )

    def files(self, path: Path) -> tuple[Path, ...]:
        """All files of an export whose main one is `path`."""
        others = tuple(path.with_suffix(suffix) for suffix in self.companions)
        beside = () if self.about is not None else (path.with_name(path.name + ".json"),)
        return (path, *others, *beside)

    def file_name(self, dtype: str, stem: str = "model") -> str:
        """The main file's name: model.onnx, model.int8.onnx."""
        return f"{stem}{'' if dtype == FLOAT32 else '.' + dtype}{self.suffix}"


TARGETS: dict[str, Target] = {
    "onnx": Target(
        name="onnx",
        title="ONNX",
        runtime="onnxruntime",
        extra="onnx",
        modules=("onnx", "onnxscript", "onnxruntime"),
        suffix=".onnx",
        companions=(),
        dtypes=onnx.NUMBERS,
        any_batch=True,
        write=onnx.export_onnx,
        open=onnx.open_onnx,
        about=onnx.about_onnx,
    ),
    "openvino": Target(
        name="openvino",
        title="OpenVINO",
        runtime="openvino",
        extra="openvino",
        modules=("openvino", "onnx", "onnxscript"),
        suffix=".xml",
        companions=(".bin",),
        dtypes=openvino.NUMBERS,
        any_batch=True,
        write=openvino.export_openvino,
        open=openvino.open_openvino,
        about=openvino.about_openvino,
    ),
    "executorch": Target(
        name="executorch",
        title="ExecuTorch",
        runtime="executorch",
        extra="executorch",
        modules=("executorch", "torchao"),
        suffix=".pte",
        companions=(),
        dtypes=executorch.NUMBERS,
        any_batch=True,
        write=executorch.export_executorch,
        open=executorch.open_executorch,
        about=executorch.about_executorch,
    ),
    "litert": Target(
        name="litert",
        title="LiteRT",
        runtime="ai-edge-litert",
        extra="litert",
        modules=("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
        suffix=".tflite",
        companions=(),
        dtypes=litert.NUMBERS,
        any_batch=False,
        write=litert.export_litert,
        open=litert.open_litert,
        about=None,
    ),
    "ncnn": Target(
        name="ncnn",
        title="ncnn",
        runtime="ncnn",
        extra="ncnn",
        modules=("ncnn", "pnnx"),
        suffix=".ncnn.param",
        companions=(".bin",),
        dtypes=ncnn.NUMBERS,
        any_batch=False,
        write=ncnn.export_ncnn,
        open=ncnn.open_ncnn,
        about=None,
    ),
}


def target_of(path: Path, name: str | None = None) -> Target:
    """The target of that name, else the one whose suffix the path has; ModelError for neither."""
    if name is not None:
        if name not in TARGETS:
            raise ModelError(f"{name!r} is no target: give one of {', '.join(TARGETS)}")
        found = TARGETS[name]
        if not path.name.lower().endswith(found.suffix):
            raise ModelError(
                f"{path} is no name for {found.title}: its files end in {found.suffix}"
            )
        return found
    for target in TARGETS.values():
        if path.name.lower().endswith(target.suffix):
            return target
    suffixes = ", ".join(f"{t.suffix} ({t.title})" for t in TARGETS.values())
    raise ModelError(f"{path} says no target: give a file that ends in {suffixes}, or target=")
