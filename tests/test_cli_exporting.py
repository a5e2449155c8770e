"""The commands export, bench and verify on exports: tables, JSON, exit codes, nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import onebyone as obo
from onebyone.cli.app import app
from onebyone.exporting import onnx as onnx_target
from onebyone.exporting.targets import TARGETS

pytestmark = pytest.mark.skipif(
    TARGETS["onnx"].missing is not None, reason="onnx, onnxscript or onnxruntime is missing"
)


def call(line: str) -> Result:
    return CliRunner().invoke(app, line.split())  # type: ignore[return-value]


def done(line: str) -> Result:
    result = call(line)
    assert result.exit_code == 0, result.stderr
    return result


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slimmed folder, as onebyone slim writes it."""
    model, _ = loaded = obo.load("demo")
    images = obo.open_images("demo", limit=48)
    slimmed = obo.slim(
        model, images, macs=0.5, latency=False, source=loaded.source, preprocess=loaded.preprocess,
        classes=loaded.classes,
    )  # fmt: skip
    return slimmed.save(tmp_path_factory.mktemp("saved") / "out")


@pytest.fixture
def out(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("few.npy", obo.open_images("demo:test", limit=40).inputs.numpy())
    return Path(shutil.copytree(saved, tmp_path / "out"))


def test_what_saving_wrote_is_an_export(saved: Path) -> None:
    from onebyone.exporting.rechecking import read_about

    about = read_about(saved / "model.onnx")
    assert about["slimmed"]["from"] == "demo"
    before, after = about["slimmed"]["macs"]
    assert after <= 0.5 * before
    assert about["preprocess"]["size"] == [1, 28, 28]
    assert len(about["classes"]) == 10


def test_networks_in_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "halves.py").write_text(
        "from torch import nn\n"
        "def half():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4)).eval().half()\n"
    )
    done("export halves:half --input 3x8x8 --to onnx --no-latency -o out")
    result = done("bench halves:half --input 3x8x8 --runtime eager,onnxruntime")
    assert "MACs" in result.stdout
    told = "computes in float16: here it is converted to float32"
    assert told in " ".join(result.stderr.split())
    result = done("export halves:half --input 3x8x8 --to onnx -o made --no-latency")
    assert told in " ".join(result.stderr.split())
    result = done("export halves:half --input 3x8x8 --to onnx -o made --no-latency --dtype float16")
    assert "converted" not in result.stderr


def test_export_verify_and_replace(out: Path) -> None:
    result = done("export out --to onnx --data few.npy --json")
    values = json.loads(result.stdout)
    (entry,) = values["exports"]
    assert (entry["file"], entry["target"], entry["check"]["passed"]) == (
        "model.onnx",
        "onnx",
        True,
    )
    assert entry["size_bytes"] == (out / "model.onnx").stat().st_size
    assert entry["size_bytes"] < entry["original_size_bytes"]
    first = entry["latency"][0]["after"]
    assert (first["threads"], first["batch"]) == (1, 1)
    assert entry["latency"][0]["before"]["median_ms"] > 0
    assert values["params"] < 200_000
    record = json.loads((out / "exports.json").read_text())["exports"]
    assert record == [entry]
    found = json.loads(done("verify out --data few.npy --no-latency --json").stdout)
    assert [e["file"] for e in found["exports"]] == ["model.onnx"]
    assert found["exports"][0]["check"]["passed"]
    done("slim demo --data demo --images 32 --macs 0.6 -o out --no-latency")  # replaces it all
    assert not (out / "exports.json").exists()


def test_pictures_for_a_network_that_does_not_say_how_it_takes_them(out: Path) -> None:
    values = json.loads((out / "plan.json").read_text())
    values["model"]["preprocess"] = None
    (out / "plan.json").write_text(json.dumps(values))
    Path("imgs").mkdir()
    for shade in range(4):
        Image.new("L", (30, 30), 60 * shade).save(f"imgs/{shade}.png")
    given = "--size 28 --mean 0.286 --std 0.353"
    for command in ("verify out --data imgs", "export out --to onnx --data imgs"):
        result = call(f"{command} --no-latency")
        assert result.exit_code == 2
        assert "give --size" in result.stderr
        done(f"{command} --no-latency {given}")


