"""`onebyone deepen`: from a slimmed folder to a deeper one; one message for whatever does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import onebyone as obo
from onebyone import saving
from onebyone.cli.app import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo network slimmed to 0.4 of its MACs, without exported programs."""
    loaded = obo.load("demo:vgg")
    slimmed = obo.slim(
        loaded.model, obo.open_images("demo").take(32), macs=0.4, held_out=0, latency=False,
        source=loaded.source, preprocess=loaded.preprocess, classes=loaded.classes,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "_write_programs", lambda *_: [])
        return slimmed.save(tmp_path_factory.mktemp("cli") / "slim")


@pytest.fixture(autouse=True)
def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_write_programs", lambda *_: [])


def onebyone(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])


def test_a_slimmed_folder_becomes_a_deeper_one(folder: Path, tmp_path: Path) -> None:
    deeper = tmp_path / "deeper"
    done = onebyone("deepen", folder, "--macs", 0.8, "--params", 1, "-o", deeper, "--no-latency")
    assert done.exit_code == 0, done.output
    for words in ("residual bottleneck", "relu2_2", "of the original's 29.1 M", "finetune"):
        assert words in done.output
    loaded = obo.load(deeper)
    assert loaded.notes == ()
    cost = obo.measure(loaded.model, loaded.example)
    assert 0.78 * 29_128_448 < cost.macs <= 0.8 * 29_128_448
    again = onebyone("verify", deeper, "--data", "demo:test", "--memory", "1MiB", "--no-latency")
    assert again.exit_code == 0, again.output
    assert "29.1 M" in again.output  # beside the first original, not the slimmed network
    page = (deeper / "report.html").read_text(encoding="utf-8")
    assert "What was inserted" in page
    assert "relu2_2" in page


def test_json_alone_on_stdout(folder: Path, tmp_path: Path) -> None:
    done = onebyone(
        "deepen", folder, "--params", 0.6, "-o", tmp_path / "deeper", "--no-latency", "--json"
    )
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    made = [i for i in values["insertions"] if i["kind"] != "refuse"]
    assert made
    assert values["params_kept"] <= 0.6
    assert all(i["macs"] > 0 and i["reason"] for i in made)


BAD = {
    "used up": (["--macs", 0.2], "is used up already"),
    "above one": (["--macs", 1.5], "is not a budget"),
    "epochs without images": (["--epochs", 1], "--data"),
    "images held out of none": (["--held-out", "demo:test"], "--data"),
    "no such images": (["--data", "nowhere"], "does not exist"),
    "less than none": (["--epochs", -1, "--data", "demo"], "--epochs"),
    "onto itself": (["-o", "FOLDER"], "would replace"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_leaves_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    given, words = BAD[name]
    args = [folder if a == "FOLDER" else a for a in given]
    out = [] if "-o" in given else ["-o", tmp_path / "deeper"]
    done = onebyone("deepen", folder, *args, *out)
    assert done.exit_code == 2
    assert words in done.output
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_an_original(tmp_path: Path) -> None:
    done = onebyone("deepen", "demo", "-o", tmp_path / "deeper")
    assert done.exit_code == 2
    assert "give --reference" in done.output.replace("\n", " ")
    done = onebyone("deepen", "demo", "--reference", "demo", "-o", tmp_path / "deeper")
    assert done.exit_code == 2
    assert "is used up already" in done.output


def test_a_damaged_insertion_is_told(folder: Path, tmp_path: Path) -> None:
    deeper = tmp_path / "deeper"
    assert onebyone("deepen", folder, "-o", deeper, "--no-latency").exit_code == 0
    plan = json.loads((deeper / "plan.json").read_text(encoding="utf-8"))
    first = next(i for i in plan["insertions"] if i["kind"] != "refuse")
    for key, value, words in (
        ("width", 0, "whole number"), ("kind", "wider", "no insertion 'wider'"),
        ("kernel", [2, 2], "odd lengths"), ("activation", ["exec"], "no activation of ours"),
        ("norm", 1, "true or false"),
    ):  # fmt: skip
        kept, first[key] = first[key], value
        (deeper / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        with pytest.raises(obo.OneByOneError, match=words):
            obo.load(deeper)
        first[key] = kept
    first["place"] = "relu9"
    (deeper / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(obo.OneByOneError, match="relu9"):
        obo.load(deeper)
