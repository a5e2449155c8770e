"""`onebyone export`: a network as files that other runtimes read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onebyone.cli import values
from onebyone.cli.failures import Outcome, failures, stop
from onebyone.cli.originals import original_of
from onebyone.cli.reading import Pictures, read_images
from onebyone.cli.showing import Progress, note, progress, show, show_json, tell_images
from onebyone.cli.writing import check_spared

if TYPE_CHECKING:
    from torch import nn

    from onebyone.data import Images
    from onebyone.exporting.export import Export
    from onebyone.loading import Loaded
    from onebyone.plans import Plan

MODEL, IMAGES, OUTPUT = "The network", "The images", "The result"
READ = 192  # images: to check on, and for int8 to calibrate with


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A folder that onebyone slim wrote, torchvision:NAME, timm:NAME, "
            "package.module:function, FILE.pt2, FILE.onnx, or demo.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="TARGETS",
            rich_help_panel=OUTPUT,
            help="onnx, openvino, executorch, litert, ncnn: one or more with commas between, or "
            "all that are installed.",
        ),
    ] = "onnx",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            rich_help_panel=OUTPUT,
            help="float32, float16 or int8; int8 needs --data.",
        ),
    ] = "float32",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="DIR",
            rich_help_panel=OUTPUT,
            help="Where to write; by default the slimmed folder itself.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=IMAGES,
            help="Images to check on (and to calibrate int8 with): a folder, a .npy or .npz file, "
            "or demo:test. Without them images are drawn at random.",
        ),
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=MODEL,
            help="The network before, exported and timed the same way; a slimmed folder knows its own.",
        ),
    ] = None,
    weights: Annotated[str | None, values.weights_option(MODEL)] = None,
    trust: Annotated[bool, values.trust_option(MODEL)] = False,
    input_size: Annotated[str | None, values.input_option(MODEL)] = None,
    size: Annotated[str | None, values.size_option(IMAGES)] = None,
    mean: Annotated[str | None, values.mean_option(IMAGES)] = None,
    std: Annotated[str | None, values.std_option(IMAGES)] = None,
    latency: Annotated[
        bool, typer.Option(rich_help_panel=OUTPUT, help="Time the files on this machine.")
    ] = True,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Print the result as JSON instead of tables."
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", rich_help_panel=OUTPUT, help="Replace files that onebyone did not write."
        ),
    ] = False,
) -> None:
    """Write a network as files for other runtimes, each checked there against PyTorch and timed.

    A file whose outputs differ too much from PyTorch's is not kept, and the
    exit code is 2. exports.json beside the files has what was found.

    \b
    Examples:
      [bold]onebyone export out/ --to onnx,openvino,executorch,litert --data photos/
      onebyone export out/ --dtype int8 --data photos/
      onebyone export torchvision:resnet50 --to openvino -o exported/[/bold]
    """
    shape = values.lengths(input_size, "--input", (1, 2, 3, 4))
    pictures = Pictures.parse(size, mean, std)
    with failures("a smaller --input") as outcome:
        with progress() as tell:
            tell("load", 0)
            targets = _targets(to, dtype, data)
            folder = _folder(model, out)
            paths = {name: folder / target.file_name(dtype) for name, target in targets.items()}
            _check_outputs(paths, (model, weights, data), force)
            source = _read(model, weights, shape, trust, original, pictures, data, dtype)
            tell("load", 1)
            made, failed = _export(source, paths, dtype, latency, tell, outcome)
        if as_json:
            _show_json(made, source.loaded)
        elif made:
            _show(made, source.loaded, folder)
        if failed:
            stop("\n          ".join(failed))


def _targets(to: str, dtype: str, data: str | None) -> dict[str, Any]:
    """The targets by name, all of them installed."""
    from onebyone.errors import DataError, MissingExtraError, ModelError, names_in
    from onebyone.exporting.export import check_dtype
    from onebyone.exporting.targets import TARGETS

    names = names_in(to)
    unknown = [name for name in names if name not in (*TARGETS, "all")]
    if unknown or not names:
        raise ModelError(
            f"{', '.join(unknown) or repr(to)} is no target: give one or more of {', '.join(TARGETS)} "
            "with commas between, or all"
        )
    if "all" in names:
        names = [n for n, t in TARGETS.items() if t.missing is None and dtype in t.dtypes]
        if not names:
            raise MissingExtraError('no runtime is installed: pip install "onebyone[onnx]"')
    for name in names:
        check_dtype(TARGETS[name], dtype)
        TARGETS[name].require()
    if dtype == "int8" and data is None:
        raise DataError("int8 takes the ranges of its numbers from images: give some with --data")
    return {name: TARGETS[name] for name in names}


def _folder(model: str, out: Path | None) -> Path:
    from onebyone.errors import OutputError
    from onebyone.loading.slimmed import check_ours, is_slimmed

    folder = out if out is not None else Path(model)
    if out is None and not is_slimmed(folder):
        check_ours(folder)
        raise OutputError("say where to write the files, such as -o exported/")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: give a folder with -o")
    return folder


def _check_outputs(paths: dict[str, Path], inputs: tuple[str | None, ...], force: bool) -> None:
    from onebyone.exporting.records import check_replaceable
    from onebyone.exporting.targets import TARGETS
    from onebyone.files import check_file

    read = [given for given in inputs if given is not None and not Path(given).is_dir()]
    for name, path in paths.items():
        for file in TARGETS[name].files(path):
            check_file(file)
            check_spared(file, read)
        if not force:
            check_replaceable(path, name)


@dataclass(frozen=True)
class _Source:
    """What is exported, and what it is compared with."""

    loaded: Loaded
    preprocess: Any
    images: Images | None
    original: nn.Module | None
    plan: Plan | None


def _read(
    spec: str, weights: str | None, size: tuple[int, ...] | None, trust: bool,
    original: str | None, pictures: Pictures, data: str | None, dtype: str,
) -> _Source:  # fmt: skip
    from onebyone.errors import ModelError, OneByOneError
    from onebyone.exporting.network import converted_note
    from onebyone.files import PLAN
    from onebyone.loading import load
    from onebyone.loading.slimmed import is_slimmed
    from onebyone.plan_files import read_plan

    loaded = load(spec, weights=weights, input_size=size, trust=trust)
    note(*loaded.notes, *converted_note(loaded.model, dtype))
    if not loaded.of_tensors:
        raise ModelError(f"{spec} takes more than tensors: only networks of tensors are exported")
    preprocess = pictures.preprocess(loaded)
    images = None
    if data is not None:
        images = read_images(data, loaded, preprocess, READ, 0)
        tell_images(images)
    plan, before = None, None
    if is_slimmed(Path(spec)):
        plan = read_plan(Path(spec) / PLAN)
        try:
            _, name, own = original_of(Path(spec), original, None, trust)
            before = load(name, weights=own, input_size=loaded.input_size, trust=trust).model
        except OneByOneError as error:
            if original is not None:
                raise
            note(f"not timed beside the original: {error}")
    elif original is not None:
        before = load(original, input_size=loaded.input_size, trust=trust).model
    return _Source(loaded, preprocess, images, before, plan)


def _export(
    source: _Source, paths: dict[str, Path], dtype: str, latency: bool, tell: Progress,
    outcome: Outcome,
) -> tuple[list[Export], list[str]]:  # fmt: skip
    """What was written, and the messages of what was not."""
    from onebyone.errors import OneByOneError
    from onebyone.exporting.export import export as write
    from onebyone.exporting.records import write_record
    from onebyone.report.exports import export_json

    made: list[Export] = []
    failed: list[str] = []
    loaded = source.loaded
    for index, (name, path) in enumerate(paths.items()):
        tell("export", index / len(paths))
        try:
            found = write(
                loaded.model, tuple(loaded.inputs), path, target=name, dtype=dtype,
                images=source.images, original=source.original, preprocess=source.preprocess,
                classes=loaded.classes, plan=source.plan, latency=latency,
                progress=lambda done, at=index: tell("export", (at + done) / len(paths)),
            )  # fmt: skip
        except OneByOneError as error:
            failed.append(f"{path.name} was not written: {error}")
            continue
        write_record(path.parent, export_json(found))
        outcome.written = path.parent
        made.append(found)
    tell("export", 1)
    return made, failed


def _cost(loaded: Loaded) -> Any:
    from onebyone.measurement.counting import count
    from onebyone.report.exports import Cost

    params = sum(p.numel() for p in loaded.model.parameters())
    return Cost(count(loaded.model, *loaded.call).macs, params)


def _show(made: list[Export], loaded: Loaded, folder: Path) -> None:
    from onebyone.report.exports import exports_table

    show(exports_table(made, _cost(loaded)))
    note(f"written to {folder}")


def _show_json(made: list[Export], loaded: Loaded) -> None:
    from onebyone.report.exports import export_json, exports_json

    show_json(exports_json([export_json(e) for e in made], _cost(loaded)))
