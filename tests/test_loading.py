"""load: every kind of spec, and files that are damaged or mean harm."""

import copy
import io
import json
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import onebyone as obo
from onebyone.demo import networks
from onebyone.errors import MissingExtraError, ModelError
from onebyone.loading import load, module_of, open_program, read_weights
from onebyone.preprocessing import Preprocess


class Harm:
    """Creates a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    nn.init.normal_(model.get_buffer("1.running_mean"))
    return model.eval()


def export(model: nn.Module, example: Tensor, path: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (example,), **options), path)
    return path


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of factories in the working directory."""
    (tmp_path / "my_factories.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))\n"
        "def pair():\n    return net(), torch.zeros(1, 3, 3, 3)\n"
        "def broken():\n    raise ValueError('no luck')\n"
        "def number():\n    return 7\n"
    )
    (tmp_path / "bad_import.py").write_text("import package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_factories", None)


class TestWeights:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda s: s,
            lambda s: {"state_dict": s, "epoch": 3},
            lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
            lambda s: {"model_state_dict": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
            lambda s: {"state_dict": {k: v * 0 for k, v in s.items()}, "ema": s},
        ],
    )
    def test_common_nestings(self, factories: Path, wrap: Callable[[Any], Any]) -> None:
        wanted = load("my_factories:pair").model.state_dict()
        torch.save(wrap(wanted), "w.pth")
        with torch.random.fork_rng():
            torch.manual_seed(5)
            found = load("my_factories:pair", weights="w.pth").model.state_dict()
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)

    def test_safetensors(self, factories: Path) -> None:
        wanted = load("my_factories:pair").model.state_dict()
        save_file(wanted, "w.safetensors")
        loaded = load("my_factories:pair", weights="w.safetensors")
        torch.testing.assert_close(loaded.model.state_dict(), wanted, rtol=0, atol=0)
        assert loaded.source["weights"] == str(factories / "w.safetensors")
        json.dumps(loaded.source)

    def test_misfits_are_counted_and_named(self, factories: Path) -> None:
        state = dict(load("my_factories:pair").model.state_dict())
        state["extra"] = state.pop("0.bias")
        state["2.weight"] = torch.zeros(3, 4)
        torch.save(state, "w.pt")
        with pytest.raises(ModelError) as caught:
            load("my_factories:pair", weights="w.pt")
        for part in ("1 missing (0.bias)", "1 unexpected (extra)", "2.weight (3, 4) for (2, 4)"):
            assert part in str(caught.value)

    @pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.tar"])
    def test_pickle_is_not_executed(self, tmp_path: Path, name: str) -> None:
        marker = tmp_path / "harmed"
        torch.save({"state_dict": {"a": torch.ones(1)}, "args": Harm(marker)}, tmp_path / name)
        with pytest.raises(ModelError, match="--trust"):
            read_weights(tmp_path / name)
        assert not marker.exists()
        assert read_weights(tmp_path / name, trust=True).keys() == {"a"}
        assert marker.exists()

    def test_bare_pickle_is_not_executed(self, tmp_path: Path) -> None:
        marker = tmp_path / "harmed"
        (tmp_path / "w.pt").write_bytes(pickle.dumps(Harm(marker)))
        with pytest.raises(ModelError):
            read_weights(tmp_path / "w.pt")
        assert not marker.exists()

    @pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.txt"])
    def test_damaged(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            read_weights(tmp_path / name)
        with pytest.raises(ModelError, match="does not exist"):
            read_weights(tmp_path / "missing.pt")

    def test_what_a_failed_download_left(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pth"
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(ModelError, match=r"pointer of Git LFS.*git lfs pull"):
            read_weights(path)
        path.write_bytes(b"<html>404 Not Found</html>")
        with pytest.raises(ModelError, match="no PyTorch file: it begins with b'<html>404") as told:
            read_weights(path)
        assert "trust" not in str(told.value)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_both_formats_of_files(self, zipped: bool, tmp_path: Path) -> None:
        state = {"a": torch.randn(3)}
        torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        assert torch.equal(read_weights(tmp_path / "w.pt")["a"], state["a"])

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_scripts_are_told_from_damage(self, tmp_path: Path) -> None:
        path = tmp_path / "net.pt"
        torch.jit.save(torch.jit.script(nn.Conv2d(3, 4, 1)), path)
        with pytest.raises(ModelError, match=r"TorchScript archive, which holds code\. .* --trust"):
            read_weights(path)
        assert read_weights(path, trust=True).keys() == {"weight", "bias"}

    def test_no_weights_inside(self, tmp_path: Path) -> None:
        torch.save({"epoch": 3}, tmp_path / "w.pt")
        with pytest.raises(ModelError, match="holds no weights"):
            read_weights(tmp_path / "w.pt")


class TestFactories:
    def test_pair_brings_its_example(self, factories: Path) -> None:
        model, example = load("my_factories:pair")
        assert example.shape == (1, 3, 3, 3)
        assert not model.training
        assert model(example).shape == (1, 2)
        assert str(factories) not in sys.path

    def test_inputs_of_any_kind(self, factories: Path) -> None:
        Path("my_factories.py").write_text(
            "import torch\nfrom torch import nn\nnet = nn.Identity()\nx = torch.ones(2, 3)\n"
            "example = [x]\n"
            "def alone():\n    return net\n"
            "def several():\n    return net, ({'flag': 1}, x, [x + 1], None)\n"
            "def nothing():\n    return net, ()\n"
        )
        several = load("my_factories:several")
        assert [type(given) for given in several.inputs] == [dict, Tensor, list, type(None)]
        assert several.example is several.inputs[1]
        _, example = several
        assert example is several.example
        [alone] = load("my_factories:alone").inputs
        assert torch.equal(alone[0], torch.ones(2, 3))
        assert load("my_factories:several", input_size=(3, 4, 5)).inputs[0].shape == (1, 3, 4, 5)
        with pytest.raises(ModelError, match="a tuple without a tensor"):
            load("my_factories:nothing")

    def test_input_size(self, factories: Path) -> None:
        assert load("my_factories:net", input_size=(3, 5, 6)).example.shape == (1, 3, 5, 6)
        with pytest.raises(ModelError, match="--input 3x224x224"):
            load("my_factories:net")

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("my_factories:nett", "nearest are net"),
            ("my_factories:broken", "ValueError: no luck"),
            ("my_factories:number", "gave a int"),
            ("no_such_module:f", "cannot be found"),
            ("bad_import:f", "package_that_is_not_there"),
        ],
    )
    def test_refusals(self, factories: Path, spec: str, message: str) -> None:
        with pytest.raises(ModelError, match=message):
            load(spec)

    def test_random_weights_are_not_for_factories(self, factories: Path) -> None:
        with pytest.raises(ModelError, match="random"):
            load("my_factories:pair", weights="random")


