"""Transposed convolutions in every low-rank form: exact at full rank, data-aware below, at true cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import own_models as own
import pytest
import torch
from models import as_trained, head, images
from planting import Bug, Patch, check_caught
from test_conv import counted_macs, counted_params
from test_own_models import made
from test_rewriting import edited, kept, outputs, relative_error
from torch import Tensor, nn

import onebyone as obo
from onebyone import building, conv, plan_files, rewriting, sampling
from onebyone.candidates import Candidates
from onebyone.conv import TRANSPOSED, ConvSpec, as_weight, kernel_of
from onebyone.errors import OneByOneError
from onebyone.forms import FORMS
from onebyone.narrowing import cutting
from onebyone.pacing.graphs import opened
from onebyone.pacing.sites import sites_of
from onebyone.surveying import survey

THIN = [name for name, form in FORMS.items() if form.ranks]
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "2×2, stride 2": lambda: nn.ConvTranspose2d(16, 24, 2, 2),
    "4×4, stride 2": lambda: nn.ConvTranspose2d(16, 24, 4, 2, 1, bias=False),
    "3×3, stride 2, one more": lambda: nn.ConvTranspose2d(16, 24, 3, 2, 1, output_padding=1),
    "3×5, strides 1 and 3": lambda: nn.ConvTranspose2d(16, 24, (3, 5), (1, 3), (0, 2)),
    "dilated": lambda: nn.ConvTranspose2d(16, 24, 3, 2, 2, output_padding=1, dilation=2),
    "gaps between": lambda: nn.ConvTranspose2d(16, 24, 2, 3),
    "grouped": lambda: nn.ConvTranspose2d(16, 24, 4, 2, 1, groups=4),
    "1×1, stride 2": lambda: nn.ConvTranspose2d(16, 24, 1, 2),
}


def network(layer: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), layer())
        return head(stem, 24).eval()


def fits(form: str, layer: nn.Module) -> bool:
    return FORMS[form].refuse(ConvSpec.of(layer)) is None


SUITED = [(name, form) for name, build in LAYERS.items() for form in THIN if fits(form, build())]


def rewritten(model: nn.Module, x: Tensor, form: str, ranks: tuple[int, ...] | None = None):
    """The network with its transposed layer in a form, of full rank unless said; with the plan."""
    plan, statistics = kept(model, x)
    own = plan.of("first.2").conv
    assert own is not None
    plan = edited(plan, {"first.2": (form, ranks or FORMS[form].full(own))})
    return obo.rewrite(model, plan, x, statistics=statistics), plan


def check_full_rank(name: str, form: str) -> None:
    """Law: at full rank the network computes what it did, also for other images, at the cost counted."""
    model, x = network(LAYERS[name]), images(32, 4, 8, 8)
    lighter, plan = rewritten(model, x, form)
    for given in (x, images(8, 4, 8, 8, seed=9)):
        assert relative_error(outputs(model, given), outputs(lighter, given)) < 1e-6
    assert plan.macs_before == counted_macs(model, x)
    assert plan.macs_after == counted_macs(lighter, x)
    assert plan.params_after == counted_params(lighter)


@pytest.mark.parametrize(("name", "form"), SUITED)
def test_full_rank_is_exact_at_the_cost_counted(name: str, form: str) -> None:
    check_full_rank(name, form)


@pytest.mark.parametrize("name", LAYERS)
def test_a_kept_layer_is_refitted_to_its_new_inputs(name: str) -> None:
    model, x = network(LAYERS[name]), images(32, 4, 8, 8)
    plan, statistics = kept(model, x)
    plan = edited(plan, {"first.0": ("squeeze", (2,))})
    lighter = obo.rewrite(model, plan, x, statistics=statistics)
    layer = lighter.get_submodule("first.2")
    assert type(layer) is nn.ConvTranspose2d
    expected = outputs(model.first, x).relu()  # type: ignore[arg-type]
    refitted = relative_error(expected, outputs(lighter.first, x).relu())  # type: ignore[arg-type]
    layer.load_state_dict(model.get_submodule("first.2").state_dict())
    unfitted = relative_error(expected, outputs(lighter.first, x).relu())  # type: ignore[arg-type]
    assert refitted < unfitted


def by_weights(layer: nn.Module, side: str, rank: int) -> nn.Module:
    """The layer with the weights that a singular value decomposition of them leaves at this rank."""
    kernel = kernel_of(layer)
    rows = kernel if side == "out" else kernel.permute(2, 0, 1)
    u, s, v = torch.linalg.svd(rows.flatten(1), full_matrices=False)
    low = ((u[:, :rank] * s[:rank]) @ v[:rank]).reshape(rows.shape)
    with torch.no_grad():
        layer.weight.copy_(as_weight(layer, low if side == "out" else low.permute(1, 2, 0)))  # type: ignore[union-attr,operator]
    return layer


@pytest.mark.parametrize(("form", "side"), [("squeeze", "in"), ("channel", "out")])
@pytest.mark.parametrize("name", ["2×2, stride 2", "4×4, stride 2", "3×3, stride 2, one more"])
def test_it_is_nearer_than_the_weights_alone_say(name: str, form: str, side: str) -> None:
    x, held_out = images(64, 4, 8, 8), images(32, 4, 8, 8, seed=7)
    errors = []
    for rank in (4, 8, 12):
        model, other = (as_trained(network(LAYERS[name])) for _ in range(2))
        by_weights(other.get_submodule("first.2"), side, rank)
        lighter, _ = rewritten(model, x, form, (rank,))
        expected = outputs(model, held_out)
        errors.append(relative_error(expected, outputs(lighter, held_out)))
        assert errors[-1] < 0.5 * relative_error(expected, outputs(other, held_out))
    assert errors[-1] < errors[0]


def check_family(form: str, ranks: tuple[int, ...], less: tuple[int, ...]) -> None:
    """Law: a kernel of the form's ranks is recovered, and the plan foresees that nothing is lost."""
    model, x = network(LAYERS["4×4, stride 2"]), images(48, 4, 8, 8)
    layer = model.get_submodule("first.2")
    thin = building.skeleton(layer, form, ranks)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for part in thin.children():
            nn.init.normal_(part.weight, std=0.3)  # type: ignore[arg-type]
        y = torch.eye(16).reshape(16, 16, 1, 1)  # the kernel, read off from impulses
        for part in thin.children():
            bare = type(part)(**{
                k: getattr(part, k) for k in ("in_channels", "out_channels", "kernel_size", "stride")
            }, bias=False)  # fmt: skip
            bare.weight = part.weight  # type: ignore[assignment]
            y = bare(y)
        layer.weight.copy_(y)  # type: ignore[union-attr,operator]
    lighter, plan = rewritten(model, x, form, ranks)
    assert relative_error(outputs(model, x), outputs(lighter, x)) < 1e-6
    table = next(
        t for t in Candidates(obo.observe(model, x)).tables(()) if t.seen.layer == "first.2"
    )
    lost = dict(zip([(c.form, c.ranks) for c in table.candidates], table.errors, strict=True))
    assert lost[form, ranks] < 1e-3 * lost[form, less]
    assert plan.of("first.2").macs_after < plan.of("first.2").macs_before


