"""Arguments of the Python functions: what is no number, seed, budget or recipe is told by its name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import onebyone as obo
from onebyone.errors import BudgetError, DataError, OneByOneError
from onebyone.pools import open_pool
from onebyone.preprocessing import Preprocess


def net(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4),
    ).eval()  # fmt: skip


def images(n: int = 24) -> obo.Images:
    generator = torch.Generator().manual_seed(1)
    return obo.Images(torch.randn(n, 3, 8, 8, generator=generator), torch.arange(n) % 4)


slimmed = partial(obo.slim, net(), images(), macs=0.7, latency=False)
observed = partial(obo.observe, net(), images())
tuned = partial(obo.fine_tune, net(), images(), epochs=1)
measured = partial(obo.measure, net(), images().inputs[:1])
benched = partial(obo.bench, net(), images().inputs[:1], runtimes="eager")
compared = partial(obo.compare, "4x6x6", "4x6x6", latency=False)
CALLS = {"measured": measured, "slimmed": slimmed, "benched": benched}
deepened = partial(obo.deepen, net(), images().inputs[:1], obo.Budget(macs=2.0**0), reference=net())


@pytest.mark.parametrize(
    ("call", "name", "wrong"),
    [
        (slimmed, "seed", (1.5, "a", None, True, 2**70)),
        (slimmed, "memory", (0, -1, "x", 0.5, float("nan"))),
        (slimmed, "calibration", (0, -1, 1.5, "x")),
        (slimmed, "held_out", (1.5, -1, 24)),
        (observed, "seed", (1.5, "a", 2**70)),
        (observed, "memory", (0, "x")),
        (obo.Recipe, "seed", (1.5, 2**70)),
        (obo.Recipe, "batch_size", (0, 1.5, True)),
        (images().take, "n", (0, 1.5, "x")),
        (images().split, "held_out", (0, 24, 1.5)),
        (tuned, "held_out", (24, -1, 1.5)),
        (partial(obo.load, "timm:resnet18", weights="random"), "seed", (2.5,)),
        (deepened, "seed", ("x",)),
        (partial(deepened, data=images()), "batches", (0, "x")),
        (slimmed, "threads", (0, 1.5)),
        (benched, "batch", (0, -1, 1.5, "x")),
        (benched, "seconds", (-1, float("nan"), float("inf"), "x")),
        (partial(measured, latency=True), "seconds", (-1, float("nan"), "x")),
        (compared, "bias", ("x", 1)),
        (partial(compared, latency=True), "seconds", (float("nan"),)),
    ],
)
def test_an_argument_that_does_not_fit_is_told(
    call: Callable[..., Any], name: str, wrong: Any
) -> None:
    for value in wrong:
        with pytest.raises(OneByOneError) as raised:
            call(**{name: value})
        said = str(raised.value)
        assert f"{name}={value!r}" in said or f"{value} of {24}" in said, said


@pytest.mark.parametrize(
    ("call", "given", "said"),
    [
        ("measured", {"batch": 2.5}, "a batch of 2.5 cannot be made"),
        ("measured", {"batch": "2"}, "a batch of '2' cannot be made"),
        ("measured", {"latency": True, "threads": 1.5}, "nothing computes with 1.5 threads"),
        ("measured", {"latency": True, "threads": "2"}, "nothing computes with '2' threads"),
        ("slimmed", {"runtime": "foo"}, "'foo' is no runtime"),
        ("slimmed", {"steps": True}, "True steps do not fit"),
        ("slimmed", {"finetune_epochs": "1"}, "finetune_epochs='1' does not fit"),
        ("slimmed", {"runtime": 3}, "3 is no runtime"),
        ("benched", {"runtimes": "foo"}, "'foo' is no runtime"),
    ],
)
def test_what_does_not_fit_is_told_in_other_words(call: str, given: Any, said: str) -> None:
    with pytest.raises(OneByOneError, match=said):
        CALLS[call](**given)


def test_names_in_one_text() -> None:
    found = obo.bench(net(), images().inputs[:1], runtimes="eager,channels-last", seconds=0.05)
    assert {run.name for run in found.runs} == {"eager", "channels-last"}
    assert obo.Recipe(augment="shift,mirror").augment == ("shift", "mirror")  # type: ignore[arg-type]
    with pytest.raises(OneByOneError, match="augment 'turn' is not known"):
        obo.Recipe(augment="turn")  # type: ignore[arg-type]


def test_no_picture_is_larger_than_memory() -> None:
    with pytest.raises(DataError, match="are the most that are taken: give a smaller size"):
        Preprocess((3, 1_000_000, 1_000_000), (0.5,), (0.5,))


@pytest.mark.parametrize("call", [slimmed, tuned])
def test_a_recipe_is_a_recipe(call: Callable[..., Any]) -> None:
    with pytest.raises(OneByOneError, match=r"recipe=\{'epochs': 1\} does not fit: give a Recipe"):
        call(recipe={"epochs": 1})
    with pytest.raises(OneByOneError, match="recipe="):
        call(recipe={})


def test_a_budget_is_a_budget() -> None:
    with pytest.raises(BudgetError, match=r"the budget is 0\.5: give a Budget"):
        obo.plan(net(), observed(), 0.5)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match=r"the budget is 1\.0: give a Budget"):
        obo.deepen(net(), images().inputs[:1], 1.0, reference=net())  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [2e9, np.float64(2e9), np.int64(1 << 31), float("inf")])
def test_any_number_of_bytes_is_memory(memory: float) -> None:
    assert slimmed(memory=memory).plan == slimmed().plan


def test_numbers_of_numpy_are_numbers() -> None:
    """Law: a numpy number does what Python's own does."""
    one = slimmed(seed=np.int64(3), held_out=np.int32(6), calibration=np.int64(12))
    other = slimmed(seed=3, held_out=6, calibration=12)
    assert one.plan == other.plan
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    parts = images().split(np.float32(0.25))
    assert [len(p) for p in parts] == [18, 6]
    assert torch.equal(parts[1].inputs, images().split(0.25)[1].inputs)
    assert slimmed(steps=np.int64(1)).plan == slimmed().plan
    recipe = obo.Recipe(epochs=np.int64(2), learning_rate=np.float32(0.5))  # type: ignore[arg-type]
    assert (recipe.epochs, recipe.rate) == (2, 0.5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"size": 224}, "size 224 is not C×H×W"),
        ({"size": (3, 8.5, 8)}, "is not C×H×W"),
        ({"mean": 0.5}, "mean 0.5 does not fit: give a number for each channel"),
        ({"std": (float("nan"),)}, "std .* does not fit"),
        ({"resize": "abc"}, "resize 'abc' does not fit: give the shorter side's length"),
        ({"resize": 0}, "resize 0 does not fit"),
        ({"resize": (1, 2, 3)}, "resize .* does not fit"),
    ],
)
def test_how_pictures_become_inputs(given: dict[str, Any], said: str) -> None:
    right: dict[str, Any] = {"size": (3, 8, 8), "mean": (0.5,), "std": (0.5,), "resize": 9}
    assert Preprocess(**right).resize == 9
    with pytest.raises(DataError, match=said):
        Preprocess(**right | given)


