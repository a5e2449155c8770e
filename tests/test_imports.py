"""Imports point one way; the public names are sorted, complete and instant."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import onebyone
from onebyone.cli.app import COMMANDS as LISTED

ROOT = Path(onebyone.__file__).parent

# Each module may import only those above it, also inside functions.
LAYOUT = """
errors files displaying clock conv preprocessing folders closures tree several data pools demo.networks
running sampling sensing agreement distributed
measurement measurement.owning measurement.formulas measurement.modes measurement.rehearsing
measurement.shapes measurement.recalling measurement.recording measurement.counting measurement.timing
measurement.preparing measurement.memory measurement.latency measurement.spans measurement.layers_alone
measurement.layer_latency measurement.roofline measurement.measuring
matching sides diffing
factorize factorize.metric factorize.triangular factorize.judging factorize.least_squares
factorize.reduced_rank factorize.squeeze factorize.alternate factorize.spatial factorize.factors
factorize.balance factorize.fit factorize.grouped factorize.selection
surveying watching plain moments recorder
narrowing narrowing.spaces narrowing.files narrowing.cutting narrowing.marks
narrowing.tying narrowing.following narrowing.finding narrowing.ordering statistics
deepening deepening.insertions deepening.files deepening.flow deepening.places deepening.candidates
deepening.filling
forms form_costs plans plan_files allocation narrowing.widths losses candidates narrowing.proposing
windows applying planning
building lockstep effort rewriting merging
loading.loaded loading.layers loading.archive loading.computed loading.programs
loading.weights loading.zoo
loading.factories loading.onnx_graphs loading.slimmed loading.specs loading
chains blocks sources variants comparison comparing
verification
exporting exporting.outputs exporting.program exporting.folding exporting.easing exporting.tracing
exporting.network exporting.onnx exporting.openvino exporting.executorch exporting.litert exporting.ncnn
exporting.targets
exporting.checking exporting.rechecking exporting.clocking exporting.export exporting.records
benching
pacing pacing.sites pacing.graphs pacing.caches pacing.ways pacing.interpolating
pacing.timetable pacing.whole pacing.pace
report.numbers report.words report.markup report.picture report.cards report.details
report.insertions report.text report.json report.page report.deepened report
report.coverage report.columns report.measurement_rows report.measurement report.measurement_files
report.measurement_page report.comparison report.comparison_files report.comparison_page
report.difference_words report.difference report.difference_files report.difference_page
report.exports report.bench
explaining explaining.packing explaining.bundle explaining.toy explaining.photos explaining.layers
explaining.bench explaining.page explaining.insight explaining.versus explaining.report
explaining.saved
recovery recovery.recipe recovery.augmentation recovery.features recovery.normalization
recovery.objective recovery.scoring recovery.checkpoints recovery.supply recovery.status
recovery.interrupts
recovery.shampoo recovery.updating recovery.training recovery.fine_tuning
saving deepening.probing deepening.deepening searching progressive recovering slimming
explaining.defaults explaining.explaining explaining.notebook
explaining.drawing explaining.figures
__init__
cli.values cli.signals cli.showing cli.failures cli.writing cli.originals cli.reading cli.slim
cli.finetune cli.verify cli.deepen
cli.export cli.bench cli.measure cli.compare cli.diff cli.explain cli.demo cli.app cli
__main__
"""
ORDER = [str(name) for name in LAYOUT.split()]

TYPING_ONLY = ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def modules() -> dict[str, Path]:
    """Every module by its name below `onebyone`; packages by their own name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)] = path
    return found


