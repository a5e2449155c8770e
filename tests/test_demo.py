"""The built-in networks and images, and `onebyone demo`."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from onebyone.cli.app import app
from onebyone.data import DEMO, open_images
from onebyone.demo.networks import CLASSES, NETWORKS
from onebyone.loading import load
from onebyone.searching import accuracy

SHIPPED = sorted(name for name in NETWORKS if (DEMO / f"{name}.safetensors").exists())


def test_images_are_those_that_were_promised() -> None:
    calibration, test = open_images("demo"), open_images("demo:test")
    assert calibration.inputs.shape == (1024, 1, 28, 28)
    assert calibration.labels is None
    assert test.inputs.shape == (5000, 1, 28, 28)
    assert test.labels is not None
    assert test.labels.unique().tolist() == list(range(len(CLASSES)))
    seen = {row.numpy().tobytes() for row in calibration.inputs}
    assert not seen & {row.numpy().tobytes() for row in test.inputs}


def test_all_of_it_is_small() -> None:
    assert sum(p.stat().st_size for p in DEMO.iterdir() if p.is_file()) < 5_000_000
    assert (DEMO / "LICENSE").exists()


@pytest.mark.parametrize("name", SHIPPED)
def test_accuracy_is_the_recorded_one(name: str) -> None:
    record = json.loads((DEMO / f"{name}.training.json").read_text())
    assert record["top1"] >= 0.93
    found = accuracy(load(f"demo:{name}").model, open_images("demo:test"))
    assert found == pytest.approx(record["top1_first_5000"], abs=0.001)


def test_vgg_is_shipped() -> None:
    assert "vgg" in SHIPPED


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_demo_command(name: str, tmp_path: Path) -> None:
    line = ["demo", "--network", name, "--no-latency", "--json", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["held_out_images"] == 5000
    assert report["macs_kept"] <= 0.5
    assert report["accuracy_drop"] <= 0.006
    assert report == json.loads((tmp_path / "out" / "report.json").read_text()) | {
        "notes": report["notes"]
    }
    again = load(tmp_path / "out")
    assert again.classes == CLASSES
    assert again.model(torch.zeros(2, 1, 28, 28)).shape == (2, len(CLASSES))
