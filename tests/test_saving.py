"""Slimmed folders: written whole or not at all, and read back to the last bit."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, load_model
from torch import Tensor, nn

from onebyone import files, saving
from onebyone.deepening.deepening import deepen
from onebyone.errors import MissingExtraError, ModelError, OutputError, PlanError
from onebyone.loading import load
from onebyone.planning import plan
from onebyone.plans import Budget
from onebyone.saving import check_folder
from onebyone.slimming import Slimmed, slim
from onebyone.statistics import observe

FACTORY = """
import torch
from torch import nn
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(24, 5)).eval()
"""


class Net(nn.Module):
    """Two 3×3 convolutions with a normalization, a 1×1 one and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 24, 3, stride=2, bias=False)
        self.third = nn.Conv2d(24, 24, 1)
        self.last = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = self.third(self.second(x).relu()).relu()
        return self.last(x.mean((2, 3)))


class Tied(Net):
    """The same convolution twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.first
        self.norm2 = nn.BatchNorm2d(3)
        self.back = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.back(self.again(x).relu()))


def network(kind: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def pictures(*shape: int, n: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def slimmed_of(model: nn.Module, shape: tuple[int, ...] = (3, 12, 12), **options: Any) -> Slimmed:
    return slim(model, pictures(*shape), **({"macs": 0.6} | options), latency=False)


@pytest.fixture(scope="module")
def slimmed() -> Slimmed:
    """By forms alone, whose ranks the tests of plans edit."""
    model, images = network(), pictures(3, 12, 12)
    chosen = plan(model, observe(model, images), Budget(macs=0.6), narrow=False)
    return slim(model, images, plan=chosen, latency=False)


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the slowest part of saving."""

    def refuse(network: Any, path: Path) -> None:
        raise MissingExtraError("left out by the test")

    monkeypatch.setattr(saving, "export_onnx", refuse)


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "project"
    place.mkdir()
    (place / "my_nets.py").write_text(FACTORY)
    monkeypatch.chdir(place)
    return place


