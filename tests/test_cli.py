"""The command line: one clear message and an exit code for whatever goes wrong, pure JSON, no remains."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from onebyone import saving
from onebyone.cli.app import app
from onebyone.errors import MissingExtraError, OneByOneError
from onebyone.loading import load

NETS = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()]
    layers += [nn.Conv2d(24, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(24, 3))
def nan():
    model = net()
    nn.init.constant_(model[-1].bias, float("nan"))
    return model
def flat():
    return nn.Sequential(nn.Flatten(), nn.ReLU())
"""
PICTURES = "--data pics --input 3x16x16 --mean 0.5 --std 0.25"
MINE = f"slim nets:net --weights w.safetensors {PICTURES} --no-latency"


@pytest.fixture
def place(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A working directory with nets.py, weights, and pics/ of three classes, 16 pictures each."""
    (tmp_path / "nets.py").write_text(NETS)
    generator = np.random.default_rng(0)
    for name in ("cat", "dog", "emu"):
        folder = tmp_path / "pics" / name
        folder.mkdir(parents=True)
        for i in range(16):
            pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    model = load("nets:net", input_size=(3, 16, 16)).model
    save_file(model.state_dict(), "w.safetensors")
    torch.save(model.state_dict(), "w.pt")
    torch.save(model, "whole.pt")
    yield tmp_path
    sys.modules.pop("nets", None)


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the slowest part of saving."""

    def refuse(network: Any, path: Path) -> None:
        raise MissingExtraError("left out by the test")

    monkeypatch.setattr(saving, "export_onnx", refuse)


def call(line: str) -> Result:
    """The command in this process."""
    return CliRunner().invoke(app, line.split())  # type: ignore[return-value]


def done(line: str) -> Result:
    """The command, which must succeed."""
    result = call(line)
    assert result.exit_code == 0, result.stderr
    return result


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, but compiled Python."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }


REFUSALS = {
    "missing data": ("slim demo --data nowhere --macs 0.5 -o out", "nowhere does not exist: give"),
    "empty data": (
        "slim demo --data empty --macs 0.5 -o out",
        "empty holds no image: files ending",
    ),
    "missing model": ("slim no.pt2 --data demo --macs 0.5 -o out", "no.pt2 does not exist"),
    "missing folder": ("slim no/such/ --data demo --macs 0.5 -o out", "there is no such folder"),
    "not our folder": ("slim empty --data demo --macs 0.5 -o out", "it has no plan.json"),
    "a bare name": ("slim resnet18 --data demo --macs 0.5 -o out", "mean torchvision:resnet18"),
    "no function": (f"slim nets:nett {PICTURES} --macs 0.5 -o out", "the nearest are net"),
    "missing weights": (
        f"slim nets:net --weights no.pt {PICTURES} --macs 0.5 -o out",
        "no.pt does not exist",
    ),
    "weights that run code": (
        f"slim nets:net --weights whole.pt {PICTURES} --macs 0.5 -o out",
        "runs whatever code the file contains",
    ),
    "budget of 0": ("slim demo --data demo --macs 0 -o out", "above 0 and at most 1"),
    "budget beyond 1": ("slim demo --data demo --params 50 -o out", "params=50.0 is not a budget"),
    "budget too low": (
        "slim demo --data demo --macs 0.00001 -o out",
        "the lowest that this network",
    ),
    "no budget": ("slim demo --data demo -o out", "say how light: 0.5 keeps half"),
    "no output": ("slim demo --data demo --macs 0.5", "such as -o out/"),
    "drop beyond 1": ("slim demo --data demo --max-drop 5 -o out", "from 0 up to 1"),
    "no labels": ("slim demo --data demo --max-drop 0.01 -o out", "max_drop needs labels"),
    "channels": (
        "slim demo --data pics --mean 0.5 --std 0.5 --size 3x28x28 --macs 0.5 -o out",
        "the images have 3 channels (3×28×28), the network takes 1",
    ),
    "too small": (
        f"slim nets:net {PICTURES} --size 4 --macs 0.5 -o out",
        "1×3×4×4",
    ),
    "arrays of another size": (
        "slim demo --data demo --size 32 --macs 0.5 -o out",
        "are 1×28×28 each and the size is 1×32×32",
    ),
    "NaN": (f"slim nets:nan {PICTURES} --macs 0.5 -o out", "NaN or infinite values"),
    "no convolution": (f"slim nets:flat {PICTURES} --macs 0.5 -o out", "no convolution"),
    "no input size": ("slim nets:net --data pics --macs 0.5 -o out", "--input 3x224x224"),
    "no normalization": (
        "slim nets:net --data pics --input 3x16x16 --macs 0.5 -o out",
        "--mean and --std",
    ),
    "a folder that is not ours": (
        "slim demo --data demo --macs 0.5 -o other",
        "holds other things than a slimmed network (mine.txt)",
    ),
    "a file as output": ("slim demo --data demo --macs 0.5 -o nets.py", "exists and is a file"),
    "the images as output": (f"{MINE} --macs 0.5 -o pics --force", "reads or works"),
    "the working directory": ("slim demo --data demo --macs 0.5 -o . --force", "reads or works"),
    "where nothing can be": ("slim demo --data demo --macs 0.5 -o /proc/x", "cannot be written"),
    "plan only, nowhere": (
        "slim demo --data demo --macs 0.5 --plan-only -o /proc/plan.json",
        "cannot be written",
    ),
    "plan only, existing": (
        "slim demo --data demo --macs 0.5 --plan-only -o pretty.json",
        "pretty.json exists",
    ),
    "plan only with a drop": (
        "slim demo --data demo --max-drop 0.1 --plan-only",
        "leave --plan and --max-drop out",
    ),
    "time and none": (
        "slim demo --data demo --latency 0.6 --no-latency -o out",
        "--latency 0.6 is a budget of time, and times the network",
    ),
    "a runtime and no time": (
        "slim demo --data demo --macs 0.5 --runtime openvino -o out",
        "it says whose time --latency is a part of",
    ),
    "memory without end": (
        "slim demo --data demo --macs 0.5 --memory 1e400 -o out",
        "is no amount",
    ),
    "a file as module": (
        "slim nets.py:net --data demo --macs 0.5 -o out",
        "give nets:net, the name",
    ),
    "missing plan": ("slim demo --data demo --plan no.json -o out", "no.json cannot be read"),
    "no JSON": ("slim demo --data demo --plan w.pt -o out", "is not JSON"),
    "no plan": ("slim demo --data demo --plan pretty.json -o out", "is no plan of this version"),
    "plan and budget": (
        "slim demo --data demo --plan made.json --macs 0.5 -o out",
        "leave one of them out",
    ),
    "memory": ("slim demo --data demo --macs 0.5 --memory lots -o out", "is no amount of memory"),
    "size": ("slim demo --data demo --macs 0.5 --size 0 -o out", "is no size"),
    "mean": ("slim demo --data demo --macs 0.5 --mean 128 -o out", "divide by 255"),
    "verify: not ours": ("verify empty --data demo:test", "no folder that onebyone wrote"),
    "verify: missing": ("verify nowhere --data demo:test", "no folder that onebyone wrote"),
    "demo: budget": ("demo --macs 2", "macs=2.0 is not a budget"),
    "unknown option": ("slim demo --dta demo", "No such option: --dta"),
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of the demo network."""
    path = tmp_path_factory.mktemp("plan") / "made.json"
    done(f"slim demo --data demo --images 64 --macs 0.5 --plan-only -o {path}")
    return path


class TestRefusals:
    @pytest.mark.parametrize("name", REFUSALS)
    def test_one_message_exit_code_2_and_nothing_written(
        self, name: str, place: Path, plan: Path
    ) -> None:
        (place / "other").mkdir()
        (place / "other" / "mine.txt").write_text("precious")
        (place / "pretty.json").write_text("{}")
        shutil.copy(plan, place)
        before = tree(place)
        line, message = REFUSALS[name]
        result = call(line)
        assert result.exit_code == 2, result.stderr
        said = " ".join(result.stderr.replace("│", " ").split())
        assert message in said
        assert "Traceback" not in said
        assert result.stdout == ""
        assert tree(place) == before
        assert not (place / "out").exists()

    def test_a_plan_of_another_network(self, place: Path, plan: Path) -> None:
        result = call(f"{MINE} --plan {plan} -o out")
        assert result.exit_code == 2
        assert "'conv1_1' is not in this model" in result.stderr
        assert not (place / "out").exists()

    def test_torchvision_channels(self, place: Path) -> None:
        pytest.importorskip("torchvision")
        result = call("slim torchvision:resnet18 --weights random --data demo --macs 0.5 -o out")
        assert result.exit_code == 2
        assert "are 1×28×28 each, the network takes 3 channels" in result.stderr

    def test_memory_that_runs_out(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:115] can't allocate memory")

        monkeypatch.setattr("onebyone.slimming.observe", fail)
        result = call(f"{MINE} --macs 0.5 -o out")
        assert result.exit_code == 2
        assert "not enough memory: give --memory less" in result.stderr

    def test_a_bug_is_called_one(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("what nobody thought of")

        monkeypatch.setattr("onebyone.slimming.observe", fail)
        result = call(f"{MINE} --macs 0.5 -o out")
        assert result.exit_code == 1
        assert "this is a bug in onebyone (RuntimeError)" in result.stderr
        assert "what nobody thought of" in result.stderr

    def test_a_full_disk(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(saving, "write_text", fail)
        before = tree(place)
        result = call(f"{MINE} --macs 0.5 -o out")
        assert result.exit_code == 2
        assert "out cannot be written: No space left on device; nothing was left" in result.stderr
        assert tree(place) == before


def test_a_seed_has_64_bits(place: Path) -> None:
    refused = call(f"{MINE} --macs 0.6 --seed 99999999999999999999999 -o out")
    assert refused.exit_code == 2
    assert "more than the 64 bits of a seed" in " ".join(refused.stderr.split())
    assert not Path("out").exists()


def test_a_module_is_no_function(place: Path) -> None:
    refused = call(f"slim nets:torch {PICTURES} --macs 0.6 -o out")
    assert refused.exit_code == 2
    assert "nets:torch is a module: name a function" in " ".join(refused.stderr.split())


def test_what_does_not_exist_is_told_before_how_to_read_it(place: Path) -> None:
    refused = call("slim nets:net --input 3x16x16 --data nowhere --macs 0.6 -o out")
    assert refused.exit_code == 2
    assert "nowhere does not exist" in " ".join(refused.stderr.split())


@pytest.mark.usefixtures("no_onnx")
class TestSlim:
    def test_a_network_of_ones_own(self, place: Path) -> None:
        (place / "pics" / "cat" / "bad.png").write_bytes(b"no picture")
        before = tree(place)
        result = done(f"{MINE} --macs 0.5 -o out")
        assert "the whole network" in result.stdout or "whole network" in result.stdout
        assert "top-1 accuracy" in result.stdout
        assert "1 image file could not be read: pics/cat/bad.png" in " ".join(result.stdout.split())
        assert "open out/report.html" in result.stderr
        plan = json.loads(Path("out/plan.json").read_text())
        assert plan["source"]["spec"] == "nets:net"
        assert plan["cost"]["macs_after"] <= 0.5 * plan["cost"]["macs_before"]
        assert plan["model"]["preprocess"]["size"] == [3, 16, 16]
        assert {k: v for k, v in tree(place).items() if not k.startswith("out/")} == before

    def test_weights_of_either_kind_give_the_same(self, place: Path) -> None:
        done(f"{MINE} --macs 0.5 -o a")
        done(f"{MINE.replace('w.safetensors', 'w.pt')} --macs 0.5 -o b")
        files = [load_file(f"{name}/weights.safetensors") for name in "ab"]
        torch.testing.assert_close(files[0], files[1], rtol=0, atol=0)

    def test_same_seed_same_bytes(self, place: Path) -> None:
        for name in ("a", "b"):
            done(f"{MINE} --macs 0.5 --seed 3 -o {name}")
        done(f"{MINE} --macs 0.5 --seed 4 -o c")
        for file in ("plan.json", "weights.safetensors"):
            assert Path("a", file).read_bytes() == Path("b", file).read_bytes()
        assert (
            Path("a/weights.safetensors").read_bytes() != Path("c/weights.safetensors").read_bytes()
        )

    def test_plan_then_slim_is_slim(self, place: Path) -> None:
        done(f"{MINE} --macs 0.5 -o direct")
        result = done(f"{MINE} --macs 0.5 --plan-only")
        assert "apply it with --plan plan.json" in result.stderr
        done(f"{MINE} --plan plan.json -o planned")
        direct, planned = (load_file(f"{n}/weights.safetensors") for n in ("direct", "planned"))
        torch.testing.assert_close(direct, planned, rtol=0, atol=0)

    def test_an_edited_plan(self, place: Path) -> None:
        done(f"{MINE} --macs 0.5 --plan-only -o made")
        plan = json.loads(Path("made/plan.json").read_text())
        for layer in plan["layers"]:
            if layer["layer"] == "2":
                layer |= {"form": "tucker2", "ranks": {"in": 3, "out": 5}}
        Path("made/plan.json").write_text(json.dumps(plan))
        done(f"{MINE} --plan made/plan.json -o out")
        weights = load_file("out/weights.safetensors")
        assert weights["2.conv.weight"].shape == (5, 3, 3, 3)
        plan["layers"][1] |= {"ranks": {"in": 3, "out": 500}}
        Path("made/plan.json").write_text(json.dumps(plan))
        result = call(f"{MINE} --plan made/plan.json -o other")
        assert result.exit_code == 2
        assert "layer 2 (2): rank out=500 is not a whole number from 1 to" in result.stderr

    @pytest.mark.parametrize("options", ["", "--params 0.9"])
    def test_a_drop_in_accuracy(self, options: str, place: Path) -> None:
        result = done(f"{MINE} --max-drop 0.2 {options} --json -o out")
        report = json.loads(result.stdout)
        assert report["accuracy_drop"] <= 0.2
        assert report["macs_kept"] < 0.6
        assert any("tried" in note for note in report["notes"])

    def test_json_and_nothing_else(self, place: Path) -> None:
        for line in (
            f"{MINE} --macs 0.5 -o out --json",
            f"{MINE} --macs 0.5 --plan-only -o plan.json --json",
            "verify out --data pics --original nets:net --weights w.pt --no-latency --json",
        ):
            values = json.loads(done(line).stdout)
            assert values["schema"].startswith("onebyone.")

    def test_what_was_there_is_replaced_only_where_it_is_ours(self, place: Path) -> None:
        done(f"{MINE} --macs 0.5 -o out")
        done(f"{MINE} --macs 0.7 -o out")
        assert json.loads(Path("out/plan.json").read_text())["budget"] == {"macs": 0.7}
        Path("out/own.txt").write_text("precious")
        assert call(f"{MINE} --macs 0.5 -o out").exit_code == 2
        assert Path("out/own.txt").exists()
        done(f"{MINE} --macs 0.5 -o out --force")
        assert not Path("out/own.txt").exists()

    def test_slimming_what_was_slimmed(self, place: Path) -> None:
        done(f"{MINE} --macs 0.6 -o out")
        result = call("slim out --data pics --macs 0.8 -o out --no-latency")
        assert result.exit_code == 2
        assert "reads or works" in result.stderr
        done("slim out --data pics --macs 0.8 -o twice --no-latency")
        shutil.rmtree("out")
        assert load("twice").model(torch.zeros(1, 3, 16, 16)).shape == (1, 3)

    def test_verify_asks_before_it_calls_a_function(self, place: Path) -> None:
        done(f"{MINE} --macs 0.5 -o out")
        Path("nets.py").write_text(NETS + "\nimport pathlib; pathlib.Path('ran').touch()\n")
        sys.modules.pop("nets", None)
        result = call("verify out --data pics --no-latency")
        assert result.exit_code == 2
        assert "give --original nets:net if that is yours" in result.stderr
        assert not Path("ran").exists()
        result = done("verify out --data pics --no-latency --original nets:net --weights w.pt")
        assert "48 held-out images" in " ".join(result.stdout.split())
        assert "top-1 accuracy" in done("verify out --data pics --no-latency --trust").stdout

    def test_what_could_not_be_written_is_told(self, place: Path, no_onnx: None) -> None:
        found = done(f"{MINE} --macs 0.6 -o out")
        assert "note: no model.onnx: left out by the test" in found.stderr
        assert "model.pt2" in found.stderr
        assert "no model" not in found.stdout


@pytest.mark.usefixtures("no_onnx")
class TestMemory:
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The picture files that are decoded from here on."""
        from onebyone import folders

        found: list[Path] = []
        read = folders._read

        def counting(file: Path, preprocess: Any) -> Any:
            found.append(file)
            return read(file, preprocess)

        monkeypatch.setattr(folders, "_read", counting)
        return found

    def pictures(self, n: int, folder: Path) -> None:
        first = folder / "0.png"
        folder.mkdir()
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(first)
        for i in range(1, n):
            os.link(first, folder / f"{i}.png")

    def test_no_more_are_read_than_fit(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # A 3×64×64 image has 48 KiB as float32: a quarter of 16 MiB holds 85 of them, twice.
        self.pictures(600, place / "many")
        opened = self.opened(monkeypatch)
        line = "slim nets:net --data many --input 3x64x64 --mean 0.5 --std 0.25 --no-latency"
        result = done(f"{line} --memory 16MiB --macs 0.6 -o out --json")
        assert json.loads(result.stdout)["held_out_images"] == 85
        assert "slimming with 85 images at most: --memory has no room for 512" in result.stderr
        threads = 16 * min(8, os.cpu_count() or 1)
        assert 170 <= len(opened) <= 170 + threads

    def test_no_more_than_are_asked_for(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pictures(300, place / "many")
        opened = self.opened(monkeypatch)
        line = "slim nets:net --data many --input 3x16x16 --mean 0.5 --std 0.25 --no-latency"
        result = done(f"{line} --images 24 --held-out pics --macs 0.6 -o out --json")
        assert json.loads(result.stdout)["held_out_images"] == 48
        assert len([p for p in opened if "many" in p.parts]) <= 24

    def test_named_images_to_compare_on_say_what_is_left_out(self, place: Path) -> None:
        self.pictures(100, place / "many")
        line = "slim nets:net --data pics --input 3x64x64 --mean 0.5 --std 0.25 --no-latency"
        result = done(f"{line} --held-out many --memory 16MiB --macs 0.6 -o out")
        assert "comparing on 85 images of many: --memory has no room for more" in result.stderr


def start(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A Python process that runs this code before the command; it listens to Ctrl-C."""
    listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{listening}\n{code}\nfrom onebyone.cli import main; main()",
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        **options,
    )


# Tells by a file that a place was reached, and stays there long enough to be interrupted.
STOP_AT = """
import time
from pathlib import Path
import {module} as module
before = module.{name}
def slow(*args, **kwargs):
    Path("reached").touch()
    for _ in range(200):
        time.sleep(0.05)
    return before(*args, **kwargs)
module.{name} = slow
"""


class TestProcesses:
    @pytest.mark.parametrize(
        ("module", "name", "number", "code"),
        [
            ("onebyone.rewriting", "_solve", signal.SIGINT, 130),
            ("onebyone.statistics", "send_back", signal.SIGINT, 130),
            ("onebyone.saving", "export_onnx", signal.SIGINT, 130),
            pytest.param(
                "onebyone.saving", "write_text", signal.SIGINT, 130, marks=pytest.mark.slow
            ),
            pytest.param(
                "onebyone.saving", "write_text", signal.SIGTERM, 143, marks=pytest.mark.slow
            ),
        ],
    )
    def test_interrupted(self, module: str, name: str, number: int, code: int, place: Path) -> None:
        before = tree(place)
        line = "slim demo --data demo --images 32 --macs 0.5 -o out --no-latency"
        process = start(STOP_AT.format(module=module, name=name), *line.split())
        deadline = time.monotonic() + 60
        while not (place / "reached").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.2)
        for _ in range(2 if number == signal.SIGINT else 1):  # people press Ctrl-C twice
            process.send_signal(number)
            time.sleep(0.02)
        out, error = process.communicate(timeout=60)
        assert process.returncode == code, error
        assert out == ""
        assert "Traceback" not in error
        if code == 130:
            assert "interrupted; nothing was written" in error
        (place / "reached").unlink()
        assert tree(place) == before
        assert not list(place.glob(".out*"))

    def test_an_interrupt_that_becomes_another_error(self, place: Path) -> None:
        """Half-imported packages raise whatever they like."""
        code = (
            "import os, signal, onebyone.slimming as s\n"
            "def check(*args):\n"
            "    try:\n"
            "        os.kill(os.getpid(), signal.SIGINT)\n"
            "        [None for _ in range(10**6)]\n"
            "    except KeyboardInterrupt:\n"
            "        raise RecursionError('maximum recursion depth exceeded')\n"
            "s.check_budget = check"
        )
        process = start(code, *["slim", "demo", "--data", "demo", "--macs", "0.5", "-o", "out"])
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        assert error == "onebyone: interrupted; nothing was written\n"

    @pytest.mark.slow
    @pytest.mark.parametrize("options", ["", "--json"])
    def test_a_reader_that_has_gone(self, options: str, place: Path) -> None:
        code = "import onebyone.saving as s; s.export_onnx = lambda network, path: None"
        line = f"slim demo --data demo --images 32 --macs 0.5 -o out --no-latency {options}"
        with start(code, *line.split()) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            error = process.stderr.read()
            assert process.wait(timeout=60) == 141
        assert "Traceback" not in error
        assert "BrokenPipe" not in error
        assert (place / "out" / "plan.json").exists()

    @pytest.mark.slow
    def test_files_that_cannot_grow(self, place: Path) -> None:
        """The kernel itself stops every writer, as a full disk does, whatever language it is in."""
        before = tree(place)
        code = (
            "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
        )
        for limit in (10_000, 500_000):  # too small for the weights, for the program
            line = "slim demo --data demo --images 32 --macs 0.5 -o out --no-latency"
            process = start(code.format(limit), *line.split())
            out, error = process.communicate(timeout=60)
            assert process.returncode == 2, error
            assert "out cannot be written: " in error
            assert "nothing was left there" in error
            assert out == ""
            assert tree(place) == before
            assert not list(place.glob(".out*"))

    def test_help_is_instant_and_imports_no_torch(self) -> None:
        seconds = []  # of the processor, so that other work does not count
        for _ in range(5):
            began = os.times()
            subprocess.run(
                [sys.executable, "-m", "onebyone", "--help"], check=True, capture_output=True
            )
            ended = os.times()
            seconds.append(sum(ended[2:4]) - sum(began[2:4]))
        assert min(seconds) < 0.3, seconds
        code = (
            "import atexit, sys; sys.argv[1:] = {}\n"
            "atexit.register(lambda: sys.exit if 'torch' not in sys.modules else print('LOADED'))\n"
            "from onebyone.cli import main; main()"
        )
        for arguments in (["--help"], ["slim", "--help"], ["--version"], []):
            done = subprocess.run(
                [sys.executable, "-c", code.format(arguments)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert "LOADED" not in done.stdout
            assert "Usage" in done.stdout or "onebyone 0." in done.stdout

    def test_the_module_runs_as_the_command_does(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "onebyone", "--version"], check=True, capture_output=True
        )
        assert done.stdout.startswith(b"onebyone 0.")


class TestHelp:
    @pytest.mark.parametrize("command", ["", "slim", "demo", "verify"])
    def test_fits_80_columns_and_shows_an_example(
        self, command: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        text = done(f"{command} --help").stdout
        assert "onebyone " in text
        assert max(map(len, text.splitlines())) <= 80

    def test_every_example_of_slim_parses(
        self, place: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The commands in the help are spelled as the options are."""
        from onebyone.cli.slim import slim

        text = (slim.__doc__ or "").replace("\\\n", " ")
        text = text.replace("[bold]", "").replace("[/bold]", "")
        lines = [line.strip() for line in text.splitlines() if line.strip().startswith("onebyone ")]
        assert len(lines) == 5

        def parsed(*_: Any) -> None:
            raise OneByOneError("all options were understood")

        for name in ("read", "open"):
            monkeypatch.setattr(f"onebyone.cli.reading.Source.{name}", parsed)
        shutil.copy(plan, "plan.json")
        for line in lines:
            out = line.replace("--plan-only -o plan.json", "--plan-only -o made.json")
            result = call(out.removeprefix("onebyone "))
            assert result.stderr == "onebyone: all options were understood\n"


def test_the_original_named_again_has_the_weights_of_the_plan(place: Path, no_onnx: None) -> None:
    """What the message advises compares with the trained network, not with one of other weights."""
    trained = {k: 3 * v for k, v in load_file("w.safetensors").items()}
    save_file(trained, "trained.safetensors")
    done(f"{MINE.replace('w.safetensors', 'trained.safetensors')} --macs 0.6 -o out")
    advice = call("verify out --data pics --no-latency").stderr
    assert "--original nets:net" in " ".join(advice.split())
    results = [
        json.loads(done(f"verify out --data pics --no-latency --json {option}").stdout)
        for option in (
            "--trust",
            "--original nets:net",
            "--original nets:net --weights w.safetensors",
        )
    ]
    trusted, named, other = (r["output_error"] for r in results)
    assert named == trusted
    assert other > 10 * trusted
    Path("moved.py").write_text(NETS)
    told = done("verify out --data pics --no-latency --original moved:net").stderr
    assert "moved:net is taken with the weights that it comes with" in " ".join(told.split())
    assert "trained.safetensors" in told


class TestSignalsWhileImporting:
    """What a signal raises inside of an import may be lost there, and leaves modules half made."""

    CODE = """
import atexit, sys, time
from onebyone.cli.signals import listen
listen()
atexit.register(lambda: print("whole", hasattr(sys.modules.get("slow"), "DONE"), flush=True))
try:
    import slow
    time.sleep(20)
except KeyboardInterrupt:
    sys.exit(130)
"""
    SLOW = """
import time
print("begun", flush=True)
until = time.monotonic() + 0.7
while time.monotonic() < until:
    try:
        sum(range(1000))
    except BaseException:
        pass
DONE = True
"""

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_it_comes_again_after_the_import(self, number: int, code: int, tmp_path: Path) -> None:
        (tmp_path / "slow.py").write_text(self.SLOW)
        listening = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        with subprocess.Popen(
            [sys.executable, "-c", listening + self.CODE],
            stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            time.sleep(0.1)
            process.send_signal(number)
            rest = process.stdout.read()
        assert (rest, process.returncode) == ("whole True\n", code)

    def test_an_interrupt_before_the_command_begins_is_told(self, tmp_path: Path) -> None:
        """The command's own module is what is being imported."""
        code = STOP_AT.format(module="onebyone.cli.app", name="_command")
        with start(code, "measure", "demo", cwd=tmp_path) as process:
            while not (tmp_path / "reached").exists():
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            told = process.communicate()[1]
        assert process.returncode == 130
        assert told == "onebyone: interrupted; nothing was written\n"


def closed(line: str, descriptors: str, place: Path) -> tuple[int, str]:
    """The command with some of its outputs closed or full, as a shell does it: exit code, stderr."""
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m onebyone {line} {descriptors}"],
        capture_output=True, text=True, cwd=place, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_closed_stderr_is_no_bug(tmp_path: Path) -> None:
    assert closed("measure demo", "2>&-", tmp_path) == (0, "")
    assert closed("measure demo", "2>&- >&-", tmp_path) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_stdout_is_told_with_what_was_written(place: Path) -> None:
    code, told = closed(f"{MINE} --macs 0.6 -o out", "> /dev/full", place)
    assert code == 2
    assert "standard output cannot be written: No space left on device; " in told
    assert told.rstrip().endswith("out had been written")
    assert Path("out/plan.json").is_file()


def test_a_folder_made_elsewhere_says_where(
    place: Path,
    no_onnx: None,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done(f"{MINE} --macs 0.6 -o out")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    sys.modules.pop("nets", None)
    for line in (
        f"verify {place}/out --trust --data {place}/pics", f"measure {place}/out --trust",
        f"verify {place}/out --original nets:net --data {place}/pics",
    ):  # fmt: skip
        told = " ".join(call(line).stderr.split())
        assert f"run this in {place}, where it was found when the folder was made" in told