@pytest.mark.parametrize("size", [32, "3x32x32", (3, 0, 32), (3, "8", 8), ()])
def test_a_size_to_load_with(size: Any) -> None:
    with pytest.raises(OneByOneError, match=r"input_size=.* does not fit: give the lengths C×H×W"):
        obo.load("demo", input_size=size)
    assert obo.load("demo", input_size=[1, 28, 28]).input_size == (1, 28, 28)  # type: ignore[arg-type]


def test_labels_of_any_whole_type() -> None:
    given = obo.Images(images().inputs, (torch.arange(24) % 4).to(torch.int32))
    assert given.labels is not None
    assert given.labels.dtype == torch.int64


def test_what_rewrite_is_given(tmp_path: Path) -> None:
    plan = obo.plan(net(), observed(), obo.Budget(macs=0.6))
    with pytest.raises(OneByOneError, match="statistics= is Plan"):
        obo.rewrite(net(), plan, images(), statistics=plan)  # type: ignore[arg-type]
    with pytest.raises(OneByOneError, match="the network fails on an input of shape 24×1×8×8"):
        obo.rewrite(net(), plan, images().inputs[:, :1], statistics=observed())
    with pytest.raises(OneByOneError, match="the plan is 'plan': give a Plan"):
        obo.write_plan("plan", tmp_path / "plan.json")  # type: ignore[arg-type]
    assert not (tmp_path / "plan.json").exists()


def test_held_out_images_can_be_a_number_wherever_they_are_taken() -> None:
    recipe = obo.Recipe(batch_size=4, epochs=1, precision="float32")
    result = obo.fine_tune(net(), images(), held_out=0.25, recipe=recipe)
    assert result.held_out is not None
    assert len(result.held_out) == 6
    result = obo.fine_tune(net(), images(), held_out=5, recipe=recipe)
    assert result.held_out is not None
    assert len(result.held_out) == 5
    deep = obo.deepen(
        net(),
        images().inputs[:1],
        obo.Budget(macs=1.0),
        reference=net(32),
        data=images(),
        held_out=0.5,
    )
    assert deep.verification.images == 12
    batches = [(images().inputs, images().labels)]
    with pytest.raises(DataError, match="of the batches of list none can be held out"):
        obo.fine_tune(net(), batches, held_out=4, recipe=recipe)


def test_a_training_whose_only_held_out_file_is_broken_goes_on(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(20):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    preprocess = Preprocess((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
    pool = open_pool(tmp_path, preprocess)
    held_out = pool.split(1, 0)[1]
    broken = pool.source.files[int(held_out.places[0])]  # type: ignore[union-attr]
    broken.write_bytes(b"no picture")
    result = obo.fine_tune(
        net(), tmp_path, preprocess=preprocess,
        recipe=obo.Recipe(batch_size=4, epochs=1, precision="float32"),
    )  # fmt: skip
    assert result.held_out is None
    assert any("no held-out images" in note for note in result.notes)
    assert any(broken.name in note for note in result.notes)
