"""Exports: what other runtimes compute, the checks on it, and files that appear whole or not at all."""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import onebyone as obo
from onebyone import files
from onebyone.errors import DataError, MissingExtraError, ModelError, OutputError, line_of
from onebyone.exporting import export as exporting
from onebyone.exporting import targets
from onebyone.exporting.checking import LIMITS, Limit, check
from onebyone.exporting.export import examine
from onebyone.exporting.folding import fold
from onebyone.exporting.network import Network, exported, refusal
from onebyone.exporting.program import export_program
from onebyone.exporting.rechecking import read_about, recheck
from onebyone.exporting.records import check_replaceable, read_records, write_record
from onebyone.exporting.targets import TARGETS, target_of
from onebyone.loading.programs import batch_free

ONNX = pytest.mark.skipif(
    TARGETS["onnx"].missing is not None, reason="onnx, onnxscript or onnxruntime is missing"
)
EVERY = [(name, dtype) for name, target in TARGETS.items() for dtype in target.dtypes]


def trained(model: nn.Module) -> nn.Module:
    """With statistics and scales of normalization that are not those of a new network."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model.eval()


def network() -> nn.Module:
    torch.manual_seed(0)
    return trained(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )
    )  # fmt: skip


def pictures(*shape: int, n: int = 24) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(3))


X = pictures(3, 12, 12)


class Branching(nn.Module):
    """A convolution that two layers read, and one that two normalizations share."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.one, self.two = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.norm(y) + y
        return self.one(self.twice(z)) * self.two(self.twice(z + 1))


class Outputs(nn.Module):
    """Two inputs; a dict of a map and of scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        z = self.conv(x) + self.conv(y)
        return {"map": z, "more": (z.mean((2, 3)), z.amax((2, 3)))}


# --- folding


def check_folding(model: nn.Module, x: Tensor, expected: int) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    program = export_program(model, x)
    assert not isinstance(program, str)
    with torch.no_grad():
        reference = model(torch.cat([x] * 3))
        assert fold(program) == expected
        found = program.module()(torch.cat([x] * 3))
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


FOLDED: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "2d, with and without bias": (network(), (3, 12, 12), 2),
    "1d": (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (3, 9), 1),
    "3d": (nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)), (2, 4, 4, 4), 1),
    "same": (nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4)), (3, 6, 6), 1),
    "linear": (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), (6,), 1),
    "without scales": (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), (3, 5, 5), 1,
    ),
    "no place for a bias": (
        nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False)),
        (3, 5, 5), 0,
    ),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)), (3, 5, 5), 0),
    "read twice": (Branching(), (3, 6, 6), 0),
    "after ReLU": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), (3, 5, 5), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_folding_keeps_the_outputs(name: str) -> None:
    model, shape, expected = FOLDED[name]
    check_folding(trained(copy.deepcopy(model)), pictures(*shape, n=1), expected)


def test_the_folded_program_has_no_tensor_too_many() -> None:
    program = export_program(network(), X[:1])
    assert not isinstance(program, str)
    fold(program)
    assert (
        len(program.state_dict) == 6
    )  # weights and biases of two convolutions and the linear layer


class ByValues(nn.Module):
    """What it computes depends on how many of its values are positive, as in a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten()
        found = y[torch.where(y > 0)[0]]
        return found[:2] if found.numel() > 4000 else found