class TestSpecs:
    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("resnet18", "did you mean torchvision:resnet18"),
            ("missing.pt2", "does not exist"),
            ("missing.onnx", "does not exist"),
            ("some/where", "no such folder"),
            ("demo:lenet", "demo:resnet"),
        ],
    )
    def test_refusals(self, spec: str, message: str) -> None:
        with pytest.raises(ModelError, match=message):
            load(spec)

    def test_a_folder_of_another_kind(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"plan\.json"):
            load(tmp_path)

    def test_weights_alone_are_no_model(self, tmp_path: Path) -> None:
        torch.save(small().state_dict(), tmp_path / "w.pt")
        save_file(small().state_dict(), tmp_path / "w.safetensors")
        for name in ("w.pt", "w.safetensors"):
            with pytest.raises(ModelError, match="--weights"):
                load(tmp_path / name)

    def test_a_pickled_module_only_where_trusted(self, tmp_path: Path) -> None:
        torch.save(small(), tmp_path / "whole.pt")
        with pytest.raises(ModelError, match="--trust"):
            load(tmp_path / "whole.pt", input_size=(3, 8, 8))
        model, example = load(tmp_path / "whole.pt", input_size=(3, 8, 8), trust=True)
        torch.testing.assert_close(model(example), small()(example), rtol=0, atol=0)

    @pytest.mark.parametrize("name", ["vgg", "resnet"])
    def test_demo(self, tmp_path: Path, name: str) -> None:
        made = networks.NETWORKS[name]().half()
        save_file(made.state_dict(), tmp_path / "w.safetensors")
        loaded = load(f"demo:{name}", weights=tmp_path / "w.safetensors")
        assert {v.dtype for v in loaded.model.parameters()} == {torch.float32}
        torch.testing.assert_close(
            loaded.model.state_dict(), made.float().state_dict(), rtol=0, atol=0
        )
        assert loaded.example.shape == (1, 1, 28, 28)
        assert loaded.preprocess == Preprocess((1, 28, 28), (0.2860,), (0.3530,))
        assert loaded.classes == networks.CLASSES

    def test_random_demo_is_seeded_and_leaves_the_random_state(self) -> None:
        before = torch.get_rng_state()
        a, b, c = (load("demo", weights="random", seed=s).model.state_dict() for s in (1, 1, 2))
        assert torch.equal(before, torch.get_rng_state())
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert not torch.equal(a["conv1_1.weight"], c["conv1_1.weight"])