def test_damaged_folders_are_told_as_what_they_are(out: Path) -> None:
    (out / "plan.json").write_text("{")
    for command in ("verify out --data few.npy", "export out --to onnx"):
        result = call(command)
        assert result.exit_code == 2
        assert "the plan out/plan.json is not JSON" in result.stderr


def test_verify_finds_an_export_of_another_network(out: Path) -> None:
    obo.export(*obo.load("demo"), out / "model.onnx", latency=False)
    result = call("verify out --data few.npy --no-latency")
    assert result.exit_code == 2
    assert "model.onnx failed its check: its outputs differ" in result.stderr
    assert "model.onnx" in result.stdout
    (out / "model.onnx").write_bytes(b"")
    result = call("verify out --data few.npy --no-latency")
    assert result.exit_code == 2
    assert "says nothing of how onebyone wrote it" in result.stderr


REFUSALS = {
    "no place": ("export demo", "say where to write the files, such as -o exported/"),
    "no target": ("export demo --to coreml -o x", "coreml is no target: give one or more of onnx"),
    "no targets": ("export demo --to , -o x", "is no target: give one or more of onnx"),
    "int8 without images": ("export demo --dtype int8 -o x", "give some with --data"),
    "no type": ("export demo --dtype int4 -o x", "'int4' is none of float32, float16, int8"),
    "no quantizer": ("export demo --to ncnn --dtype int8 -o x", "ncnn is not exported in int8"),
    "missing data": ("export demo --data nowhere -o x", "nowhere does not exist"),
    "a file as a folder": ("export demo -o file", "file is a file: give a folder with -o"),
    "no model": ("export nope -o x", "'nope' names no model"),
    "what others wrote": ("export demo -o theirs", "model.onnx exists and onebyone did not write"),
    "no runtime": ("bench demo --runtime tensorrt", "'tensorrt' is no runtime"),
    "bench of nothing": ("bench nope", "'nope' names no model"),
    "bench into itself": ("bench theirs/model.onnx --json theirs/model.onnx", "would replace"),
    "a damaged file": ("bench theirs/model.onnx", "onnxruntime cannot read theirs/model.onnx"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_leave_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.onnx").write_bytes(b"theirs")
    before = tree(tmp_path)
    line, message = REFUSALS[name]
    result = call(line)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert tree(tmp_path) == before


def test_a_failed_check_is_told_and_the_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.chdir(tmp_path)

    def doubled(path: Path, threads: int) -> Any:
        run = onnx_target.open_onnx(path, threads)
        return lambda inputs: [2 * y for y in run(inputs)]

    row = TARGETS["onnx"]
    twin = replace(row, name="openvino", modules=(), suffix=".xml", open=doubled, companions=())
    monkeypatch.setitem(TARGETS, "openvino", twin)
    result = call("export demo --to openvino,onnx -o x --no-latency")
    assert result.exit_code == 2
    assert "model.xml was not written: the ONNX export in float32 failed its check" in result.stderr
    assert "and the limit is 0.001" in result.stderr
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["exports.json", "model.onnx"]
    assert "model.onnx" in result.stdout


def test_bench_prints_a_table_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from onebyone import benching

    plain = benching.interleave
    monkeypatch.setattr(benching, "interleave", lambda c, **o: plain(c, **o | {"seconds": 0.05}))
    result = done("bench demo --runtime eager,onnx --json b.json")
    assert "PyTorch eager" in result.stdout
    assert "onnxruntime" in result.stdout
    values = json.loads((tmp_path / "b.json").read_text())
    assert {r["runtime"] for r in values["runs"]} == {"eager", "onnx"}
    assert values["macs"] == obo.measure(*obo.load("demo")).macs