class Positive(nn.Module):
    """As many values as are positive: so many cannot be known when it is exported."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten()[torch.where(x.flatten() > 0)[0]]


def test_a_free_size_of_an_output_is_not_that_of_the_batch() -> None:
    program = export_program(Positive(), pictures(3, 8, 8, n=1), any_batch=False)
    assert not isinstance(program, str)
    assert program.range_constraints
    assert not batch_free(program)
    free = export_program(nn.Conv2d(3, 4, 3), pictures(3, 8, 8, n=1))
    assert batch_free(free)


def test_a_network_that_cannot_be_traced_leaves_the_terminal_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """torch.export prints what it had traced until then, pages of it for a detector."""
    export_program(ByValues(), pictures(3, 8, 8, n=1))
    assert capfd.readouterr() == ("", "")


class Boxes(ByValues):
    """One of those that torchvision writes to be traced: the values above a threshold."""

    __module__ = "torchvision.models.detection.boxes"
    transform = None

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten()
        found = y[torch.where(y > self.least)[0]]
        traced = torch._C._get_tracing_state() is not None
        return found[:2] if not traced and found.numel() > 140 else found


@pytest.mark.parametrize("target", ["onnx", "openvino", "executorch"])
def test_a_detector_of_torchvision_is_traced(tmp_path: Path, target: str) -> None:
    """The file gives as many values as there are in an image; a target that needs a program says so."""
    pytest.importorskip({"onnx": "onnxruntime"}.get(target, target))
    torch.manual_seed(0)
    model, shown = Boxes(0.3).eval(), pictures(3, 8, 8, n=5)
    goal = tmp_path / f"model{TARGETS[target].suffix}"
    if target == "executorch":
        with pytest.raises(ModelError, match="it is traced for them"):
            obo.export(model, shown[:1], goal, images=shown)
        assert not list(tmp_path.iterdir())
        return
    found = obo.export(model, shown[:1], goal, images=shown, latency=False)
    assert not found.any_batch
    assert found.check.images == 5
    assert not found.check.empty
    assert not found.notes
    session = TARGETS[target].open(goal, 1)
    sizes = set()
    for image in shown.split(1):
        with torch.no_grad():
            wanted = model(image)
        (given,) = session([image])
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
        sizes.add(len(wanted))
    assert len(sizes) > 1


class Backbone(nn.Conv2d):
    """A part of a detector, as other networks have it."""

    __module__ = "torchvision.models.detection.backbone_utils"


@pytest.mark.parametrize("alone", [True, False])
def test_a_network_with_a_part_of_a_detector_is_none(tmp_path: Path, alone: bool) -> None:
    """Batches of it are checked, and its classes; with control flow of its own it is refused."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    shown, backbone = pictures(3, 8, 8, n=9), Backbone(3, 4, 8)
    model = backbone if alone else nn.Sequential(backbone, nn.Flatten())
    found = obo.export(model.eval(), shown[:1], tmp_path / "a.onnx", images=shown, latency=False)
    assert found.any_batch
    assert found.check.rows == 0
    assert found.check.agreement == (None if alone else 1.0)
    boxes = Boxes(0.3)
    boxes.conv = Backbone(3, 4, 3)  # type: ignore[assignment]
    with pytest.raises(ModelError, match="control flow"):
        obo.export(nn.Sequential(boxes).eval(), shown[:1], tmp_path / "b.onnx", latency=False)