@pytest.mark.parametrize(
    ("form", "ranks", "less"),
    [
        ("squeeze", (6,), (4,)),
        ("channel", (6,), (3,)),
        ("tucker2", (6, 6), (4, 3)),
        ("spatial", (16,), (8,)),
    ],
)
def test_kernels_of_a_form_are_recovered(
    form: str, ranks: tuple[int, ...], less: tuple[int, ...]
) -> None:
    check_family(form, ranks, less)


SIZES = {1: (9,), 2: (6, 5), 3: (4, 3, 5)}


def check_costs(d: int, form: str) -> None:
    """Law: a form's costs are PyTorch's own counts, and it gives as many outputs as the layer."""
    layer = TRANSPOSED[d](8, 6, 3, stride=2, padding=1, output_padding=1)
    x = torch.randn(1, 8, *SIZES[d])
    own = ConvSpec.of(layer)
    if FORMS[form].refuse(own) is not None:
        assert (d, form) == (1, "spatial")
        return
    places = survey(layer, x).layers[0].places
    ranks = (3,) * len(FORMS[form].ranks)
    block = building.skeleton(layer, form, ranks)
    assert FORMS[form].macs(own, ranks, places) == counted_macs(block, x)
    assert FORMS[form].params(own, ranks) == counted_params(block)
    assert block(x).shape == layer(x).shape


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("form", ["squeeze", "channel", "tucker2", "spatial"])
def test_costs_in_every_number_of_axes(d: int, form: str) -> None:
    check_costs(d, form)


