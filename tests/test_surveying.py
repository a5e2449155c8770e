"""The survey: which layers can change, why others cannot, and the totals."""

from __future__ import annotations

import copy

import pytest
import torch
from models import TRAPS, Containers, RunThrice, Threaded, Tied, images
from test_conv import counted_macs, counted_params
from test_tree import check_untouched
from torch import Tensor, nn

from onebyone.errors import ModelError
from onebyone.plain import plain
from onebyone.surveying import Seen, Survey, survey
from onebyone.tree import deep_copy, shallow_copy

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
CASTS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
SOUND = [n for n, t in TRAPS.items() if t.error is None]


def looked(name: str) -> tuple[nn.Module, Tensor, Survey]:
    trap = TRAPS[name]
    image = trap.images(1).to(CASTS.get(name, torch.float32))
    model = plain(trap.model(), image).model
    return model, image, survey(model, image)


def seen(found: Survey, layer: str) -> Seen:
    return next(s for s in found.layers if s.layer == layer)


@pytest.mark.parametrize("name", SOUND)
def test_totals_are_those_of_pytorch(name: str) -> None:
    model, image, found = looked(name)
    assert found.macs == counted_macs(model, image)
    assert found.params == counted_params(model)
    assert found.input_shape == TRAPS[name].shape


@pytest.mark.parametrize("name", SOUND)
def test_refusals_are_those_expected_and_no_others(name: str) -> None:
    _, _, found = looked(name)
    reasons = {s.layer: s.refusal for s in found.layers if s.refusal is not None}
    if name == "a plain list":  # refused, whatever the words: a new layer would never be called
        assert set(reasons) == {"conv1", "conv2"}
        return
    assert set(reasons) == set(TRAPS[name].refused)
    for layer, words in TRAPS[name].refused.items():
        assert words in (reasons[layer] or "")


@pytest.mark.parametrize("name", SOUND)
def test_macs_of_the_layers_and_the_rest_add_up(name: str) -> None:
    _, _, found = looked(name)
    known = sum(s.macs for s in found.layers)
    assert known <= found.macs
    unknown = "attention", "weights by the data", "parametrised, with a hook"
    if name not in unknown and "used" not in name:
        assert known == found.macs


@pytest.mark.parametrize("name", SOUND)
def test_the_model_is_not_touched(name: str) -> None:
    trap = TRAPS[name]
    image = trap.images(1).to(CASTS.get(name, torch.float32))
    check_untouched(trap.model(), lambda model: survey(model, image))


@pytest.mark.parametrize("name", ["two inputs", "cannot be copied", "no layer"])
def test_networks_that_are_refused(name: str) -> None:
    trap = TRAPS[name]
    assert trap.error is not None
    kind, words = trap.error
    with pytest.raises(kind, match=words):
        check_untouched(trap.model(), lambda model: survey(model, trap.images(1)))


def test_layers_stand_in_the_order_of_the_data() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.middle, self.first = (nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.middle(self.first(x)))

    found = survey(Backwards().eval(), images(1, 4, 5, 5))
    assert [s.layer for s in found.layers] == ["first", "middle", "last"]


def test_calls_and_positions_are_counted() -> None:
    conv = seen(survey(RunThrice().eval(), images(1, 4, 12, 12)), "conv")
    assert (conv.calls, conv.positions_in, conv.positions_out) == (3, 216, 216)
    tied = survey(Tied().eval(), images(1, 4, 12, 12))
    assert [s.layer for s in tied.layers] == ["stem", "a", "fc"]
    assert seen(tied, "a").calls == 3
    listed = survey(Containers().eval(), images(1, 4, 12, 12))
    assert (seen(listed, "listed.1").positions_in, seen(listed, "listed.1").positions_out) == (
        100,
        64,
    )


def test_patches_folded_into_the_batch_are_counted() -> None:
    class Tiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            tiles = x.unfold(3, 6, 6).permute(0, 3, 1, 2, 4).flatten(0, 1)
            return self.conv(tiles).mean((2, 3)).reshape(len(x), -1)

    model, image = Tiled().eval(), images(1, 4, 12, 12)
    conv = seen(survey(model, image), "conv")
    assert (conv.items_per_image, conv.positions_in, conv.positions_out) == (2, 144, 80)
    assert conv.conv is not None
    assert conv.conv.macs(conv.positions_out) == counted_macs(model, image)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: m.conv.weight.data.fill_(torch.nan), "NaN"),
        (lambda m: setattr(m.conv, "forward", m.conv.forward), "replaced on the instance"),
        (lambda m: m.conv.register_full_backward_hook(lambda *a: None), "hooks"),
        (lambda m: m.conv.register_forward_pre_hook(lambda *a: None), "hooks"),
        (lambda m: m.conv.register_full_backward_pre_hook(lambda *a: None), "hooks"),
    ],
)
def test_spoiled_layers_are_refused(spoil: object, words: str) -> None:
    model = TRAPS["plain"].model()
    spoil(model)  # type: ignore[operator]
    found = survey(model, TRAPS["plain"].images(1))
    assert words in (seen(found, "conv").refusal or "")
    assert seen(found, "fc").refusal is None


def test_copies() -> None:
    model = Tied()
    deep, shallow = deep_copy(model), shallow_copy(model)
    for copied in (deep, shallow):
        assert copied is not model
        assert copied.a is copied.b
        assert copied.inner[1] is copied.a  # type: ignore[index]
    assert shallow.a.weight is model.a.weight  # type: ignore[union-attr]
    assert deep.a.weight is not model.a.weight  # type: ignore[union-attr]
    assert copy.deepcopy(model.state_dict()).keys() == deep.state_dict().keys()
    with pytest.raises(ModelError, match="Uncopyable cannot be copied"):
        deep_copy(TRAPS["cannot be copied"].model())


def test_a_layer_in_a_thread_of_its_own_stays() -> None:
    found = survey(Threaded().eval(), torch.randn(1, 3, 8, 8))
    assert seen(found, "stem").refusal is None
    assert "thread" in (seen(found, "aside").refusal or "")


def test_a_layer_that_is_called_by_keyword_has_its_macs() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(input=self.first(x).relu())

    model, image = Named().eval(), images(1, 3, 8, 8)
    found = survey(model, image)
    layers = {s.layer: s for s in found.layers}
    assert layers["second"].refusal == "its input is passed by keyword"
    assert sum(s.macs for s in layers.values()) == found.macs == counted_macs(model, image)
    assert found.other_macs == 0