def test_a_check_in_which_nothing_is_found_says_so(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    shown = pictures(3, 8, 8, n=2)
    found = obo.export(
        Boxes(1e9).eval(), shown[:1], tmp_path / "a.onnx", images=shown, latency=False
    )
    assert found.check.empty
    assert found.check.agreement is None
    assert len(found.notes) == 1
    assert "finds nothing" in found.notes[0]


def test_the_folder_of_a_detector_has_what_is_traced(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    shown = pictures(3, 8, 8, n=40)
    slimmed = obo.slim(Boxes(0.3).eval(), shown, macs=0.9, latency=False)
    folder = slimmed.save(tmp_path / "out")
    names = {p.name for p in folder.iterdir()}
    assert "model.onnx" in names
    assert "model.pt2" not in names
    notes = json.loads((folder / "plan.json").read_text())["notes"]
    assert any(n.startswith("no model.pt2: torch.export") for n in notes)
    assert any(n.startswith("model.onnx is traced") for n in notes)


# --- the check


def rows_of(
    *sides: tuple[list[list[float]], list[float], list[int]], limit: str = "float32"
) -> Any:
    """The check of a detector that finds the first of these, its file the other: boxes, scores, labels."""
    mine, theirs = (
        [torch.tensor(b).reshape(-1, 4), torch.tensor(s), torch.tensor(y, dtype=torch.int64)]
        for b, s, y in sides
    )

    class Found(nn.Module):
        __module__ = "torchvision.models.detection.found"
        transform = None

        def forward(self, x: Tensor) -> list[Tensor]:
            return mine

    return check(
        Found(), lambda inputs: theirs, (torch.zeros(1, 3, 4, 4),), limit=LIMITS[limit],
        any_batch=False, drawn=False,
    )  # fmt: skip


def boxes(n: int) -> tuple[list[list[float]], list[float], list[int]]:
    given = torch.rand(n, 4, generator=torch.Generator().manual_seed(0)) * 100
    return given.tolist(), torch.linspace(0.9, 0.1, n).tolist(), [i % 7 for i in range(n)]


def turned(one: tuple[Any, ...], n: int) -> tuple[Any, ...]:
    """The same rows, the first n of them in another order."""
    return tuple([*part[:n][::-1], *part[n:]] for part in one)


def test_a_detector_may_find_the_same_in_another_order() -> None:
    found = rows_of(boxes(50), turned(boxes(50), 5))
    assert (found.failure, found.agreement, found.rows, found.max_abs) == (None, 1.0, 50, 0.0)


@pytest.mark.parametrize("what", ["box", "score", "label", "fewer", "more", "nothing"])
def test_a_detector_must_find_the_same(what: str) -> None:
    b, s, y = boxes(20)
    if what == "box":
        b[3][2] += 1
    elif what == "score":
        s[3] += 0.01
    elif what == "label":
        y[3] += 1
    elif what == "fewer":
        b, s, y = b[:-1], s[:-1], y[:-1]
    elif what == "more":
        b, s, y = [*b, [0.0, 0.0, 9.0, 9.0]], [*s, 0.05], [*y, 1]
    else:
        b, s, y = [], [], []
    found = rows_of(boxes(20), (b, s, y))
    assert found.agreement == pytest.approx({"more": 20 / 21, "nothing": 0.0}.get(what, 0.95))
    assert "the same as PyTorch" in found.failure
    assert "of 20 things" in found.failure


def test_a_detector_that_finds_nothing_on_both_sides() -> None:
    found = rows_of(([], [], []), ([], [], []))
    assert (found.failure, found.agreement, found.empty) == (None, None, True)


def test_rounding_of_a_detector_is_within_the_limit() -> None:
    b, s, y = boxes(20)
    found = rows_of(boxes(20), ([[v + 0.01 for v in box] for box in b], s, y))
    assert found.failure is None
    assert found.max_abs == pytest.approx(0.01, rel=1e-3)
    assert 0 < found.error < 1e-3


def table(*rows: list[float]) -> nn.Module:
    """A network that looks its outputs up."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.tensor(rows))

        def forward(self, x: Tensor) -> Tensor:
            return self.rows[x.long()]

    return Table()


def checked(expected: nn.Module, found: nn.Module, n: int, **options: Any) -> Any:
    limit = options.pop("limit", LIMITS["float32"])

    def session(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [found(*inputs)]

    numbers = (torch.arange(n).float(),)
    return check(
        expected,
        session,
        numbers,
        limit=limit,
        any_batch=options.pop("any_batch", True),
        drawn=False,
    )


class Sums(nn.Module):
    """Takes as many pictures as there are, or one and others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, *pictures: Tensor) -> Tensor:
        return self.layer(torch.stack(pictures).sum(0))


class First(Sums):
    def forward(self, first: Tensor, *pictures: Tensor) -> Tensor:  # pyright: ignore
        return super().forward(first, *pictures)


@pytest.mark.parametrize("kind", [Sums, First])
@pytest.mark.parametrize("number", [1, 3])
def test_any_batch_of_any_number_of_inputs(kind: type[nn.Module], number: int) -> None:
    model, pictures = kind().eval(), [torch.randn(5, 3, 6, 6) for _ in range(number)]
    program = export_program(model, tuple(x[:1] for x in pictures))
    assert not isinstance(program, str)
    assert batch_free(program)
    torch.testing.assert_close(program.module()(*pictures), model(*pictures))


@pytest.mark.parametrize("any_batch", [True, False])
def test_the_check_measures_the_largest_difference_and_the_classes(any_batch: bool) -> None:
    rows = [[10.0, 0.0], [0.0, 5.0], [1.0, 0.999], [3.0, 2.0]]
    others = [[10.0, 0.5], [0.0, 4.0], [0.999, 1.0], [2.5, 2.6]]
    found = checked(table(*rows), table(*others), 4, any_batch=any_batch)
    assert found.max_abs == pytest.approx(1.0)
    assert found.error == pytest.approx(0.1)
    assert found.agreement == 0.75  # the third image has two classes that are equally first
    assert "up to 0.1 of the largest output (1), and the limit is 0.001" in found.failure
    wide = checked(table(*rows), table(*others), 4, limit=Limit(0.2, 0.9))
    assert "for 75.0% of 4 images, and the limit is 90%" in wide.failure
    assert checked(table(*rows), table(*others), 4, limit=Limit(0.2, 0.7)).failure is None


def test_nan_fails_the_check() -> None:
    rows = [[1.0, 2.0], [3.0, 4.0]]
    found = checked(table(*rows), table(rows[0], [float("nan"), 0.0]), 2)
    assert found.failure is not None


@pytest.mark.parametrize("least", [float("inf"), float("-inf")])
def test_equal_infinities_are_not_apart(least: float) -> None:
    rows = [[1.0, least, 2.0], [4.0, least, 3.0]]
    others = [[1.0, least, 2.0], [4.0, least, 3.2]]
    assert checked(table(*rows), table(*rows), 2).failure is None
    found = checked(table(*rows), table(*others), 2)
    assert found.error == pytest.approx(0.05)  # of the largest that is finite
    assert checked(table(*rows), table([1.0, 9.0, 2.0], rows[1]), 2).failure is not None


class Whole(nn.Module):
    """Scores, and a whole number for each image and pixel."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, x: Tensor) -> Tensor:
        return self.values[x.long()]


@pytest.mark.parametrize(
    ("mine", "theirs", "same"),
    [
        ([7, 10_000_000_007, 3], [7, 2**31 - 1, 3], 2 / 3),
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([True, False, False, True], [True, True, False, True], 3 / 4),
        ([0, 255, 100], [1, 255, 104], 2 / 3),  # 2 % of the largest are 5.1, 0.1 % are 0.255
        ([0, 0], [0, 0], 1.0),
    ],
)
def test_whole_numbers_are_compared(mine: list[int], theirs: list[int], same: float) -> None:
    sides = [Whole(torch.tensor(side).repeat(3, 1)) for side in (mine, theirs)]
    tight = Limit(0.001, 0.99)
    if 255 in mine:
        wide = checked(*sides, 3, limit=Limit(0.5, 0.99))
        assert (wide.same, wide.failure) == (1.0, None)
        tight = Limit(0.005, 0.99)
    found = checked(*sides, 3, limit=tight)
    assert found.same == pytest.approx(same)
    assert (found.error, found.agreement, found.empty) == (0.0, None, False)
    if same < 1:
        assert f"{same:.1%} of the whole numbers in an output are PyTorch's" in found.failure
        assert "the limit is 99%" in found.failure
    else:
        assert found.failure is None


class Turned(nn.Module):
    """Its outputs have the images along other axes than the first, or along two."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rows = torch.stack([x, x + 1, 2 - x], 1)
        return rows.T, rows @ rows.T, rows.permute(1, 0)[None]


@pytest.mark.parametrize("any_batch", [True, False])
def test_outputs_whose_first_axis_is_not_the_images(any_batch: bool) -> None:
    def run(off: float) -> Any:
        numbers = (torch.arange(24).float(),)
        session = lambda given: [y + off for y in Turned()(*given)]  # noqa: E731
        return check(
            Turned(), session, numbers, limit=LIMITS["float32"], any_batch=any_batch, drawn=False
        )

    assert (run(0.0).failure, run(0.0).error) == (None, 0.0)
    assert run(0.0).agreement is None
    assert "by up to" in run(0.5).failure


def test_other_shapes_fail_the_check() -> None:
    with pytest.raises(ModelError, match=r"shapes \[\(1, 3\)\] and PyTorch's \[\(1, 2\)\]"):
        checked(table([1.0, 2.0]), table([1.0, 2.0, 3.0]), 1)


class Sequences(nn.Module):
    """Scores with time as their first axis, as nn.CTCLoss takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 8, 3, padding=1)
        self.scores = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.features(x).mean(2).permute(2, 0, 1)).log_softmax(-1)


class Named(nn.Module):
    """Scores, and the number under which the best class is known elsewhere."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3)
        self.register_buffer("numbers", torch.arange(6) * step + 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.features(x).mean((2, 3))
        return scores, self.numbers[scores.argmax(1)]


def for_runtime(name: str) -> None:
    if TARGETS[name].missing is not None:
        pytest.skip(TARGETS[name].missing)


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_time_may_be_the_first_axis_of_an_export(name: str, tmp_path: Path) -> None:
    for_runtime(name)
    path = tmp_path / f"model{TARGETS[name].suffix}"
    model, x = Sequences().eval(), torch.randn(12, 1, 8, 10)
    found = obo.export(model, x, path, latency=False)
    assert (found.any_batch, found.check.images) == (True, 16)
    assert found.check.error < 1e-5
    torch.testing.assert_close(
        TARGETS[name].open(path, 1)([x])[0], model(x).detach(), rtol=1e-4, atol=1e-5
    )


class Bytes(nn.Module):
    """Takes pictures as they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float() / 255).mean((2, 3))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_networks_that_take_bytes_are_checked_on_images(
    name: str, dtype: str, tmp_path: Path
) -> None:
    for_runtime(name)
    if dtype == "int8" and name == "openvino":
        pytest.importorskip("nncf")
    path = tmp_path / f"model{TARGETS[name].suffix}"
    images = torch.arange(16 * 3 * 64).reshape(16, 3, 8, 8) % 251
    model = Bytes().eval()
    found = obo.export(
        model, images[:1].byte(), path, images=images.float(), dtype=dtype, latency=False
    )
    assert (found.check.drawn, found.check.failure) == (False, None)
    assert read_about(path)["inputs"][0]["dtype"] == "uint8"
    with pytest.raises(DataError, match=r"uint8 and the images have values from 0 to 0\.98"):
        obo.export(model, images[:1].byte(), path, images=images / 255, latency=False)


class Also(nn.Module):
    """Gives out what is no tensor, or no feature map, beside its scores."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, padding=1)
        self.what = what

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        if self.what == "others":
            return {"name": "scores", "y": y, "more": [None, 3, 0.5, len(x), y.mean(1)]}
        return y, self.layer.bias


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_outputs_that_are_no_tensors_are_left_out_with_a_note(name: str, tmp_path: Path) -> None:
    for_runtime(name)
    path = tmp_path / f"model{TARGETS[name].suffix}"
    model = Also("others").eval()
    found = obo.export(model, X[:1], path, latency=False)
    assert found.notes == (
        "outputs that are no tensors are not in the file: 'scores', None, 3, 0.5, 1",
    )
    assert found.any_batch
    one, other = TARGETS[name].open(path, 1)([X])
    expected = model(X)
    torch.testing.assert_close(one, expected["y"].detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other, expected["more"][4].detach(), rtol=1e-4, atol=1e-5)


@ONNX
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_weight_may_be_an_output(dtype: str, tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", Also("weight").eval()
    obo.export(model, X[:1], path, dtype=dtype, images=X, latency=False)
    _, bias = TARGETS["onnx"].open(path, 1)([X])
    torch.testing.assert_close(bias, model.layer.bias.detach(), rtol=2e-2, atol=1e-2)


@ONNX
def test_grouped_transposed_convolutions_stay_in_float_in_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 8, 3, groups=2)).eval()
    found = obo.export(model, X[:1], tmp_path / "model.onnx", dtype="int8", images=X, latency=False)
    assert found.check.error < 0.1


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize("padding", [(1, 1), (0, 2), (3, 0)])
def test_circular_padding(padding: tuple[int, int], name: str, tmp_path: Path) -> None:
    for_runtime(name)
    path = tmp_path / f"model{TARGETS[name].suffix}"
    around = nn.Conv2d(3, 4, 3, padding=padding, padding_mode="circular", stride=2)
    model = nn.Sequential(around, nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"))
    found = obo.export(model.eval(), X[:1], path, latency=False)
    assert found.any_batch
    assert found.check.error < 1e-5


class Within(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "dropout":
            return nn.functional.dropout(x, 0.5)
        return torch.linalg.inv(x[:, :, :4, :4])


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("openvino", "dropout", r"the operator Dropout of the layer 1 \(Training mode is not"),
        ("openvino", "inverse", "the operator aten::linalg_inv_ex of the layer 1 "),
        ("onnx", "inverse", "ONNX does not take the operator aten::linalg_inv_ex of the layer 1 "),
    ],
)
def test_what_a_target_does_not_take_is_named_with_its_layer(
    name: str, kind: str, said: str, tmp_path: Path
) -> None:
    for_runtime(name)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), Within(kind)).eval()
    with pytest.raises(ModelError, match=said):
        obo.export(model, X[:1], tmp_path / f"model{TARGETS[name].suffix}", latency=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_numbers_of_classes_are_checked(name: str, tmp_path: Path) -> None:
    for_runtime(name)
    torch.manual_seed(0)
    path = tmp_path / f"model{TARGETS[name].suffix}"
    assert obo.export(Named(3).eval(), X[:1], path, latency=False).check.same == 1.0
    if name == "openvino":  # which computes whole numbers in 32 bits
        path.unlink()
        with pytest.raises(
            ModelError, match=r"0\.0% of the whole numbers in an output are PyTorch's"
        ):
            obo.export(Named(10**10).eval(), X[:1], path, latency=False)
        assert not path.exists()


# --- files


@pytest.mark.parametrize("name", [*TARGETS])
def test_a_folder_is_never_replaced_by_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets.Target, "require", lambda self: None)
    for file in TARGETS[name].files(tmp_path / f"model{TARGETS[name].suffix}"):
        file.mkdir()
        (file / "work").write_text("of a year")
        with pytest.raises(OutputError, match=f"{file.name} is a folder: give the name of a file"):
            obo.export(network(), X[:1], tmp_path / f"model{TARGETS[name].suffix}", latency=False)
        assert (file / "work").read_text() == "of a year"
        (file / "work").unlink()
        file.rmdir()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, obo.Export, nn.Module]:
    if TARGETS["onnx"].missing is not None:
        pytest.skip("onnx, onnxscript or onnxruntime is missing")
    path = tmp_path_factory.mktemp("made") / "model.onnx"
    model = network().train()
    preprocess = obo.Preprocess((3, 12, 12), (0.5,), (0.25,))
    found = obo.export(
        model, X[:1], path, images=X, original=model, preprocess=preprocess, classes=("a", "b")
    )
    return path, found, model