class TestSizes:
    def net(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        ).eval()

    def test_a_built_in_network_of_another_size(self) -> None:
        loaded = load("demo", input_size=(1, 36, 32))
        assert loaded.example.shape == (1, 1, 36, 32)
        assert loaded.preprocess is None  # its pictures would have another size
        assert load("demo", input_size=(1, 28, 28)).preprocess is not None
        with pytest.raises(ModelError, match="inputs of 1×28×28, and does not take 3×28×28"):
            load("demo", input_size=(3, 28, 28))

    def test_a_program_takes_the_size_that_it_was_made_for(self, tmp_path: Path) -> None:
        path = export(self.net(), torch.randn(1, 3, 16, 16), tmp_path / "m.pt2")
        assert load(path, input_size=(3, 16, 16)).example.shape == (1, 3, 16, 16)
        for size in ((3, 24, 16), (3, 16)):
            with pytest.raises(ModelError, match="a program for inputs of 3×16×16, not of 3×"):
                load(path, input_size=size)

    def test_a_program_with_free_sizes_takes_others(self, tmp_path: Path) -> None:
        net = self.net()
        free = ({n: torch.export.Dim(name, min=8, max=64) for n, name in ((2, "h"), (3, "w"))},)
        x = torch.randn(1, 3, 16, 20)
        path = export(net, x, tmp_path / "m.pt2", dynamic_shapes=free)
        model, example = load(path, input_size=(3, 24, 12))
        assert example.shape == (1, 3, 24, 12)
        torch.testing.assert_close(model(example), net(example))
        with pytest.raises(ModelError, match="not of 4×24×12"):
            load(path, input_size=(4, 24, 12))

    def test_a_slimmed_folder(self, tmp_path: Path) -> None:
        images = obo.Images(torch.randn(16, 3, 16, 16))
        slimmed = obo.slim(self.net(), images, macs=0.9, held_out=0, latency=False)
        slimmed.save(tmp_path / "out")
        architecture = self.net()
        loaded = load(tmp_path / "out", architecture=architecture, input_size=(3, 9, 12))
        assert loaded.example.shape == (1, 3, 9, 12)
        with pytest.raises(ModelError, match="does not take 3×2×2"):
            load(tmp_path / "out", architecture=architecture, input_size=(3, 2, 2))

    def test_one_size_for_several_inputs(self, tmp_path: Path) -> None:
        class Two(nn.Module):
            def forward(self, a: Tensor, b: Tensor) -> Tensor:
                return a + b

        x = torch.randn(2, 3, 8, 8)
        torch.export.save(torch.export.export(Two(), (x, x)), tmp_path / "m.pt2")
        with pytest.raises(ModelError, match="takes several inputs, and one size was given"):
            load(tmp_path / "m.pt2", input_size=(3, 8, 8))