def imports(tree: ast.AST, names: set[str]) -> Iterator[tuple[str, int]]:
    """The modules of ours that run when this code runs, with the line that asks for them."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in TYPING_ONLY:
            for other in node.orelse:
                yield from imports(other, names)
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "onebyone":
                    yield alias.name.removeprefix("onebyone").lstrip(".") or "__init__", node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield from _imported_from(node, names)
        yield from imports(node, names)


def _imported_from(node: ast.ImportFrom, names: set[str]) -> Iterator[tuple[str, int]]:
    assert node.level == 0, f"line {node.lineno}: imports are written in full"
    if (node.module or "").split(".")[0] != "onebyone":
        return
    base = (node.module or "").removeprefix("onebyone").lstrip(".")
    for alias in node.names:
        inner = f"{base}.{alias.name}".lstrip(".")
        yield inner if inner in names else base or "__init__", node.lineno


def backward_imports(name: str, source: str, order: list[str]) -> list[str]:
    """What a module imports that does not stand above it in the order, in words."""
    allowed = set(order[: order.index(name)])
    return [
        f"onebyone.{name}, line {line}, imports onebyone.{other}"
        for other, line in imports(ast.parse(source), set(order))
        if other not in allowed
    ]


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == sorted(modules())
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_one_way(name: str) -> None:
    assert backward_imports(name, modules()[name].read_text(encoding="utf-8"), ORDER) == []


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from onebyone.conv import ConvSpec", False),
        ("import onebyone.planning", True),
        ("def late():\n    from onebyone.slimming import slim", True),
        ("class A:\n    def late(self):\n        import onebyone.saving as s", True),
        ("from onebyone import slim", True),
        ("from onebyone.factorize import fit", False),
        ("from onebyone.cli import values", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import onebyone.saving", False),
        ("if not TYPE_CHECKING:\n    pass\nelse:\n    import onebyone.saving", True),
        ("try:\n    import onebyone.forms\nexcept ImportError:\n    pass", True),
        ("import torch", False),
    ],
)
def test_a_planted_import_is_seen(source: str, wrong: bool) -> None:
    assert bool(backward_imports("statistics", source, ORDER)) == wrong


def test_no_module_without_a_subject() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    assert [n for n in modules() if vague & {p.strip("_") for p in n.split(".")}] == []


def test_public_names_are_sorted_and_importable() -> None:
    assert onebyone.__all__ == sorted(onebyone.__all__)
    assert set(onebyone.__all__) == set(onebyone._HOMES)
    assert set(onebyone.__all__) <= set(dir(onebyone))
    for name in onebyone.__all__:
        value = getattr(onebyone, name)
        home = f"onebyone.{onebyone._HOMES[name]}"
        if isinstance(value, ModuleType):
            assert value.__name__ == home
            continue
        assert value.__module__ == home or value.__module__.startswith(home + ".")
    with pytest.raises(AttributeError, match="no attribute 'slimmer'"):
        _ = onebyone.slimmer  # type: ignore[attr-defined]


def heavy_modules(code: str) -> set[str]:
    """Slow packages that are loaded in a fresh process after this code."""
    probe = "import sys; print([m for m in ('torch', 'torchvision', 'numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{probe}"], capture_output=True, text=True, check=True
    )
    return set(ast.literal_eval(done.stdout.strip().splitlines()[-1]))


def test_the_import_is_instant() -> None:
    assert heavy_modules("import onebyone") == set()
    assert "torch" in heavy_modules("import onebyone; onebyone.slim")


COMMANDS = (
    "slim", "finetune", "deepen", "verify", "export", "bench", "measure", "compare", "diff", "explain",
    "demo",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_their_own_help_begins_with(name: str) -> None:
    command = getattr(importlib.import_module(f"onebyone.cli.{name}"), name)
    assert LISTED[name] == inspect.getdoc(command).split("\n\n")[0].replace("\n", " ")
    assert set(LISTED) == set(COMMANDS)


@pytest.mark.parametrize("command", [[], *([c] for c in COMMANDS)])
def test_help_needs_no_torch(command: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['onebyone', *{command!r}, '--help']\n"
        "from onebyone.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )
    assert "torch" not in heavy_modules(code)
