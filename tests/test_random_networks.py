"""Networks that draw random numbers when they run: original and lighter one draw the same."""

from __future__ import annotations

import copy
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import onebyone as obo
from onebyone.errors import ModelError
from onebyone.lockstep import Lockstep
from onebyone.tree import draw_from, random_numbers


class Noisy(nn.Module):
    """Adds noise to its features, as generators and variational autoencoders do."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.third, self.last = nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(24, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        if self.kind == "dropout":
            x = F.dropout(x, 0.3)
        elif self.kind == "numpy":
            x = x * torch.from_numpy(np.random.rand(len(x), 1, 1, 1)).to(x)
        elif self.kind == "python":
            x = x * (0.5 + random.random())
        else:
            x = x + 0.5 * torch.randn(len(x), 1, *x.shape[2:])
        return self.last(self.third(x).relu())


KINDS = pytest.mark.parametrize("kind", ["noise", "dropout", "numpy", "python"])


def noisy(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Noisy(kind).eval()


def pictures(n: int = 96) -> Tensor:
    g = torch.Generator().manual_seed(1)
    coarse = torch.randn(n, 3, 4, 4, generator=g)
    return F.interpolate(coarse, size=(12, 12), mode="bilinear")


@KINDS
def test_a_network_is_equal_to_its_copy(kind: str) -> None:
    model = noisy(kind)
    found = obo.verify(model, copy.deepcopy(model), pictures(48), latency=False)
    assert found.output_error == 0
    if kind in ("noise", "dropout"):  # PyTorch's own numbers
        assert any("draws random numbers" in note for note in found.notes)


@KINDS
def test_slimming_is_towards_the_same_draws(kind: str) -> None:
    """Towards others, what cannot be known of them would shrink all layers behind to the mean."""
    images = pictures(192)
    slimmed = obo.slim(noisy(kind), images[:128], macs=0.9, held_out=images[128:], latency=False)
    error = slimmed.verification.output_error
    assert error is not None
    assert error < 0.05


def test_training_compares_the_same_draws() -> None:
    model = noisy("noise")
    recipe = obo.Recipe(batch_size=16, precision="float32")
    tuned = obo.fine_tune(model, pictures(64), teacher=model, epochs=1, recipe=recipe)
    assert tuned.before is not None
    assert tuned.before.loss < 1e-9


def test_none_of_it_is_drawn_outside() -> None:
    model = noisy("numpy")
    for call in (
        lambda: obo.verify(model, model, pictures(8), latency=False),
        lambda: obo.slim(model, pictures(48), macs=0.8, latency=False),
    ):
        torch.manual_seed(5)
        np.random.seed(5)
        wanted = torch.rand(1), np.random.rand()
        torch.manual_seed(5)
        np.random.seed(5)
        call()  # of Python's, the checks of types in tests draw some themselves
        assert (torch.rand(1), np.random.rand()) == wanted


def test_chunks_that_take_turns_draw_as_if_alone() -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            chunk = pass_through.chunk
            for stop in range(3):
                drawn.setdefault(chunk, []).append((float(torch.rand(1)), random.random()))
                pass_through.wait(stop)
            return x

    drawn: dict[int, list[tuple[float, float]]] = {}
    starts = []
    for seed in range(3):
        torch.manual_seed(seed)
        random.seed(seed)
        starts.append(random_numbers())
    pass_through = Lockstep(Drawing(), [torch.zeros(1)] * 3, lambda stop: None, starts)
    before = random_numbers()
    pass_through.run()
    for chunk, start in enumerate(starts):
        assert torch.equal(before[0], random_numbers()[0])
        draw_from(start)
        assert drawn[chunk] == [(float(torch.rand(1)), random.random()) for _ in range(3)]
        draw_from(before)


def test_chunks_begin_when_there_is_room() -> None:
    class Stops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for stop in range(3):
                if stop not in solved:
                    met.setdefault(stop, []).append(pass_through.chunk)
                    pass_through.wait(stop)
            ended.append(pass_through.chunk)
            return x

    met: dict[int, list[int]] = {}
    solved: list[int] = []
    ended: list[int] = []
    room = [1, 2, 4]
    pass_through = Lockstep(Stops(), [torch.zeros(1)] * 5, solved.append, room=room)
    pass_through.run()
    assert solved == [0, 1, 2]
    assert [sorted(met[stop]) for stop in range(3)] == [list(range(n)) for n in room]
    assert sorted(ended) == [0, 1, 2, 3]  # the fifth would solve nothing any more


def test_chunks_begin_where_only_they_reach_a_stop() -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if pass_through.chunk == 2:
                pass_through.wait(1)
            return x

    solved: list[int] = []
    pass_through = Lockstep(Last(), [torch.zeros(1)] * 3, solved.append, room=[1, 1])
    pass_through.run()
    assert solved == [1]


def test_a_chunk_has_no_thread_before_its_turn() -> None:
    """However many chunks there are, no more are held than there is room for."""

    class Stop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            threads.append(threading.active_count() - before)
            if 0 not in solved:
                pass_through.wait(0)
            return x

    before, threads = threading.active_count(), list[int]()
    solved: list[int] = []
    pass_through = Lockstep(Stop(), [torch.zeros(1)] * 40, solved.append, room=[2, 2])
    pass_through.run()
    assert solved == [0]
    assert max(threads) <= 2
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", ["noise", "dropout"])
def test_saved_it_takes_any_number_of_images(kind: str, tmp_path: Path) -> None:
    """The numbers drawn for two images are others than those for each alone."""
    slimmed = obo.slim(noisy(kind), pictures(64), macs=0.8, held_out=16, latency=False)
    loaded = obo.load(slimmed.save(tmp_path / "out"))
    assert loaded.fixed_batch is None
    for n in (1, 2, 5):
        torch.manual_seed(3)
        found = loaded.model(pictures(n))
        assert found.shape == (n, 3, 12, 12)
        torch.manual_seed(3)
        if kind == "noise":  # dropout draws for numbers as they lie in memory
            assert torch.equal(found, slimmed.model(pictures(n)))


def test_why_it_is_not_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with pytest.raises(ModelError, match="draws random numbers when it runs"):
        obo.export(noisy("noise"), pictures(1), tmp_path / "net.onnx", latency=False)
    assert not list(tmp_path.iterdir())
