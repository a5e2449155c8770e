"""`onebyone finetune` and `slim --steps`: what they write, how they end, what they say."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import onebyone as obo
from onebyone.cli.app import app

QUICK = ["--batch", "16", "--precision", "float32", "--augment", "none", "--no-latency"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labeled images as an array file."""
    data = obo.open_images("demo:test").take(300)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    assert data.labels is not None
    np.savez(path, images=data.inputs.numpy(), labels=data.labels.numpy())
    return path


@pytest.fixture(scope="module")
def slimmed(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A slimmed folder."""
    out = tmp_path_factory.mktemp("slimmed") / "out"
    done = run(
        "slim", "demo", "--data", images, "--macs", 0.15, "--images", 64, "-o", out, "--no-latency"
    )
    assert done.exit_code == 0, done.output
    return out


def test_the_result_is_a_slimmed_folder(slimmed: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    done = run("finetune", slimmed, "--data", images, "--epochs", 1, "-o", out, "--json", *QUICK)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    plan = obo.read_plan(out / "plan.json")
    before = obo.read_plan(slimmed / "plan.json")
    assert plan.decisions == before.decisions
    assert any("fine-tuned on" in note and "accuracy" in note for note in plan.notes)
    assert any("chose the weights" in note for note in plan.notes)
    assert report["after"]["macs"] == plan.macs_after
    assert not list(tmp_path.glob("*.checkpoint*"))
    one = obo.open_images("demo").take(4).inputs
    with torch.no_grad():
        gap = (obo.load(out).model(one) - obo.load(slimmed).model(one)).abs().max()
    kept = any("best after epoch 0 " in f"{note} " for note in plan.notes)
    assert kept == (float(gap) == 0)


def test_folders_above_are_made_and_the_working_one_is_told(
    slimmed: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "tuned"
    done = run("finetune", slimmed, "--data", images, "-o", out, "--epochs", 1, *QUICK)
    assert done.exit_code == 0, done.output
    assert (out / "plan.json").is_file()
    monkeypatch.chdir(out)
    done = run("finetune", ".", "--data", images, "--epochs", 1, *QUICK)
    assert done.exit_code == 2
    assert "where this command reads or works" in done.output.replace("\n", " ")


def test_in_place(slimmed: Path, images: Path, tmp_path: Path) -> None:
    import shutil

    own = tmp_path / "own"
    shutil.copytree(slimmed, own)
    done = run("finetune", own, "--data", images, "--epochs", 0.5, "--held-out", images, *QUICK)
    assert done.exit_code == 0, done.output
    assert any("fine-tuned" in note for note in obo.read_plan(own / "plan.json").notes)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own"]


def test_slim_in_steps(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(
        "slim", "demo", "--data", images, "--macs", 0.2, "--images", 64, "--steps", 2,
        "--finetune-epochs", 0.3, "-o", out, "--no-latency",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    plan = obo.read_plan(out / "plan.json")
    assert len(plan.schedule) == 2
    assert plan.macs_after <= 0.2 * plan.macs_before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", "0"], "epochs=0"),
        (["--optimizer", "lion"], "lion"),
        (["--batch", "4000"], "fill no batch of 4,000"),
        (["--resume"], "there is no checkpoint"),
        (["--augment", "spin"], "'spin' is not known"),
        (["--device", "moon"], "the device 'moon' cannot be used here"),
        (["--learning-rate", "1e12", "--epochs", "9"], "give a lower learning rate"),
    ],
)
def test_bad_input(
    options: list[str], said: str, slimmed: Path, images: Path, tmp_path: Path
) -> None:
    done = run("finetune", slimmed, "--data", images, "-o", tmp_path / "new", *QUICK, *options)
    assert done.exit_code == 2, done.output
    assert said in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_folders_that_are_not_ours(images: Path, tmp_path: Path) -> None:
    done = run("finetune", tmp_path, "--data", images)
    assert done.exit_code == 2
    assert "no folder that onebyone wrote" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("in_place", [False, True])
def test_an_interrupt_keeps_the_best_and_resumes(
    in_place: bool, slimmed: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tuned"
    start, options = (out, ()) if in_place else (slimmed, ("-o", str(out)))
    if in_place:
        shutil.copytree(slimmed, out)
    command = [
        sys.executable, "-m", "onebyone", "finetune", str(start), "--data", str(images), *options,
        "--epochs", "4", *QUICK,
    ]  # fmt: skip
    checkpoint = tmp_path / "tuned.checkpoint.safetensors"

    def listening() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listening
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 130, said
    assert "the best so far is in" in said
    assert (out / "plan.json").exists()
    assert checkpoint.exists()
    assert [note.count("broken off by an interrupt") for note in trainings(out)] == [1]
    again = run("finetune", start, "--data", images, *options, "--epochs", 4, "--resume", *QUICK)
    assert again.exit_code == 0, again.output
    assert not checkpoint.exists()
    assert [note.count("broken off") for note in trainings(out)] == [0]


def trainings(folder: Path) -> list[str]:
    """What the plan's notes say of trainings."""
    notes = json.loads((folder / "plan.json").read_text())["notes"]
    return [note for note in notes if note.startswith("fine-tuned on")]