@ONNX
class TestOnnx:
    def test_another_session_computes_the_same(self, made: Any) -> None:
        import onnxruntime

        path, _, model = made
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        assert given.shape[1:] == [3, 12, 12]
        assert isinstance(given.shape[0], str)
        for n in (1, 5):
            (found,) = session.run(None, {given.name: X[:n].numpy()})
            expected = copy.deepcopy(model).eval()(X[:n]).detach()
            torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-4, atol=1e-5)

    def test_the_network_stays_as_it_was(self, made: Any) -> None:
        model = made[2]
        assert all(m.training for m in model.modules())
        torch.testing.assert_close(model.state_dict(), network().state_dict(), rtol=0, atol=0)
        assert all(p.requires_grad for p in model.parameters())

    def test_what_is_told(self, made: Any) -> None:
        path, found, _ = made
        assert found.size_bytes == path.stat().st_size
        assert abs(found.original_bytes - found.size_bytes) < 200  # only the metadata differ
        assert (found.check.images, found.check.drawn, found.check.agreement) == (24, False, 1.0)
        assert found.check.error < 1e-5
        one = [(t.after.threads, t.after.batch) for t in found.timings]
        assert one[:2] == [(1, 1), (1, 8)]
        assert all(t.before is not None and t.before.median_ms > 0 for t in found.timings)
        assert all(t.after.runtime.startswith("onnxruntime ") for t in found.timings)
        assert list(path.parent.iterdir()) == [path]

    def test_metadata_and_no_normalization(self, made: Any) -> None:
        import onnx

        graph = onnx.load(str(made[0])).graph
        assert not [n for n in graph.node if n.op_type == "BatchNormalization"]
        about = read_about(made[0])
        assert about["inputs"] == [{"shape": ["batch", 3, 12, 12], "dtype": "float32"}]
        assert about["preprocess"]["mean"] == [0.5]
        assert about["classes"] == ["a", "b"]
        assert about["batchnorm_folded"] == 2

    def test_checked_again(self, made: Any) -> None:
        path, _, model = made
        assert recheck(model, X[:1], path, images=X)[0].failure is None
        other = trained(nn.Sequential(*copy.deepcopy(network()), nn.Tanh()))
        found = examine(other, X[:1], path, latency=False)
        assert "its outputs differ" in (found.check.failure or "")
        assert (found.any_batch, found.check.drawn) == (True, True)

    @pytest.mark.parametrize("damage", [lambda b: b[:99], lambda b: b"", lambda b: b"\0" * 99])
    def test_a_damaged_file_is_refused(self, damage: Any, made: Any, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(damage(made[0].read_bytes()))
        with pytest.raises(ModelError, match=r"model.onnx says nothing of how onebyone wrote it"):
            examine(made[2], X[:1], path)

    def test_several_inputs_and_outputs(self, tmp_path: Path) -> None:
        model = Outputs()
        found = obo.export(model, (X[:1], X[1:2]), tmp_path / "x.onnx", latency=False)
        assert found.check.drawn
        assert found.any_batch
        assert found.check.agreement is None
        assert len(read_about(found.path)["inputs"]) == 2

    def test_several_inputs_are_checked_on_those_given(self, tmp_path: Path) -> None:
        model, pair, a, b = Outputs(), (X[:1], X[1:2]), X[:5], X[5:10]
        path = tmp_path / "x.onnx"
        for images in ({"x": a, "y": b}, {"y": b, "x": a}):
            found = obo.export(model, pair, path, images=images, latency=False)
            assert (found.check.images, found.check.drawn) == (5, False)
        again = examine(model, pair, path, images={"x": a[:3], "y": b[:3]}, latency=False)
        assert (again.check.images, again.check.drawn) == (3, False)
        with pytest.raises(DataError, match="by these names"):
            obo.export(model, pair, tmp_path / "y.onnx", images=a, latency=False)
        with pytest.raises(ModelError, match="give a tuple"):
            obo.export(model, {"x": a, "y": b}, tmp_path / "y.onnx")  # type: ignore[arg-type]
        assert not (tmp_path / "y.onnx").exists()

    def test_halves_become_float32(self, tmp_path: Path) -> None:
        model = network().half()
        found = obo.export(model, X[:1], tmp_path / "x.onnx", latency=False)
        assert found.check.error < 1e-5
        assert next(model.parameters()).dtype == torch.float16

    def test_no_layer_is_named_where_several_call_the_operator(self) -> None:
        layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
        program = exported(layers, (X[:1],))
        first, second = (n for n in program.graph.nodes if "conv2d" in str(n.target))
        told = str(refusal("ONNX", Network(program, (X[:1],)), ValueError("no aten::conv2d")))
        assert "does not take the operator aten::conv2d (ValueError)" in told
        for node, layer in ((first, "0"), (second, "2")):
            error = ValueError(f"no aten::conv2d in {node.name}")
            assert f"of the layer {layer} " in str(refusal("ONNX", Network(program, ()), error))

    def test_a_layer_whose_operator_is_not_taken_is_named(self, tmp_path: Path) -> None:
        class Odd(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.ops.onebyone_tests.odd(x)

        @torch.library.custom_op("onebyone_tests::odd", mutates_args=())
        def odd(x: Tensor) -> Tensor:
            return x.clone()

        @odd.register_fake
        def _(x: Tensor) -> Tensor:
            return torch.empty_like(x)

        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(Odd()))
        with pytest.raises(
            ModelError, match=r"does not take the operator onebyone_tests::odd of the layer 1\.0"
        ):
            obo.export(model, X[:1], tmp_path / "x.onnx")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("stands", [True, False])
    def test_a_failed_check_leaves_no_file(
        self, stands: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "model.onnx"
        if stands:
            path.write_bytes(b"what stood there")
        row = TARGETS["onnx"]

        def wrong(network: Any, path: Path) -> None:
            state = network.program.state_dict
            name = next(n for n in state if n.endswith("weight"))
            state[name] = nn.Parameter(1.2 * state[name])
            row.write(network, path)

        monkeypatch.setitem(targets.TARGETS, "onnx", replace(row, write=wrong))
        with pytest.raises(ModelError, match=r"ONNX export in float32 failed its check.*limit is"):
            obo.export(network(), X[:1], path, images=X)
        assert [p.name for p in tmp_path.iterdir()] == (["model.onnx"] if stands else [])
        assert not stands or path.read_bytes() == b"what stood there"


@pytest.mark.parametrize(("name", "dtype"), EVERY)
def test_every_target(name: str, dtype: str, tmp_path: Path) -> None:
    """The demo network, whose file must compute what PyTorch does, in every type that it takes."""
    target = TARGETS[name]
    if target.missing is not None:
        pytest.skip(f"{target.missing} is not installed")
    model, example = obo.load("demo")
    before = copy.deepcopy(model.state_dict())
    path = tmp_path / target.file_name(dtype)
    try:
        found = obo.export(
            model, example, path, dtype=dtype, images="demo:test", classes=("shirt",), latency=False
        )
    except MissingExtraError as error:
        pytest.skip(str(error))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert found.check.failure is None
    assert found.check.error < {"float32": 1e-4, "float16": 1e-2, "int8": 0.4}[dtype]
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in target.files(path)}
    assert {p.name for p in target.files(path)} <= set(files.EXPORTED)
    assert found.size_bytes == sum(p.stat().st_size for p in target.files(path))
    about = read_about(path)
    assert about["classes"] == ["shirt"]
    assert about["inputs"][0]["shape"] == ["batch" if found.any_batch else 1, 1, 28, 28]
    assert recheck(model, example, path, images="demo")[0].failure is None


@ONNX
@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_files_that_cannot_be_placed_leave_the_old_ones(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export of two files over another: whichever move fails, both old files are there again."""
    staged = tmp_path / "staged"
    staged.mkdir()
    goal = tmp_path / "model.xml"
    for name in ("model.xml", "model.bin"):
        (staged / name).write_text(f"new {name}")
        (tmp_path / name).write_text(f"old {name}")
    replaced, calls = exporting.os.replace, []

    def sometimes(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        replaced(source, target)

    monkeypatch.setattr(exporting.os, "replace", sometimes)
    with pytest.raises(OutputError, match=r"model\.xml cannot be written: No space left"):
        exporting._place(TARGETS["openvino"], staged / "model.xml", goal)
    assert {p.name: p.read_text() for p in tmp_path.glob("model.*")} == {
        "model.xml": "old model.xml", "model.bin": "old model.bin",
    }  # fmt: skip


@ONNX
def test_a_folder_of_pictures(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (20, 16), (40 * i, 90, 200)).save(tmp_path / f"{i}.png")
    preprocess = obo.Preprocess((3, 12, 12), (0.5,), (0.25,))
    path = tmp_path / "new" / "deep" / "MODEL.ONNX"
    found = obo.export(
        network(), X[:1], path, images=tmp_path, preprocess=preprocess, latency=False
    )
    assert (found.check.images, found.check.drawn) == (3, False)
    assert path.is_file()


@ONNX
def test_folders_made_for_nothing_go_again(tmp_path: Path) -> None:
    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ModelError):
        obo.export(Fickle(), X[:1], tmp_path / "new" / "deep" / "model.onnx")
    assert list(tmp_path.iterdir()) == []


# --- what is refused


def test_names_and_types() -> None:
    assert target_of(Path("a.b.onnx")).name == "onnx"
    assert target_of(Path("net.ncnn.param")).name == "ncnn"
    with pytest.raises(
        ModelError, match=r"model.bin says no target: give a file that ends in \.onnx"
    ):
        target_of(Path("model.bin"))
    with pytest.raises(ModelError, match="'coreml' is no target: give one of onnx, openvino"):
        target_of(Path("model.onnx"), "coreml")
    with pytest.raises(ModelError, match=r"its files end in \.xml"):
        target_of(Path("model.onnx"), "openvino")
    for target in TARGETS.values():
        for dtype in target.dtypes:
            assert target_of(Path(target.file_name(dtype))) is target


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "int8 without images": ({"dtype": "int8"}, DataError, "int8 takes the ranges"),
    "no such type": ({"dtype": "int4"}, ModelError, "'int4' is none of float32"),
    "other size": ({"images": pictures(3, 8, 8)}, DataError, "3×8×8 each and .* for 3×12×12"),
    "other file": ({"path": "model.txt"}, ModelError, "says no target"),
}  # fmt: skip


@ONNX
@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, tmp_path: Path) -> None:
    options, kind, message = REFUSED[name]
    path = tmp_path / options.get("path", "model.onnx")
    with pytest.raises(kind, match=message):
        obo.export(network(), X[:1], path, **{k: v for k, v in options.items() if k != "path"})
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_no_quantizer_makes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ncnn is not exported in int8"):
        obo.export(network(), X[:1], tmp_path / "m.ncnn.param", dtype="int8", images=X)


@pytest.mark.parametrize("name", TARGETS)
def test_a_missing_package_and_its_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda module: None)
    target = TARGETS[name]
    with pytest.raises(MissingExtraError, match=rf'pip install "onebyone\[{target.extra}\]"'):
        obo.export(network(), X[:1], tmp_path / target.file_name("float32"))


def test_every_extra_is_in_the_project_file() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    assert {t.extra for t in TARGETS.values()} <= set(project["project"]["optional-dependencies"])


@ONNX
def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(OutputError, match="cannot be written: Read-only file system"):
        obo.export(network(), X[:1], tmp_path / "model.onnx")


@ONNX
def test_a_network_that_cannot_be_traced(tmp_path: Path) -> None:
    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ModelError, match=r"torch.export cannot export .* must be traced"):
        obo.export(Fickle(), X[:1], tmp_path / "model.onnx")


def test_an_original_that_cannot_be_exported_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    job = exporting._Job(TARGETS["onnx"], "float32", (X[:1],), None, None, None)
    (note,) = job.write_original(Fickle(), {"after": tmp_path / "m.onnx"})
    assert "not compared with the original: torch.export cannot export" in note


# --- records


def test_records_of_a_folder(tmp_path: Path) -> None:
    assert read_records(tmp_path) == {}
    for name in ("model.onnx", "model.xml"):
        (tmp_path / name).write_bytes(b"x")
        write_record(tmp_path, {"file": name, "target": "onnx"})
    write_record(tmp_path, {"file": "model.onnx", "target": "again"})
    found = read_records(tmp_path)
    assert {n: e["target"] for n, e in found.items()} == {
        "model.onnx": "again",
        "model.xml": "onnx",
    }
    (tmp_path / "model.xml").unlink()
    write_record(tmp_path, {"file": "model.onnx", "target": "third"})
    assert list(read_records(tmp_path)) == ["model.onnx"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": "other"}', '{"schema": 1, "exports": 3}']
)
def test_damaged_records_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / files.EXPORTS).write_text(text)
    assert read_records(tmp_path) == {}


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    check_replaceable(path, "openvino")
    (tmp_path / "model.bin").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"model.bin exists and onebyone did not write it"):
        check_replaceable(path, "openvino")
    path.write_bytes(b"")
    write_record(tmp_path, {"file": "model.xml"})
    check_replaceable(path, "openvino")
    assert json.loads((tmp_path / files.EXPORTS).read_text())["exports"] == [{"file": "model.xml"}]


def test_a_traced_network_is_told_why_not() -> None:
    """TorchScript has no signature to look at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(network(), X[:1])
    assert isinstance(export_program(traced, X[:1]), str)  # type: ignore[arg-type]


class Conditional(nn.Module):
    """Kernels mixed for each image, in a convolution with as many groups as images (Yang 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 8, 4, 3, 3))
        self.stem, self.route, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), nn.Conv2d(8, 24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        mixed = torch.einsum("ne,eoihw->noihw", self.route(x.mean((2, 3))).softmax(1), self.experts)
        n, _, height, width = x.shape
        rows = x.reshape(1, n * 4, height, width)
        y = nn.functional.conv2d(rows, mixed.reshape(n * 8, 4, 3, 3), groups=n)
        return self.last(y.reshape(n, 8, height - 2, width - 2))


@ONNX
def test_what_is_taken_for_one_image_alone_is_written_for_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, image = Conditional().eval(), pictures(3, 12, 12, n=1)
    found = obo.export(model, image, tmp_path / "net.onnx", latency=False)
    assert not found.any_batch
    assert found.check.failure is None
    assert read_about(tmp_path / "net.onnx")["inputs"][0]["shape"][0] == 1
    slimmed = obo.slim(model, pictures(3, 12, 12, n=32), macs=0.7, latency=False)
    folder = slimmed.save(tmp_path / "out")
    assert (folder / "model.onnx").is_file()
    notes = obo.read_plan(folder / "plan.json").notes
    assert any(n.startswith("model.onnx for one image at a time: for any number, ") for n in notes)
    assert examine(slimmed.model, image, folder / "model.onnx", latency=False).check.failure is None


class Windows(nn.Module):
    """Attention inside windows, over five axes: images, windows, heads, pixels, channels of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        n, _, h, w = y.shape
        z = y.view(n, 2, 8, h // 4, 4, w // 4, 4).permute(0, 3, 5, 1, 4, 6, 2)
        z = z.reshape(n, h * w // 16, 2, 16, 8)
        z = nn.functional.scaled_dot_product_attention(z, z, z, is_causal=True)
        z = z.reshape(n, h // 4, w // 4, 2, 4, 4, 8).permute(0, 3, 6, 1, 4, 2, 5)
        return self.last(z.reshape(n, 16, h, w))


@ONNX
def test_attention_over_five_axes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = obo.export(Windows().eval(), pictures(3, 8, 8), tmp_path / "net.onnx", latency=False)
    assert found.any_batch
    assert found.check.failure is None


def test_what_openvino_says_first_is_not_the_reason() -> None:
    said = (
        "Exception from src/inference/src/cpp/core.cpp:132:\nException from src/a.cpp:7:\n"
        "Check 'ok' failed at src/b.cpp:9:\nCPU plug-in doesn't support Squeeze operation"
    )
    assert line_of(RuntimeError(said)) == "CPU plug-in doesn't support Squeeze operation"
    assert line_of(RuntimeError("\n one \ntwo")) == "one"
    assert line_of(RuntimeError("Exception from nowhere")) == "Exception from nowhere"
    assert line_of(RuntimeError()) == ""