class Traps(nn.Module):
    """Layers that a program's calls can be told from only with care."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 4, (3, 5), padding="same", bias=False)
        self.depthwise = nn.Conv2d(4, 4, 3, stride=2, padding=1, dilation=2, groups=4)
        self.twice = nn.Conv2d(4, 4, 1)
        self.scaled = nn.Conv2d(4, 4, 1)
        self.kernel = nn.Parameter(torch.randn(4, 4, 2, 2))
        self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.depthwise(self.same(x))
        x = self.twice(torch.relu(self.twice(x)))
        x = F.conv2d(x, self.scaled.weight * 2, self.scaled.bias)
        x = F.conv2d(x, self.twice.weight, None, stride=2)
        x = self.circular(F.conv2d(x, self.kernel))
        return {"logits": self.fc(x.mean((2, 3)).view(len(x), 4)), "features": x}


class TestPrograms:
    def test_layers_come_back_under_their_names(self, tmp_path: Path) -> None:
        original = small()
        x = torch.randn(1, 3, 8, 8)
        loaded = load(export(original, x, tmp_path / "m.pt2"))
        kinds = {n: type(m) for n, m in loaded.model.named_modules() if "." not in n and n}
        assert {n: kinds[n] for n in "016"} == {
            "0": nn.Conv2d,
            "1": nn.BatchNorm2d,
            "6": nn.Linear,
        }
        torch.testing.assert_close(loaded.model.state_dict(), original.state_dict(), rtol=0, atol=0)
        assert loaded.fixed_batch is None
        several = torch.randn(5, 3, 8, 8)
        torch.testing.assert_close(loaded.model(several), original(several), rtol=0, atol=0)
        assert not loaded.model.training
        torch.testing.assert_close(loaded.example, x, rtol=0, atol=0)

    @pytest.mark.parametrize("training", [False, True])
    def test_free_batch_and_training_mode(self, tmp_path: Path, training: bool) -> None:
        original = networks.resnet().train(training)
        x = torch.randn(2, 1, 28, 28)
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        model, example = load(export(original, x, tmp_path / "m.pt2", dynamic_shapes=shapes))
        original.eval()
        torch.testing.assert_close(model(x), original(x), rtol=0, atol=0)
        assert len(example) == 1
        convs = [n for n, m in original.named_modules() if type(m) is nn.Conv2d]
        assert [n for n in convs if type(model.get_submodule(n)) is nn.Conv2d] == convs
        original.train()
        model.train()
        torch.testing.assert_close(model(x), original(x), rtol=0, atol=0)
        torch.testing.assert_close(model.state_dict(), original.state_dict(), rtol=0, atol=0)

    def test_decomposed_programs(self, tmp_path: Path) -> None:
        original = small()
        x = torch.randn(1, 3, 8, 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(original, (x,)).run_decompositions()
            torch.export.save(program, tmp_path / "m.pt2")
        model = load(tmp_path / "m.pt2").model
        kinds = {type(model.get_submodule(n)) for n in "016"}
        assert kinds == {nn.Conv2d, nn.BatchNorm2d, nn.Linear}
        several = torch.randn(4, 3, 8, 8)
        torch.testing.assert_close(model(several), original(several), rtol=1e-5, atol=1e-6)

    def test_traps(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        original = Traps().eval()
        x = torch.randn(1, 3, 16, 16)
        model: Any = load(export(original, x, tmp_path / "m.pt2")).model
        torch.testing.assert_close(model(x), original(x), rtol=0, atol=0)
        for name in ("same", "depthwise", "twice", "circular"):
            assert type(model.get_submodule(name)) is nn.Conv2d, name
        # Its weight is computed at each pass, from tensors under the names that they had.
        assert type(model.scaled) is not nn.Conv2d
        assert torch.equal(model.scaled.weight, original.scaled.weight)
        assert torch.equal(model.scaled.bias, original.scaled.bias)
        torch.testing.assert_close(
            model.scaled(x[:, :1].expand(-1, 4, -1, -1)),
            F.conv2d(x[:, :1].expand(-1, 4, -1, -1), original.scaled.weight * 2, original.scaled.bias),
            rtol=0, atol=0,
        )  # fmt: skip
        functional = [n.target for n in model.graph.nodes if n.op == "call_function"]
        assert torch.ops.aten.conv2d.default not in functional
        # The stride-2 call has its own layer with the very same weight.
        tied = [m for m in model.modules() if getattr(m, "weight", 0) is model.twice.weight]
        assert sorted(m.stride for m in tied) == [(1, 1), (2, 2)]
        calls = [n.target for n in model.graph.nodes if n.op == "call_module"]
        assert calls.count("twice") == 2

    def test_a_weight_of_the_root_is_that_of_its_layer_alone(self, tmp_path: Path) -> None:
        class Bare(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3))
                self.after = nn.Conv2d(8, 4, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.after(F.conv2d(x, self.kernel))

        original, x = Bare().eval(), torch.randn(2, 3, 8, 8)
        model = load(export(original, x, tmp_path / "m.pt2")).model
        assert sum(p.numel() for p in model.parameters()) == 8 * 27 + 8 * 4 + 4
        assert {type(m) for m in model.children()} == {nn.Conv2d}
        slimmed = obo.slim(model, obo.Images(torch.randn(32, 3, 8, 8)), macs=0.7, latency=False)
        assert not any(d.refused for d in slimmed.plan.decisions)

    def test_the_result_is_an_ordinary_module(self, tmp_path: Path) -> None:
        x = torch.randn(1, 3, 8, 8)
        loaded = load(export(small(), x, tmp_path / "m.pt2"))
        copied = copy.deepcopy(loaded.model)
        setattr(copied, "0", nn.Conv2d(3, 4, 1))
        assert copied(x).shape == (1, 2)
        assert not torch.equal(copied(x), loaded.model(x))
        again = load(export(loaded.model, x, tmp_path / "again.pt2"))
        torch.testing.assert_close(again.model(x), loaded.model(x), rtol=0, atol=0)

    def test_fixed_batch_is_told(self, tmp_path: Path) -> None:
        class Fixed(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.reshape(2, 3, -1).sum(2) * torch.tensor([[1.0], [2.0]])

        loaded = load(export(Fixed(), torch.randn(2, 3, 4, 4), tmp_path / "m.pt2"))
        assert loaded.fixed_batch == 2
        assert loaded.example.shape == (2, 3, 4, 4)
        assert "batches of 2 only" in loaded.notes[0]
        assert torch.equal(copy.deepcopy(loaded.model)(loaded.example), Fixed()(loaded.example))
        with pytest.raises(AssertionError, match="takes batches of 2 only"):
            loaded.model(loaded.example[:1])
        with pytest.raises(ModelError, match="takes batches of 2 only"):
            obo.measure(loaded.model, torch.randn(3, 3, 4, 4))

    def test_a_length_left_open_beside_a_fixed_batch(self, tmp_path: Path) -> None:
        class Viewed(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.view(len(x), 3, -1).mean(-1)

        x = torch.randn(4, 3, 4, 4)
        loaded = load(export(Viewed(), x[:1], tmp_path / "m.pt2"))
        assert loaded.fixed_batch is None
        assert torch.equal(loaded.model(x), Viewed()(x))

    def test_several_inputs(self) -> None:
        class Sum(nn.Module):
            def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
                return x + scale * y

        inputs = torch.ones(1, 3), torch.full((1, 3), 2.0)
        made = module_of(torch.export.export(Sum(), inputs))
        assert torch.equal(made.model(*made.inputs), torch.full((1, 3), 3.0))
        with pytest.raises(ModelError, match="not one batch size"):
            module_of(torch.export.export(Sum(), (torch.ones(2, 3), torch.ones(1, 3))))
        with pytest.raises(ModelError, match=r"takes 2\.0, which is no tensor"):
            module_of(torch.export.export(Sum(), (*inputs, 2.0)))

    def test_damaged(self, tmp_path: Path) -> None:
        (tmp_path / "m.pt2").write_bytes(b"PK nothing")
        with pytest.raises(ModelError, match="damaged"):
            load(tmp_path / "m.pt2")
        with zipfile.ZipFile(tmp_path / "z.pt2", "w") as archive:
            archive.writestr("a.txt", "hello")
        with pytest.raises(ModelError, match="cannot be read"):
            load(tmp_path / "z.pt2")


def tampered(path: Path, change: Callable[[str, bytes], bytes], **added: bytes) -> Path:
    """The archive with its records changed and others added."""
    target = path.with_name("tampered.pt2")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as fresh:
        for name in archive.namelist():
            fresh.writestr(name, change(name, archive.read(name)))
        root = archive.namelist()[0].split("/")[0]
        for name, content in added.items():
            fresh.writestr(f"{root}/{name}", content)
    return target


def in_json(old: str, new: str) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith(".json"):
            return content
        return content.decode().replace(old, new).encode()

    return change


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "m.pt2"
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    return export(small(), torch.randn(2, 3, 8, 8), path, dynamic_shapes=shapes)


class Tied(nn.Module):
    """Layers that share some of their tensors and not others; `kind` says which."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        if kind == "weight":
            self.b.weight = self.a.weight
        elif kind == "bias":
            self.b.bias = self.a.bias
        elif kind == "one without bias":
            self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.b.weight = self.a.weight
        elif kind == "transposed":
            self.b = nn.ConvTranspose2d(4, 4, 3, padding=1)  # type: ignore[assignment]
            self.b.weight = self.a.weight
        elif kind == "norm":
            self.a, self.b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)  # type: ignore[assignment]
            self.b.weight, self.b.bias = self.a.weight, self.a.bias
            nn.init.normal_(self.a.get_buffer("running_mean"))
            nn.init.uniform_(self.b.get_buffer("running_var"), 1, 2)
        elif kind == "linear":
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)  # type: ignore[assignment]
            self.b.weight = self.a.weight
        elif kind == "constant":
            self.register_buffer("blur", torch.rand(4, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "constant":
            x = F.conv2d(x, self.blur, self.a.bias, padding=1, groups=4)
            x = F.conv2d(x, self.blur, padding=1, groups=4)
        return self.b(self.a(x).relu())


KINDS = ("weight", "bias", "one without bias", "transposed", "norm", "linear", "constant")


class TestTiedPrograms:
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_layers_share_is_shared_and_nothing_else(self, kind: str, tmp_path: Path) -> None:
        model, x = Tied(kind).eval(), torch.randn(2, 4, 8, 8)
        loaded = load(export(model, x, tmp_path / "m.pt2")).model
        torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
        assert numbers(loaded.parameters()) == numbers(model.parameters())
        own = {n: t for n, t in loaded.state_dict().items() if not n.endswith("tracked")}
        expected = {n: t for n, t in model.state_dict().items() if not n.endswith("tracked")}
        assert own.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(own[name], tensor), name

    def test_constants_are_no_parameters(self, tmp_path: Path) -> None:
        """A blur stays what it was: not counted as weights, not trained, not slimmed."""
        path = export(Tied("constant").eval(), torch.randn(1, 4, 8, 8), tmp_path / "m.pt2")
        loaded = load(path).model
        assert "blur" in dict(loaded.named_buffers())
        assert {n for n, m in loaded.named_modules() if isinstance(m, nn.Conv2d)} == {"a", "b"}

    @pytest.mark.parametrize(
        "key", ["low level", "stage (1)", "a[0], b=1", "#1", "import os", "ü|x"]
    )
    def test_names_of_layers_may_be_any_text(self, key: str, tmp_path: Path) -> None:
        model, x = Keyed(key).eval(), torch.randn(2, 3, 8, 8)
        loaded = load(export(model, x, tmp_path / "m.pt2")).model
        torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
        assert loaded.state_dict().keys() == model.state_dict().keys()

    @pytest.mark.parametrize("key", ['a"b', "a'b", "a\\b", "a\nb", "a{b}"])
    def test_but_none_that_ends_its_quotes(self, key: str, tmp_path: Path) -> None:
        path = export(Keyed(key).eval(), torch.randn(2, 3, 8, 8), tmp_path / "m.pt2")
        with pytest.raises(ModelError, match=r"may run code.*--trust"):
            load(path)


class Keyed(nn.Module):
    """A convolution under a name that is no identifier."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({key: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))})
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[self.key](x)


class OfOne(nn.Module):
    """A network that a program of one image makes one of that image alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean((2, 3))
        return y[torch.arange(x.shape[0]), y.argmax(1)]


class Counting(nn.Module):
    """A network whose outputs depend on how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs.add_(1)
        return self.conv(x) + self.runs


class Telling(nn.Module):
    """Outputs that are no floats, and one for the whole batch."""

    def __init__(self, told: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.told = nn.Conv2d(3, 5, 3), told

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        others = {"bool": y > 0, "mean": y.mean(), "none": None, "classes": y.argmax(1)}
        return y, others[self.told]


class TestBatchesOfPrograms:
    @pytest.mark.parametrize("draw", [torch.zeros, torch.ones, torch.randn])
    def test_a_program_of_one_image_is_seen_on_any_example(
        self, draw: Callable[..., Tensor], tmp_path: Path
    ) -> None:
        path = export(OfOne().eval(), draw(1, 3, 8, 8), tmp_path / "m.pt2")
        assert load(path).fixed_batch == 1

    def test_what_a_program_keeps_is_what_its_file_holds(self, tmp_path: Path) -> None:
        model, x = Counting().eval(), torch.randn(2, 3, 8, 8)
        loaded = load(export(model, x, tmp_path / "m.pt2"))
        assert loaded.fixed_batch is None
        assert float(loaded.model.get_buffer("runs")) == 0.0
        torch.testing.assert_close(loaded.model(x), model(x), rtol=0, atol=0)

    @pytest.mark.parametrize("told", ["bool", "mean", "none", "classes"])
    def test_outputs_of_any_kind(self, told: str, tmp_path: Path) -> None:
        model, x = Telling(told).eval(), torch.randn(2, 3, 8, 8)
        free = ({0: torch.export.Dim("batch", min=1)},)
        loaded = load(export(model, x, tmp_path / "m.pt2", dynamic_shapes=free))
        assert loaded.fixed_batch is None
        for images in (x, x[:1], torch.randn(5, 3, 8, 8)):
            for ours, wanted in zip(loaded.model(images), model(images), strict=True):
                assert ours is wanted or torch.equal(ours, wanted)


class TestTrainingPrograms:
    """Programs exported in training mode are those of evaluation; what cannot be is told."""

    @pytest.mark.parametrize(
        "layer",
        [
            nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.RReLU(),
            nn.BatchNorm2d(5), nn.BatchNorm2d(5, affine=False),
            nn.InstanceNorm2d(5), nn.InstanceNorm2d(5, track_running_stats=True),
        ],
        ids=lambda layer: type(layer).__name__,
    )  # fmt: skip
    def test_layers_that_know_of_training(self, layer: nn.Module, tmp_path: Path) -> None:
        model, x = nn.Sequential(nn.Conv2d(3, 5, 3), copy.deepcopy(layer)), torch.randn(4, 3, 8, 8)
        for name, buffer in model.named_buffers():
            if name.endswith("mean"):
                buffer.normal_()
        path = export(model.train(), x, tmp_path / "m.pt2")
        model.eval()
        loaded = load(path)
        torch.testing.assert_close(loaded.model(x), model(x))
        torch.testing.assert_close(loaded.model(x), loaded.model(x), rtol=0, atol=0)
        assert not any("training mode" in note for note in loaded.notes)

    @pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
    @pytest.mark.parametrize("layer", [nn.Dropout2d(), nn.BatchNorm2d(5)])
    def test_decomposed_ones_are_told(self, layer: nn.Module, tmp_path: Path) -> None:
        model, x = nn.Sequential(nn.Conv2d(3, 5, 3), layer).train(), torch.randn(4, 3, 8, 8)
        path = tmp_path / "m.pt2"
        torch.export.save(torch.export.export(model, (x,)).run_decompositions(), path)
        assert any("exported in training mode" in note for note in load(path).notes)
        model.eval()
        torch.export.save(torch.export.export(model, (x,)).run_decompositions(), path)
        assert not any("training mode" in note for note in load(path).notes)

    def test_the_average_of_all_batches(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=None)).eval()
        loaded = load(export(model, torch.randn(4, 3, 8, 8), tmp_path / "m.pt2")).model
        (norm,) = (m for m in loaded.modules() if isinstance(m, nn.BatchNorm2d))
        assert norm.momentum is None


def numbers(tensors: Iterator[Tensor]) -> int:
    return sum(t.numel() for t in tensors)


class TestHarmfulPrograms:
    def test_pickled_inputs_are_not_executed(self, program: Path, tmp_path: Path) -> None:
        marker = tmp_path / "harmed"
        buffer = io.BytesIO()
        torch.save(((torch.randn(2, 3, 8, 8), Harm(marker)), {}), buffer)

        def change(name: str, content: bytes) -> bytes:
            return buffer.getvalue() if "sample_inputs" in name else content

        path = tampered(program, change)
        with pytest.raises(ModelError, match=r"more than tensors.*--trust"):
            open_program(path)
        assert not marker.exists()
        open_program(path, trust=True)
        assert marker.exists(), "torch no longer executes this: the guard can go"

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            # sympy evaluates what stands here
            ("Symbol('s", "__import__('pathlib').Path('MARKER').touch() or Symbol('s"),
            ("torch.ops.aten.relu.default", "torch.load"),
            ("torch.ops.aten.relu.default", "torchx.load"),
            ("torch.ops.aten.relu.default", "torch.ops.aten.from_file.default"),
            ("torch.ops.aten.relu.default", "_operator.methodcaller"),
            # names become Python source
            ('"relu"', "\"relu=__import__('pathlib').Path('MARKER').touch()\""),
            # the tree spec's reader imports the module
            ("builtins.dict", "collections.defaultdict"),
            ('"use_pickle": false', '"use_pickle": true'),
        ],
    )
    def test_code_is_not_executed(self, program: Path, tmp_path: Path, old: str, new: str) -> None:
        marker = tmp_path / "harmed"
        new = new.replace("MARKER", str(marker))
        path = tampered(program, in_json(old, new))
        assert path.read_bytes() != program.read_bytes()
        with pytest.raises(ModelError, match="--trust"):
            open_program(path)
        assert not marker.exists()

    def test_sympy_would_have_executed_it(self, program: Path, tmp_path: Path) -> None:
        """The test above is alive: torch alone runs the code."""
        marker = tmp_path / "harmed"
        old, new = "Symbol('s", f"__import__('pathlib').Path('{marker}').touch() or Symbol('s"
        path = tampered(program, in_json(old, new))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.load(path)
        assert marker.exists()

    def test_compiled_code_is_refused(self, program: Path) -> None:
        path = tampered(program, lambda _, c: c, **{"data/aotinductor/model/a.so": b"\x7fELF"})
        with pytest.raises(ModelError, match="compiled code"):
            open_program(path)

    def test_source_comments_do_not_reach_the_graph(self, program: Path) -> None:
        path = tampered(program, in_json('"stack_trace": "', '"stack_trace": "\\nimport os\\n'))
        model: Any = load(path).model
        assert "import os" not in model.code


class TestZoo:
    def test_torchvision(self) -> None:
        pytest.importorskip("torchvision")
        loaded = load("torchvision:mobilenet_v3_small", weights="random", seed=3)
        again = load("torchvision:mobilenet_v3_small", weights="random", seed=3)
        torch.testing.assert_close(
            loaded.model.state_dict(), again.model.state_dict(), rtol=0, atol=0
        )
        assert loaded.example.shape == (1, 3, 224, 224)
        assert loaded.preprocess == Preprocess(
            (3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256, "bilinear"
        )
        assert loaded.classes is not None
        assert len(loaded.classes) == 1000

    def test_torchvision_preprocessing_is_the_same(self) -> None:
        torchvision = pytest.importorskip("torchvision")
        from PIL import Image

        pixels = torch.randint(0, 256, (90, 61, 3), generator=torch.Generator().manual_seed(0))
        for size in ((61, 90), (90, 61), (300, 400)):
            image = Image.fromarray(pixels.byte().numpy()).resize(size)
            for name in ("resnet18", "efficientnet_b0", "vit_b_16"):
                weights = torchvision.models.get_model_weights(name).DEFAULT
                preprocess = load(f"torchvision:{name}", weights="random").preprocess
                assert preprocess is not None
                torch.testing.assert_close(preprocess.apply(image), weights.transforms()(image))

    def test_a_fine_tuned_head(self, tmp_path: Path) -> None:
        torchvision = pytest.importorskip("torchvision")
        tuned = torchvision.models.mobilenet_v3_small(num_classes=7).eval()
        torch.save(tuned.state_dict(), tmp_path / "w.pt")
        loaded = load(
            "torchvision:mobilenet_v3_small", weights=tmp_path / "w.pt", input_size=(3, 64, 64)
        )
        torch.testing.assert_close(loaded.model(loaded.example), tuned(loaded.example))
        assert loaded.classes is None

    def test_near_names(self) -> None:
        pytest.importorskip("torchvision")
        with pytest.raises(ModelError, match="resnet50"):
            load("torchvision:resnet51")

    def test_pretrained_weights_out_of_reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torchvision = pytest.importorskip("torchvision")

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError("no network")

        monkeypatch.setattr(torchvision.models, "get_model", refuse)
        with pytest.raises(ModelError, match=r"no network.*--weights FILE.*--weights random"):
            load("torchvision:resnet18")

    def test_timm(self) -> None:
        pytest.importorskip("timm")
        loaded = load("timm:resnet10t", weights="random")
        assert loaded.preprocess is not None
        assert loaded.example.shape[1:] == loaded.preprocess.size
        with pytest.raises(ModelError, match="resnet10t"):
            load("timm:resnet10u")

    @pytest.mark.parametrize("package", ["torchvision", "timm"])
    def test_missing_packages(self, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=rf'pip install "onebyone\[{package}\]"'):
            load(f"{package}:resnet18")

    def test_mismatched_versions_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Broken:
            def find_spec(self, name: str, *_: Any) -> None:
                if name == "torchvision":
                    raise RuntimeError("operator torchvision::nms does not exist")

        monkeypatch.delitem(sys.modules, "torchvision", raising=False)
        monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
        with pytest.raises(MissingExtraError, match="not built for the installed torch"):
            load("torchvision:resnet18")


@pytest.mark.filterwarnings("ignore")
class TestOnnx:
    def test_outputs_and_layers(self, tmp_path: Path) -> None:
        pytest.importorskip("onnx2torch")
        original, x = small(), torch.randn(1, 3, 8, 8)
        path = tmp_path / "m.onnx"
        torch.onnx.export(original, (x,), path, dynamo=False, opset_version=13)
        model, example = load(path)
        assert example.shape == (1, 3, 8, 8)
        torch.testing.assert_close(model(x), original(x), rtol=1e-4, atol=1e-5)
        assert any(type(m) is nn.Conv2d for m in model.modules())

    @pytest.mark.parametrize("told", ["bool", "classes"])
    def test_outputs_that_are_no_floats(self, told: str, tmp_path: Path) -> None:
        pytest.importorskip("onnx2torch")
        original, x = Telling(told).eval(), torch.randn(1, 3, 8, 8)
        torch.onnx.export(original, (x,), tmp_path / "m.onnx", dynamo=False, opset_version=13)
        for ours, wanted in zip(load(tmp_path / "m.onnx").model(x), original(x), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_batch_and_the_type_of_the_file(self, dtype: torch.dtype, tmp_path: Path) -> None:
        pytest.importorskip("onnx2torch")
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(0), nn.Linear(4 * 4 * 36, 2))
        original, x = model.to(dtype).eval(), torch.randn(4, 3, 8, 8, dtype=dtype)
        torch.onnx.export(original, (x,), tmp_path / "m.onnx", dynamo=False, opset_version=13)
        loaded = load(tmp_path / "m.onnx")
        assert loaded.example.shape == x.shape
        assert loaded.example.dtype == dtype
        torch.testing.assert_close(loaded.model(x), original(x), rtol=1e-4, atol=1e-5)

    def test_weights_that_are_constants_here_are_told(self, tmp_path: Path) -> None:
        pytest.importorskip("onnx2torch")

        class Product(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)
                self.weight = nn.Parameter(torch.randn(4, 6))

            def forward(self, x: Tensor) -> Tensor:
                return self.conv(x).mean((2, 3)) @ self.weight

        x = torch.randn(1, 3, 8, 8)
        for model, told in ((Product(), True), (small(), False)):
            torch.onnx.export(
                model.eval(), (x,), tmp_path / "m.onnx", dynamo=False, opset_version=13
            )
            notes = load(tmp_path / "m.onnx").notes
            assert any("24 numbers of the file that no layer holds" in n for n in notes) == told
            assert told or not any("constants here" in n for n in notes)

    def test_a_size_that_the_file_does_not_take(self, tmp_path: Path) -> None:
        pytest.importorskip("onnx2torch")
        pytest.importorskip("onnxruntime")
        torch.onnx.export(
            small(), (torch.randn(1, 3, 8, 8),), tmp_path / "m.onnx", dynamo=False, opset_version=13
        )
        with pytest.raises(
            ModelError, match=r"does not run in onnxruntime on an input of 1×3×16×16"
        ):
            load(tmp_path / "m.onnx", input_size=(3, 16, 16))

    def test_missing_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "m.onnx").write_bytes(b"")
        monkeypatch.setitem(sys.modules, "onnx2torch", None)
        with pytest.raises(MissingExtraError, match=r'pip install "onebyone\[onnx2torch\]"'):
            load(tmp_path / "m.onnx")

    def test_damaged(self, tmp_path: Path) -> None:
        pytest.importorskip("onnx2torch")
        (tmp_path / "m.onnx").write_bytes(b"nothing")
        with pytest.raises(ModelError, match="cannot be turned"):
            load(tmp_path / "m.onnx")