def moved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder at another place, with another working directory."""
    place = folder.parent / "elsewhere" / "it"
    place.parent.mkdir()
    shutil.move(folder, place)
    (folder.parent / "empty").mkdir()
    monkeypatch.chdir(folder.parent / "empty")
    sys.modules.pop("my_nets", None)
    return place


def assert_same(first: nn.Module, second: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        expected, found = first(inputs), second(inputs)
    assert found.dtype == expected.dtype
    assert torch.equal(expected, found)


@pytest.mark.usefixtures("no_onnx")
class TestRoundTrip:
    @pytest.mark.parametrize("spec", ["demo", "demo:resnet"])
    def test_demo(self, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded = load(spec, weights=None if spec == "demo" else "random")
        options: dict[str, Any] = {"source": loaded.source, "preprocess": loaded.preprocess}
        done = slimmed_of(loaded.model, (1, 28, 28), **options)
        again = load(moved(done.save(tmp_path / "out"), monkeypatch))
        assert not again.notes
        assert again.preprocess == loaded.preprocess
        assert type(again.model) is type(loaded.model)
        assert_same(done.model, again.model, pictures(1, 28, 28, seed=1))

    def test_torchvision_with_classes_of_its_own(self, tmp_path: Path) -> None:
        torchvision = pytest.importorskip("torchvision")
        torch.manual_seed(0)
        trained = torchvision.models.resnet18(num_classes=7)
        torch.save(trained.state_dict(), tmp_path / "w.pt")
        loaded = load("torchvision:resnet18", weights=tmp_path / "w.pt", input_size=(3, 32, 32))
        done = slimmed_of(loaded.model, (3, 32, 32), source=loaded.source)
        again = load(done.save(tmp_path / "out"))
        assert type(again.model) is torchvision.models.ResNet
        assert_same(done.model, again.model, pictures(3, 32, 32, n=5, seed=1))

    def test_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        exported = torch.export.export(network(), (pictures(3, 12, 12, n=1),))
        torch.export.save(exported, tmp_path / "net.pt2")
        loaded = load(tmp_path / "net.pt2")
        done = slimmed_of(loaded.model, source=loaded.source)
        folder = done.save(tmp_path / "out")
        assert not load(folder).notes
        assert_same(done.model, load(folder).model, pictures(3, 12, 12, seed=1))
        (tmp_path / "net.pt2").unlink()
        again = load(moved(folder, monkeypatch))
        assert "net.pt2 does not exist" in again.notes[0]
        assert_same(done.model, again.model, pictures(3, 12, 12, seed=1))

    def test_factory_is_called_only_where_trusted(
        self, factory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = load("my_nets:net", input_size=(3, 12, 12))
        done = slimmed_of(loaded.model, source=loaded.source)
        folder = done.save("out")
        inputs = pictures(3, 12, 12, seed=1)
        trusted = load(folder, trust=True)
        assert type(trusted.model) is nn.Sequential
        assert_same(done.model, trusted.model, inputs)
        (factory / "my_nets.py").write_text("raise SystemExit('this must not run')")
        sys.modules.pop("my_nets")
        safe = load(folder)
        assert "my_nets:net" in safe.notes[0]
        assert "--trust" in safe.notes[0]
        assert_same(done.model, safe.model, inputs)
        away = load(moved(folder, monkeypatch), trust=True)
        assert "cannot be found" in away.notes[0]
        assert_same(done.model, away.model, inputs)

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m,
            lambda m: m.half(),
            lambda m: m.bfloat16(),
            lambda m: m.double(),
            lambda m: m.to(memory_format=torch.channels_last),
        ],
        ids=["float32", "float16", "bfloat16", "float64", "channels-last"],
    )
    def test_module_without_a_source(
        self, change: Callable[[nn.Module], nn.Module], tmp_path: Path
    ) -> None:
        model = change(network())
        done = slimmed_of(model)
        folder = done.save(tmp_path / "out")
        inputs = pictures(3, 12, 12, seed=1).to(next(model.parameters()).dtype)
        program, rebuilt = load(folder), load(folder, architecture=model)
        assert program.example.dtype == inputs.dtype
        assert type(rebuilt.model) is Net
        for again in (program, rebuilt):
            assert not again.notes
            assert_same(done.model, again.model, inputs)
            last = inputs.to(memory_format=torch.channels_last)
            assert_same(done.model, again.model, last)

    def test_memory_formats_come_back(self, tmp_path: Path) -> None:
        model = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        done = slimmed_of(model)
        again = load(done.save(tmp_path / "out"), architecture=network())
        strides = {k: t.stride() for k, t in done.model.state_dict().items()}
        assert {k: t.stride() for k, t in again.model.state_dict().items()} == strides

    def test_mixed_dtypes(self, tmp_path: Path) -> None:
        model = network()
        model.third.bfloat16().register_forward_pre_hook(lambda m, args: args[0].bfloat16())
        model.third.register_forward_hook(lambda m, args, y: y.float())
        done = slimmed_of(model)
        again = load(done.save(tmp_path / "out"), architecture=model)
        assert again.model.third.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
        assert_same(done.model, again.model, pictures(3, 12, 12, seed=1))

    def test_tied_layers_stay_tied(self, tmp_path: Path) -> None:
        model = network(Tied)
        done = slimmed_of(model)
        folder = done.save(tmp_path / "out")
        again = load(folder, architecture=model).model
        assert again.first is again.again
        assert_same(done.model, again, pictures(3, 12, 12, seed=1))
        assert not [k for k in load_file(folder / "weights.safetensors") if k.startswith("again")]

    def test_weights_from_another_file(self, slimmed: Slimmed, tmp_path: Path) -> None:
        folder = slimmed.save(tmp_path / "out")
        state = {k: v * 1.5 for k, v in slimmed.model.state_dict().items()}
        torch.save(state, tmp_path / "tuned.pt")
        rebuilt = load(folder, architecture=network(), weights=tmp_path / "tuned.pt").model
        program = load(folder, weights=tmp_path / "tuned.pt").model
        torch.testing.assert_close(rebuilt.last.weight, slimmed.model.last.weight * 1.5)  # type: ignore[union-attr]
        assert_same(rebuilt, program, pictures(3, 12, 12, seed=1))

    def test_slimming_what_was_slimmed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        once = slimmed_of(load("demo").model, (1, 28, 28), source=load("demo").source, macs=0.6)
        first = load(once.save(tmp_path / "first"))
        twice = slimmed_of(first.model, (1, 28, 28), source=first.source)
        second = twice.save(tmp_path / "second")
        shutil.rmtree(tmp_path / "first")
        again = load(moved(second, monkeypatch))
        assert not again.notes
        assert type(again.model) is type(load("demo").model)
        assert_same(twice.model, again.model, pictures(1, 28, 28, seed=1))
        assert twice.plan.macs_before == once.plan.macs_after

    def test_slimming_twice_without_a_source(self, slimmed: Slimmed, tmp_path: Path) -> None:
        first = load(slimmed.save(tmp_path / "first"))
        twice = slimmed_of(first.model, source=first.source)
        folder = twice.save(tmp_path / "second")
        inputs = pictures(3, 12, 12, seed=1)
        assert_same(twice.model, load(folder).model, inputs)
        assert_same(twice.model, load(folder, architecture=network()).model, inputs)

    def test_neither_program_nor_source(self, slimmed: Slimmed, tmp_path: Path) -> None:
        folder = slimmed.save(tmp_path / "out")
        (folder / "model.pt2").unlink()
        with pytest.raises(ModelError, match=r"no model\.pt2.*architecture="):
            load(folder)
        assert_same(
            slimmed.model,
            load(folder, architecture=network()).model,
            pictures(3, 12, 12, seed=1),
        )

    def test_another_architecture(self, slimmed: Slimmed, tmp_path: Path) -> None:
        folder = slimmed.save(tmp_path / "out")
        with pytest.raises(PlanError, match="'second' is not in the network"):
            load(folder, architecture=nn.Sequential(nn.Conv2d(3, 16, 3)))

    def test_training_mode_and_architecture_are_left_alone(
        self, slimmed: Slimmed, tmp_path: Path
    ) -> None:
        architecture = network().train()
        before = {k: v.clone() for k, v in architecture.state_dict().items()}
        again = load(slimmed.save(tmp_path / "out"), architecture=architecture)
        assert not again.model.training
        assert architecture.training
        assert type(architecture.second) is nn.Conv2d
        torch.testing.assert_close(architecture.state_dict(), before, rtol=0, atol=0)

    def test_what_cannot_be_exported(self, tmp_path: Path) -> None:
        class Branching(Net):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) if float(x.sum()) < 1e9 else x

        model = network(Branching)
        done = slimmed_of(model)
        folder = done.save(tmp_path / "out")
        assert not (folder / "model.pt2").exists()
        notes = json.loads((folder / "plan.json").read_text())["notes"]
        assert any("control flow depends on its data" in note for note in notes)
        assert "no model.pt2 and no model.onnx" in notes[-1]
        assert_same(done.model, load(folder, architecture=model).model, pictures(3, 12, 12, seed=1))


class Pair(NamedTuple):
    """What torch.export saves for no one that has not been told of it."""

    one: Tensor
    other: Tensor


def saved_notes(model: nn.Module, folder: Path) -> list[str]:
    """Notes on files of the network slimmed and saved there."""
    slimmed_of(model, macs=0.7).save(folder)
    notes = json.loads((folder / "plan.json").read_text())["notes"]
    return [note for note in notes if "model." in note]


class TestPrograms:
    def test_outputs_of_a_class_that_torch_export_does_not_know(self, tmp_path: Path) -> None:
        class Two(Net):
            def forward(self, x: Tensor) -> Any:
                return Pair(super().forward(x), x.mean((2, 3)))

        (note,) = saved_notes(network(Two), tmp_path / "out")
        assert note == "model.pt2 returns a dict of one, other where the network returns Pair"
        assert type(load(tmp_path / "out").model(pictures(3, 12, 12, n=1))) is dict

    def test_a_program_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def save(*_: Any) -> None:
            raise RuntimeError("no such type")

        monkeypatch.setattr(torch.export, "save", save)
        (note,) = saved_notes(network(), tmp_path / "out")
        assert note == "no model.pt2: torch.export cannot save the network (no such type)"
        assert not (tmp_path / "out" / "model.pt2").exists()

    def test_a_folder_that_needs_its_original_says_so(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """In Python too, where no command tells the plan's notes."""

        class Branching(Net):
            def forward(self, x: Tensor) -> Any:
                return super().forward(x if x.mean() < 9 else x / 9)

        slimmed_of(network(), macs=0.7).save(tmp_path / "whole")
        assert "onebyone" not in [r.name for r in caplog.records]
        slimmed_of(network(Branching), macs=0.7).save(tmp_path / "out")
        (told,) = (r for r in caplog.records if r.name == "onebyone")
        assert told.levelname == "WARNING"
        assert f"{tmp_path / 'out'} loads again only beside the original" in told.getMessage()
        assert "torch.export cannot export the network" in told.getMessage()

    def test_a_program_with_a_dict_of_outputs_is_loaded_again(self, tmp_path: Path) -> None:
        """What was slimmed from a program is a program of what that returned, without its original too."""

        class Both(Net):
            def forward(self, x: Tensor) -> Any:
                y = super().forward(x)
                return {"classes": y, "parts": [y.relu(), {"mean": y.mean(1)}]}

        file = tmp_path / "both.pt2"
        example = pictures(3, 12, 12, n=2)
        torch.export.save(torch.export.export(network(Both), (example,)), file)
        first = load(file)
        slimmed = slim(first.model, pictures(3, 12, 12, n=24), macs=0.7, latency=False)
        folder = slimmed.save(tmp_path / "out")
        found, wanted = load(folder).model(example), slimmed.model(example)
        assert torch.equal(found["classes"], wanted["classes"])
        assert torch.equal(found["parts"][0], wanted["parts"][0])
        assert torch.equal(found["parts"][1]["mean"], wanted["parts"][1]["mean"])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_onnx_of_types_that_no_runtime_takes(self, dtype: torch.dtype, tmp_path: Path) -> None:
        runtime = pytest.importorskip("onnxruntime")
        model = network(Net).to(dtype)
        assert saved_notes(model, tmp_path / "out") == ["model.onnx computes in float32"]
        session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
        inputs = pictures(3, 12, 12, n=5, seed=1)
        (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        with torch.no_grad():
            wanted = load(tmp_path / "out", architecture=model).model(inputs.to(dtype))
        tolerance = 1e-4 if dtype == torch.float64 else 0.05
        torch.testing.assert_close(
            torch.from_numpy(found), wanted.float(), rtol=tolerance, atol=tolerance
        )

    @pytest.mark.parametrize("count", [len, lambda x: x.shape[0]])
    def test_one_image_at_a_time_is_told(
        self, count: Callable[[Tensor], int], tmp_path: Path
    ) -> None:
        class Fixed(Net):
            def forward(self, x: Tensor) -> Tensor:
                if count(x) == 1:
                    return super().forward(x * 2.0)
                return super().forward(x)

        assert saved_notes(network(), tmp_path / "any") == []
        notes = saved_notes(network(Fixed), tmp_path / "one")
        assert any("one image at a time" in note for note in notes)

    def test_a_network_that_takes_the_length_of_its_batch(self, tmp_path: Path) -> None:
        class Viewed(Net):
            def forward(self, x: Tensor) -> Tensor:
                x = self.third(self.second(self.norm(self.first(x)).relu()).relu())
                return self.last(x.view(len(x), 24, -1).mean(-1))

        slimmed = slimmed_of(network(Viewed), macs=0.7)
        folder = tmp_path / "out"
        assert saved_notes(network(Viewed), folder) == []
        loaded, inputs = load(folder), pictures(3, 12, 12, n=5, seed=1)
        assert loaded.fixed_batch is None
        assert_same(slimmed.model, loaded.model, inputs)
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(str(folder / "model.onnx"))
        (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(found), slimmed.model(inputs), rtol=1e-4, atol=1e-5
        )


def test_deepened_from_a_network_without_a_source(tmp_path: Path) -> None:
    """The plan that it was made from is all that tells of the network in between."""
    model = network()
    slimmed = slimmed_of(model, macs=0.4)
    deeper = deepen(slimmed.model, pictures(3, 12, 12, n=1), Budget(macs=1.0), reference=model,
                    source=slimmed.plan)  # fmt: skip
    folder = deeper.save(tmp_path / "deeper")
    inputs = pictures(3, 12, 12, seed=1)
    assert_same(deeper.model, load(folder, architecture=model).model, inputs)
    damaged = json.loads((folder / "plan.json").read_text()) | {"source": {}}
    (folder / "plan.json").write_text(json.dumps(damaged))
    with pytest.raises(PlanError, match="names no network"):
        load(folder, architecture=model)


WITHOUT = """
import json, sys
sys.modules["onebyone"] = None  # importing it is an error now
import numpy, onnxruntime, torch
from safetensors.torch import load_file
inputs = torch.from_numpy(numpy.load("inputs.npy"))
program = torch.export.load("out/model.pt2").module()
numpy.save("program.npy", program(inputs).detach().numpy())
session = onnxruntime.InferenceSession("out/model.onnx", providers=["CPUExecutionProvider"])
(output,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
numpy.save("onnx.npy", output)
print(json.dumps(sorted(load_file("out/weights.safetensors"))))
"""


def test_all_files_work_without_onebyone(slimmed: Slimmed, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    slimmed.save(tmp_path / "out")
    inputs = pictures(3, 12, 12, n=7, seed=1)
    np.save(tmp_path / "inputs.npy", inputs.numpy())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = slimmed.model(inputs)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "program.npy")), expected)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "onnx.npy")), expected)
    assert json.loads(done.stdout) == sorted(slimmed.model.state_dict())


