"""Networks whose inputs are lists and dicts of tensors: slimmed, saved, trained, exported as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_several import block
from torch import Tensor, nn
from typer.testing import CliRunner

import onebyone as obo
from onebyone.cli.app import app
from onebyone.data import open_images
from onebyone.errors import DataError, ModelError
from onebyone.several import Packing, as_called, flat, pack, packed, packing_of, unpacked


class TwoClips(nn.Module):
    """A list of a clip of few frames and one of many (Feichtenhofer et al., "SlowFast", 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Sequential(
            nn.Conv3d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv3d(24, 32, 3, 2, 1)
        )
        self.fast = nn.Sequential(
            nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 16, 3, 2, 1)
        )
        self.head = nn.Linear(48, 7)

    def forward(self, clips: list[Tensor]) -> Tensor:
        slow, fast = self.slow(clips[0]).relu(), self.fast(clips[1]).relu()
        return self.head(torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], 1))


class Fusion(nn.Module):
    """A dict of a picture, its depth and what kind it is of, and a tensor beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.depth, self.mix = block(3, 24), block(1, 24), block(24, 48)
        self.kinds, self.head = nn.Embedding(5, 48), nn.Conv2d(48, 4, 3, padding=1)

    def forward(self, batch: dict[str, Tensor], scale: Tensor) -> dict[str, Tensor]:
        both = self.mix(self.rgb(batch["image"]) + self.depth(batch["depth"]))
        both = both * scale[..., None, None] + self.kinds(batch["kind"])[..., None, None]
        return {"mask": self.head(both)}


def two_clips() -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    return TwoClips().eval(), ([torch.zeros(1, 3, 2, 8, 8), torch.zeros(1, 3, 4, 8, 8)],)


def fusion() -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    picture, depth, kind = (
        torch.zeros(1, 3, 10, 10),
        torch.zeros(1, 1, 10, 10),
        torch.zeros(1).long(),
    )
    return Fusion().eval(), (
        {"image": picture, "depth": depth, "kind": kind},
        torch.ones(1, 1),
    )


def data_for(name: str, n: int = 48) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    if name == "two_clips":
        few, many = (torch.randn(n, 3, t, 8, 8, generator=g) for t in (2, 4))
        return {"clips": [few, many]}
    batch = {
        "kind": torch.randint(0, 5, (n,), generator=g),
        "image": torch.randn(n, 3, 10, 10, generator=g),
        "depth": torch.randn(n, 1, 10, 10, generator=g),
    }
    return {"scale": torch.rand(n, 1, generator=g), "batch": batch}


MADE = {"two_clips": two_clips, "fusion": fusion}
ONNX_NAMES = {
    "two_clips": ["clips_0", "clips_1"],
    "fusion": ["batch_kind", "batch_image", "batch_depth", "scale"],
}
both = pytest.mark.parametrize("name", MADE)


@torch.no_grad()
def answer(model: nn.Module, name: str) -> Tensor:
    found = model(**data_for(name))
    return found if isinstance(found, Tensor) else found["mask"]


def slimmed(name: str, **given: Any) -> obo.Slimmed:
    settings = {"macs": 0.6, "held_out": 8, "latency": False} | given
    return obo.slim(MADE[name]()[0], data_for(name), **settings)


@both
def test_the_packed_network_computes_the_same(name: str) -> None:
    model, _ = MADE[name]()
    values, packing = pack(data_for(name))
    made = packed(model, packing)
    parts = as_called(made, values)
    found = [made(values), model(*parts), unpacked(made)(*parts)]
    for output in found:
        given = output if isinstance(output, Tensor) else output["mask"]
        assert torch.equal(given, answer(model, name))
    assert Packing.from_json(packing.to_json()) == packing


def test_names_say_where_each_tensor_is() -> None:
    given = {
        "x": [torch.zeros(2, 1), (torch.zeros(2, 2), {"k": torch.zeros(2, 3)})],
        "y": torch.zeros(2, 4),
    }
    values, packing = pack(given)
    assert packing.names == ("x[0]", "x[1][0]", "x[1][1].k", "y")
    again = pack(dict(zip(packing.names, (torch.zeros(2, n) for n in (1, 2, 3, 4)), strict=True)))
    assert again[1] == packing
    parts = packing.apart(values)
    assert parts["x"][1][1]["k"].shape == (2, 3)
    assert parts["y"].shape == (2, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": {}}, "empty"),
        ({"x": [torch.zeros(2, 1), "a"]}, r"its 'x\[1\]' is str"),
        ({"x.a.b": torch.zeros(2, 1), "x.a": torch.zeros(2, 1)}, "part of another"),
        ({"x[0]": torch.zeros(2, 1), "x": torch.zeros(2, 1)}, "part of another"),
        ({"x[0]": torch.zeros(2, 1), "x[2]": torch.zeros(2, 1)}, "of the list 'x' there are 0, 2"),
        ({"x[a]": torch.zeros(2, 1), "y": torch.zeros(2, 1)}, r"'x\[a\]' is no name"),
        ({"x": [torch.zeros(2, 1), torch.zeros(3, 1)]}, r"2 of x\[0\], 3 of x\[1\]"),
    ],
)
def test_what_fits_into_no_list_or_dict(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_images(given)


def test_what_is_no_tensor_in_an_example() -> None:
    with pytest.raises(ModelError, match=r"batch\[1\] is NoneType"):
        flat(fusion()[0], ([torch.zeros(1, 2), None], torch.zeros(1, 1)))


@pytest.mark.parametrize("key", ["a.b", "a[0]", "", 3])
def test_keys_of_which_no_name_can_be_made(key: Any) -> None:
    """Read as two keys, the network would get another dict."""
    with pytest.raises(DataError, match="has the key"):
        open_images({"x": {key: torch.zeros(2, 1)}})
    with pytest.raises(DataError, match="has the key"):
        packing_of(fusion()[0], ({key: torch.zeros(1, 2)}, torch.zeros(1, 1)))


def test_deepen_refuses_what_is_no_batch() -> None:
    model, example = fusion()[0], (torch.tensor(1.0), torch.zeros(1, 1))
    with pytest.raises(DataError, match="one image"):
        obo.deepen(model, example, obo.Budget(macs=1.0), reference=model)


@both
def test_slims_saves_and_loads(name: str, tmp_path: Path) -> None:
    model, _ = MADE[name]()
    lighter = slimmed(name)
    assert isinstance(lighter.example, tuple)
    assert lighter.plan.macs_after <= 0.6 * lighter.plan.macs_before
    assert [type(x) for x in lighter.example] == [type(x) for x in data_for(name).values()][::-1]
    before, after = answer(model, name), answer(lighter.model, name)
    assert float((before - after).norm() / before.norm()) < 0.5
    folder = lighter.save(tmp_path / "out")
    again = obo.load(folder, architecture=model)
    assert torch.equal(answer(again.model, name), after)
    assert obo.measure(again.model, again.inputs, latency=False).macs == lighter.plan.macs_after
    program = obo.load(folder)  # there is no telling what it was made from
    tensors = flat(model, lighter.example)[1]
    assert [x.shape for x in program.inputs] == [x.shape for x in tensors]
    assert program.fixed_batch is None
    found = program.model(*tensors)
    wanted = lighter.model(*lighter.example)
    pair = [y if isinstance(y, Tensor) else y["mask"] for y in (found, wanted)]
    torch.testing.assert_close(*pair)


@both
def test_exports_take_the_tensors_one_by_one(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, _ = MADE[name]()
    lighter = slimmed(name)
    export = obo.export(
        lighter.model, lighter.example, tmp_path / "net.onnx", original=model, latency=False
    )
    assert export.any_batch
    assert export.check.failure is None
    assert export.original_bytes is not None
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    named = [i.name for i in session.get_inputs()]
    assert named == ONNX_NAMES[name]


@both
def test_trains_and_deepens(name: str) -> None:
    model, _ = MADE[name]()
    lighter = slimmed(name)
    recipe = obo.Recipe(batch_size=16, precision="float32")
    tuned = obo.fine_tune(lighter.model, data_for(name), teacher=model, epochs=1, recipe=recipe)
    assert answer(tuned.model, name).isfinite().all()
    deeper = obo.deepen(
        lighter.model, lighter.example, obo.Budget(macs=0.9), reference=model, data=data_for(name)
    )
    assert any(not i.refused for i in deeper.plan.insertions)
    torch.testing.assert_close(answer(deeper.model, name), answer(lighter.model, name))


def test_bytes_that_should_be_pictures_are_named() -> None:
    given = data_for("fusion")
    given["batch"]["image"] = given["batch"]["image"].to(torch.uint8)
    with pytest.raises(ModelError, match=r"batch\.image of uint8 goes in as it is"):
        obo.slim(fusion()[0], given, macs=0.6, latency=False)


def test_in_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    few, many = data_for("two_clips", 64)["clips"]
    np.savez("clips.npz", **{"clips[0]": few.numpy(), "clips[1]": many.numpy()})  # type: ignore[arg-type]
    lines = (
        "slim test_nested_inputs:two_clips --data clips.npz --macs 0.6 --no-latency -o out",
        "verify out --data clips.npz --trust --no-latency",
        "export out --to onnx --trust --no-latency -o files",
    )
    for line in lines:
        result = CliRunner().invoke(app, line.split())
        assert result.exit_code == 0, result.output
    np.savez("half.npz", **{"clips[0]": few.numpy()})  # type: ignore[arg-type]
    result = CliRunner().invoke(app, lines[0].replace("clips.npz", "half.npz").split())
    assert result.exit_code == 2
    assert "clips[0], clips[1] are expected" in " ".join(result.output.split())