def check_narrowed() -> None:
    """Law: hidden channels between transposed layers go: what is left is the network with zeros there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.ConvTranspose2d(6, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.ConvTranspose2d(16, 12, 3, 2, 1, output_padding=1), nn.ReLU(), nn.Conv2d(12, 3, 3),
        ).eval()  # fmt: skip
        with torch.no_grad():  # readers that need ten and eight of the channels
            model[3].weight[10:] = 0  # type: ignore[index,operator]
            model[5].weight[:, 8:] = 0  # type: ignore[index,operator]
    x = images(32, 6, 5, 5)
    statistics = obo.observe(model, x)
    assert [(s.name, s.refusal) for s in statistics.spaces if s.refusal is None] == [
        ("0", None), ("3", None),
    ]  # fmt: skip
    slimmed = obo.slim(model, x, macs=0.55, held_out=0, latency=False)
    assert {n.layer: n.width for n in slimmed.plan.narrowings} == {"0": 10, "3": 8}
    assert slimmed.plan.macs_after == counted_macs(slimmed.model, x)
    assert slimmed.model[0].out_channels == slimmed.model[3].in_channels == 10  # type: ignore[index]
    assert relative_error(outputs(model, x), outputs(slimmed.model, x)) < 1e-6


def test_hidden_channels_between_them_go() -> None:
    check_narrowed()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "U-Net": (own.UNet, (3, 12, 12), ("up",)),
    "DCGAN": (own.pictures, (24, 1, 1), ("3", "6")),
    "sound": (own.speech, (10, 12), ("2", "4")),
    "volume": (own.Volume, (1, 4, 8, 8), ("up",)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_slimmed_saved_and_loaded(name: str, tmp_path: Path) -> None:
    build, shape, layers = NETWORKS[name]
    model, x = made(build), images(32, *shape)
    slimmed = obo.slim(model, x, macs=0.6, held_out=6, latency=False)
    assert slimmed.plan.macs_after <= 0.6 * slimmed.plan.macs_before
    assert not any(slimmed.plan.of(layer).refused for layer in layers)
    assert slimmed.plan.macs_after == counted_macs(slimmed.model, x)
    folder = slimmed.save(tmp_path / "out")
    assert (folder / "model.onnx").is_file()
    again = obo.load(folder, architecture=build()).model
    torch.testing.assert_close(outputs(again, x), outputs(slimmed.model, x), rtol=0, atol=0)
    program = obo.load(folder).model
    torch.testing.assert_close(outputs(program, x[:1]), outputs(slimmed.model, x[:1]))


def test_an_exported_program_is_loaded_with_its_layers(tmp_path: Path) -> None:
    model, x = made(own.pictures), images(1, 24, 1, 1)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    loaded = obo.load(str(tmp_path / "model.pt2")).model
    found = [ConvSpec.of(m) for m in loaded.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert found == [ConvSpec.of(m) for m in model if isinstance(m, nn.ConvTranspose2d)]  # type: ignore[union-attr]
    torch.testing.assert_close(outputs(loaded, x), outputs(model, x))


def test_a_plan_survives_json() -> None:
    model, x = network(LAYERS["dilated"]), images(8, 4, 8, 8)
    plan, _ = kept(model, x)
    values = plan_files.plan_to_json(plan)
    again = plan_files.plan_from_json(values)
    assert again.decisions == plan.decisions
    assert "transposed" not in values["layers"][0]["conv"]
    assert again.of("first.2").conv == ConvSpec.of(model.get_submodule("first.2"))


@pytest.mark.parametrize(("form", "ranks"), [("keep", ()), ("tucker2", (4, 4)), ("spatial", (4,))])
def test_a_runtime_runs_its_forms_by_themselves(
    form: str, ranks: tuple[int, ...], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    model = network(LAYERS["3×3, stride 2, one more"])
    site = sites_of(model, images(1, 4, 8, 8))["first.2"][0]
    parts = [part.conv for part in FORMS[form].parts(site.conv, ranks)]
    eager = opened("eager", site, parts, tmp_path / "layer", 1)()
    (other,) = opened("onnx", site, parts, tmp_path / "layer", 1)()  # type: ignore[misc]
    torch.testing.assert_close(torch.as_tensor(other), eager)


class Sized(nn.Module):
    """Says how large the output is to be at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 16, 3, 2, 1), nn.ConvTranspose2d(16, 16, 3, 2, 1)
        self.last = nn.Conv2d(16, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.down(x).relu(), output_size=x.shape[2:]).relu())