@pytest.mark.usefixtures("no_onnx")
class TestFiles:
    def test_weights_are_those_of_the_model(self, slimmed: Slimmed, tmp_path: Path) -> None:
        folder = slimmed.save(tmp_path / "out")
        state = load_file(folder / "weights.safetensors")
        assert state.keys() == slimmed.model.state_dict().keys()
        for name, tensor in slimmed.model.state_dict().items():
            assert torch.equal(state[name], tensor)

    def test_tied_weights_as_safetensors_loads_them(self, tmp_path: Path) -> None:
        done = slimmed_of(network(Tied))
        folder = done.save(tmp_path / "out")
        other = load(folder, architecture=network(Tied)).model
        nn.init.zeros_(next(other.first.parameters()))  # type: ignore[union-attr]
        missing, unexpected = load_model(other, folder / "weights.safetensors")
        assert not missing
        assert not unexpected
        assert_same(done.model, other, pictures(3, 12, 12, seed=1))

    def test_same_bytes_every_time(self, tmp_path: Path) -> None:
        folders = []
        for name in ("one", "two"):
            torch.manual_seed(len(name) if folders else 99)  # the caller's own state has no part
            folders.append(slimmed_of(network(Tied)).save(tmp_path / name))
        for file in ("plan.json", "weights.safetensors"):
            assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()

    def test_another_seed_gives_others(self, slimmed: Slimmed) -> None:
        other = slimmed_of(network(), seed=1)
        assert not torch.equal(
            other.model.state_dict()["second.conv.weight"][0, 0],
            slimmed.model.state_dict()["second.conv.weight"][0, 0],
        )

    def test_permissions_are_those_of_new_files(self, slimmed: Slimmed, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            folder = slimmed.save(tmp_path / "out")
        finally:
            os.umask(before)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o750
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}
        assert set(modes.values()) == {0o640}, modes

    def test_no_file_but_those_that_are_known(self, slimmed: Slimmed, tmp_path: Path) -> None:
        folder = slimmed.save(tmp_path / "out")
        assert {p.name for p in folder.iterdir()} == set(files.SAVED) - {files.ONNX}

    def test_a_missing_package_is_told(self, slimmed: Slimmed, tmp_path: Path) -> None:
        folder = slimmed.save(tmp_path / "out")
        notes = json.loads((folder / "plan.json").read_text())["notes"]
        assert notes[-1] == "no model.onnx: left out by the test"

    def test_model_is_not_changed_by_saving(self, slimmed: Slimmed, tmp_path: Path) -> None:
        slimmed.model.train()
        try:
            slimmed.save(tmp_path / "out")
            assert slimmed.model.training
        finally:
            slimmed.model.eval()


@pytest.mark.usefixtures("no_onnx")
class TestWhatStandsThere:
    def test_an_empty_folder_and_one_of_ours(self, slimmed: Slimmed, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        folder = slimmed.save(tmp_path / "out")
        (folder / "report.html").write_text("old")
        slimmed.save(folder)
        assert (folder / "report.html").read_text() != "old"

    @pytest.mark.parametrize("name", ["notes.txt", "plan.json"])
    def test_a_folder_that_is_not_ours(self, name: str, slimmed: Slimmed, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / name).write_text("{}")
        with pytest.raises(OutputError, match=r"out exists and .*--force"):
            slimmed.save(out)
        assert [p.name for p in out.iterdir()] == [name]
        slimmed.save(out, force=True)
        assert (out / "weights.safetensors").exists()
        assert not (out / "notes.txt").exists()

    def test_ours_with_a_file_of_the_users(self, slimmed: Slimmed, tmp_path: Path) -> None:
        folder = slimmed.save(tmp_path / "out")
        (folder / "tuned.pt").write_text("precious")
        with pytest.raises(OutputError, match=r"tuned\.pt"):
            slimmed.save(folder)
        assert (folder / "tuned.pt").read_text() == "precious"

    def test_a_file(self, slimmed: Slimmed, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("a file")
        with pytest.raises(OutputError, match="is a file"):
            slimmed.save(tmp_path / "out")
        slimmed.save(tmp_path / "out", force=True)
        assert (tmp_path / "out" / "plan.json").exists()

    def test_a_link_is_followed(self, slimmed: Slimmed, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "out").symlink_to(tmp_path / "disk")
        slimmed.save(tmp_path / "out")
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "disk" / "plan.json").exists()

    @pytest.mark.parametrize("force", [False, True])
    def test_never_what_is_read_or_worked_in(
        self, force: bool, tmp_path: Path, slimmed: Slimmed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = slimmed.save(tmp_path / "first")
        before = (folder / "weights.safetensors").read_bytes()
        first = load(folder)
        twice = replace(slimmed, plan=replace(slimmed.plan, source=first.source))
        for out in (folder, tmp_path):
            with pytest.raises(OutputError, match="reads or works"):
                twice.save(out, force=force)
        monkeypatch.chdir(folder)
        with pytest.raises(OutputError, match="reads or works"):
            slimmed.save(".", force=force)
        assert (folder / "weights.safetensors").read_bytes() == before

    def test_a_mounted_disk(
        self, slimmed: Slimmed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "out").mkdir()
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "out")
        with pytest.raises(OutputError, match=r"mounted disk.*out/slimmed"):
            slimmed.save(tmp_path / "out")

    @pytest.mark.parametrize("force", [False, True])
    def test_a_pipe_stays(self, slimmed: Slimmed, tmp_path: Path, force: bool) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        with pytest.raises(OutputError, match=r"pipe is a device or a pipe.*give a folder"):
            slimmed.save(pipe, force=force)
        assert pipe.is_fifo()

    def test_a_place_that_cannot_be_written(
        self, slimmed: Slimmed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: Any, **kwargs: Any) -> str:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
        with pytest.raises(OutputError, match="cannot be written: Read-only file system"):
            slimmed.save(tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


STAGES = ["save_file", "export_onnx", "write_text", "_swap"]


class TestFailuresInTheMiddle:
    @pytest.mark.parametrize("stage", STAGES)
    @pytest.mark.parametrize(
        "failure", [OSError(28, "No space left on device"), KeyboardInterrupt()]
    )
    @pytest.mark.parametrize("existing", [False, True])
    def test_nothing_is_left_and_the_old_stays(
        self,
        stage: str,
        failure: BaseException,
        existing: bool,
        slimmed: Slimmed,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise failure

        monkeypatch.setattr(saving, "export_onnx", lambda network, path: None)
        out = tmp_path / "out"
        if existing:
            slimmed.save(out)
        before = contents(out)
        monkeypatch.setattr(saving, stage, fail)
        expected = OutputError if isinstance(failure, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            slimmed.save(out)
        if expected is OutputError:
            assert "No space left on device" in str(caught.value)
        assert contents(out) == before
        assert [p.name for p in tmp_path.iterdir()] == (["out"] if existing else [])

    @pytest.mark.parametrize("failing", [1, 2])
    @pytest.mark.parametrize("failure", [OSError(5, "Input/output error"), KeyboardInterrupt()])
    def test_while_the_folders_change_places(
        self,
        failing: int,
        failure: BaseException,
        slimmed: Slimmed,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(saving, "export_onnx", lambda network, path: None)
        out = slimmed.save(tmp_path / "out")
        before = contents(out)
        rename, calls = Path.rename, []

        def sometimes(self: Path, target: Path) -> Path:
            calls.append(self)
            if len(calls) == failing:
                raise failure
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", sometimes)
        with pytest.raises((OutputError, KeyboardInterrupt)):
            slimmed.save(out)
        assert len(calls) >= failing
        assert contents(out) == before
        assert [p.name for p in tmp_path.iterdir()] == ["out"]

    def test_onnx_failing_is_only_noted(
        self, slimmed: Slimmed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def half(network: Any, path: Path) -> None:
            path.write_bytes(b"half of it")
            raise ModelError("ONNX export failed (ValueError: no such operator)")

        monkeypatch.setattr(saving, "export_onnx", half)
        folder = slimmed.save(tmp_path / "out")
        assert not (folder / "model.onnx").exists()
        assert "no such operator" in json.loads((folder / "plan.json").read_text())["notes"][-1]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}


@pytest.fixture(scope="module")
def saved(slimmed: Slimmed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "export_onnx", lambda network, path: None)
        return slimmed.save(tmp_path_factory.mktemp("saved") / "out")


class TestDamage:
    def copied(self, saved: Path, tmp_path: Path, **changes: Callable[[Any], Any]) -> Path:
        """A copy of the folder with top-level values of its plan changed."""
        folder = Path(shutil.copytree(saved, tmp_path / "copy"))
        values = json.loads((folder / "plan.json").read_text())
        for key, change in changes.items():
            values[key] = change(values[key])
        (folder / "plan.json").write_text(json.dumps(values))
        return folder

    @pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "model.pt2"])
    @pytest.mark.parametrize(
        "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\0" * 64]
    )
    def test_damaged_files(
        self, name: str, damage: Callable[[bytes], bytes], saved: Path, tmp_path: Path
    ) -> None:
        folder = self.copied(saved, tmp_path)
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        architecture = network() if name == "weights.safetensors" else None
        with pytest.raises((PlanError, ModelError), match=name):
            load(folder, architecture=architecture)

    def test_damaged_weights_beside_a_sound_program_are_told(
        self, saved: Path, slimmed: Slimmed, tmp_path: Path
    ) -> None:
        folder = self.copied(saved, tmp_path)
        weights = folder / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        loaded = load(folder)
        assert "weights.safetensors is damaged" in loaded.notes[-1]
        assert "it was not needed" in loaded.notes[-1]
        assert_same(slimmed.model, loaded.model, pictures(3, 12, 12, seed=1))
        weights.unlink()
        assert "weights.safetensors is missing" in load(folder).notes[-1]

    @pytest.mark.parametrize("name", ["plan.json", "weights.safetensors"])
    def test_missing_files(self, name: str, saved: Path, tmp_path: Path) -> None:
        folder = self.copied(saved, tmp_path)
        (folder / name).unlink()
        with pytest.raises(ModelError, match=name):
            load(folder, architecture=network())

    @pytest.mark.parametrize("value", [None, [], "text", {"preprocess": {"size": 3}}])
    def test_model_description(self, value: Any, saved: Path, tmp_path: Path) -> None:
        folder = self.copied(saved, tmp_path, model=lambda _: value)
        with pytest.raises(Exception, match=r"plan\.json|preprocessing") as caught:
            load(folder)
        assert type(caught.value).__module__ == "onebyone.errors"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("preprocess", v) for v in ("x", 5, [1], {"sizes": 3})),
            *(("classes", v) for v in ("x", 5, [1, 2], {"a": "b"})),
            *(("channels_last", v) for v in ("x", 5, 1.5, [0])),
        ],
    )
    def test_parts_of_the_model_description(
        self, name: str, value: Any, saved: Path, tmp_path: Path
    ) -> None:
        folder = self.copied(saved, tmp_path, model=lambda about: about | {name: value})
        with pytest.raises(PlanError, match=rf"plan\.json has damaged `{name}` of its `model`: .+"):
            load(folder)

    def test_an_input_that_no_memory_holds(self, saved: Path, tmp_path: Path) -> None:
        folder = self.copied(saved, tmp_path, input_shape=lambda size: [size[0], 10**12, 10**3])
        with pytest.raises(PlanError, match=r"the plan's input_shape .* cannot be made"):
            load(folder, architecture=network())

    def test_a_source_that_is_its_own_folder(self, saved: Path, tmp_path: Path) -> None:
        folder = self.copied(
            saved, tmp_path, source=lambda _: {"spec": str(tmp_path / "copy"), "weights": None}
        )
        (note,) = load(folder).notes
        assert "without the plan in that" in note

    def test_a_source_that_would_run_code(
        self, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = self.copied(
            saved, tmp_path, source=lambda _: {"spec": "evil:net", "weights": None}
        )
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        monkeypatch.chdir(folder)
        (note,) = load(".").notes
        assert "evil:net" in note
        assert not (tmp_path / "ran").exists()


class TestPlans:
    def test_read_and_written_again(self, saved: Path, slimmed: Slimmed) -> None:
        plan = files_plan(saved)
        assert plan.decisions == slimmed.plan.decisions
        assert plan.budget == slimmed.plan.budget

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            ({"form": "magic"}, r"layer 2 \(second\): there is no form 'magic'.*keep"),
            ({"ranks": {"in": 99}}, r"layer 2 \(second\): rank in=99 .*from 1 to 16"),
            ({"ranks": {"in": 0}}, r"\(second\): rank in=0"),
            ({"ranks": {"in": 2.5}}, r"\(second\): rank in=2.5"),
            ({"ranks": {"in": True}}, r"\(second\): rank in=True"),
            ({"ranks": {"out": 3}}, r'\(second\): the form squeeze takes ranks {"in": a number}'),
            ({"ranks": 3}, r"\(second\): the form squeeze takes ranks"),
            ({"form": "pointwise"}, r"\(second\): the form pointwise does not suit"),
            ({"conv": None}, r"\(second\): a layer of this kind has no forms"),
            ({"conv": {"kernel": 3}}, r"\(second\) is damaged"),
            ({"positions_in": -1}, r"\(second\) is damaged: -1 stands"),
            ({"layer": "first"}, "has the layer 'first' twice"),
        ],
    )
    def test_nonsense_is_named(
        self, edit: dict[str, Any], message: str, saved: Path, tmp_path: Path
    ) -> None:
        values = json.loads((saved / "plan.json").read_text())
        layer = next(v for v in values["layers"] if v["layer"] == "second")
        layer |= {"form": "squeeze", "ranks": {"in": 8}} | edit
        (tmp_path / "plan.json").write_text(json.dumps(values))
        with pytest.raises(PlanError, match=message):
            files_plan(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda v: v.pop("layers"), "'layers' is missing"),
            (lambda v: v["layers"].append(3), "3 is no layer"),
            (
                lambda v: v["layers"][0].pop("form"),
                r"layer 1 \(first\) is damaged: 'form' is missing",
            ),
            (lambda v: v.update(schema="onebyone.plan/0"), "no plan of this version"),
            (lambda v: v.update(budget={"macs": 7}), "macs=7"),
            (lambda v: v.update(budget={"speed": 1}), "speed"),
            (lambda v: v.update(source=3), "the source 3"),
            (lambda v: v.update(seed="x"), "'x' stands where a whole number"),
        ],
    )
    def test_damage_is_named(
        self, change: Callable[[Any], Any], message: str, saved: Path, tmp_path: Path
    ) -> None:
        values = json.loads((saved / "plan.json").read_text())
        change(values)
        (tmp_path / "plan.json").write_text(json.dumps(values))
        with pytest.raises(PlanError, match=message):
            files_plan(tmp_path)

    def test_ranks_left_behind_by_an_edit_to_keep(self, saved: Path, tmp_path: Path) -> None:
        values = json.loads((saved / "plan.json").read_text())
        for layer in values["layers"]:
            layer["form"] = "keep"
        (tmp_path / "plan.json").write_text(json.dumps(values))
        plan = files_plan(tmp_path)
        assert plan.macs_after == plan.macs_before

    def test_edited_ranks_are_applied(self, slimmed: Slimmed, saved: Path, tmp_path: Path) -> None:
        values = json.loads((saved / "plan.json").read_text())
        for layer in values["layers"]:
            if layer["layer"] == "second":
                layer |= {"form": "tucker2", "ranks": {"in": 5, "out": 7}}
        (tmp_path / "plan.json").write_text(json.dumps(values))
        done = slimmed_of(network(), macs=None, plan=files_plan(tmp_path))
        shapes = [tuple(p.shape) for p in done.model.second.parameters()]  # type: ignore[union-attr]
        assert shapes == [(5, 16, 1, 1), (7, 5, 3, 3), (24, 7, 1, 1), (24,)]
        assert done.verification.after.macs == done.plan.macs_after


def files_plan(folder: Path) -> Any:
    from onebyone.plan_files import read_plan

    return read_plan(folder / "plan.json")


@pytest.mark.parametrize("inside", ["data/out", "data/deep/out"])
def test_a_result_inside_what_is_read(inside: str, tmp_path: Path) -> None:
    """It would be read for a part of that the next time, as a class of images is."""
    (tmp_path / "data" / "deep").mkdir(parents=True)
    read = (None, tmp_path / "data", "demo:test")
    with pytest.raises(OutputError, match=r"would lie in .*/data, which this command reads"):
        check_folder(tmp_path / inside, force=True, inputs=read)
    check_folder(tmp_path / "beside", force=False, inputs=read)


def test_images_that_influence_each_other_in_a_batch_of_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(12, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 12, 3), norm, nn.ReLU(), nn.Conv2d(12, 8, 3))
    images = torch.randn(24, 3, 8, 8)
    found = slim(model.eval(), images, macs=0.7, latency=False, held_out=0)
    again = load(found.save(tmp_path / "out")).model
    for batch in (images[:1], images[:3], images):
        with torch.no_grad():
            torch.testing.assert_close(again(batch), found.model(batch))