def test_a_layer_that_is_told_its_size_stays() -> None:
    model, x = Sized().eval(), images(16, 3, 12, 12)
    slimmed = obo.slim(model, x, macs=0.8, latency=False)
    assert slimmed.plan.of("up").refused
    assert slimmed.plan.of("up").reason == "its input is not all it is given"


def _own_layout(patch: Patch) -> None:
    """Weights read as those of a plain convolution, where the channels have the same numbers."""

    def read(layer: nn.Module) -> Tensor:
        weight: Tensor = layer.weight.detach()  # type: ignore[assignment]
        if getattr(layer, "transposed", False):
            weight = weight.reshape(weight.shape[1], len(weight), *weight.shape[2:])
        return weight.reshape(*weight.shape[:2], -1).transpose(1, 2)

    for module in (conv, rewriting):
        patch.setattr(module, "kernel_of", read)


def _turned_taps(patch: Patch) -> None:
    spread = sampling._spread_rows
    patch.setattr(sampling, "_spread_rows", lambda *given: spread(*given).flip(1))


def _nothing_more(patch: Patch) -> None:
    build = building.plain_layer
    patch.setattr(
        building, "plain_layer",
        lambda layer, conv: build(layer, replace(conv, output_padding=(0,) * len(conv.output_padding))),
    )  # fmt: skip


BUGS = {
    "weights in the layout of a plain layer": Bug(
        _own_layout, lambda: check_full_rank("4×4, stride 2", "squeeze")
    ),
    "taps the other way round": Bug(
        _turned_taps, lambda: check_full_rank("4×4, stride 2", "channel")
    ),
    "counted at the outputs": Bug(
        lambda patch: patch.setattr(ConvSpec, "grid", "outside"),
        lambda: check_costs(2, "squeeze"),
    ),
    "outputs are cut for inputs": Bug(
        lambda patch: patch.setattr(cutting, "axis_of", lambda module, cut: cut.axis),
        check_narrowed,
    ),
    "what the output has more is left out": Bug(
        _nothing_more, lambda: check_full_rank("3×3, stride 2, one more", "tucker2")
    ),
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_caught(name: str, monkeypatch: Patch) -> None:
    check_caught(BUGS[name], monkeypatch, OneByOneError, RuntimeError)
