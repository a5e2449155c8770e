"""measure on networks with habits: state, gradients, autocast, tables, functions of functions."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from models import Threaded
from test_measuring import MACHINE
from torch import Tensor, nn
from torch.nn import functional as F

from onebyone.errors import ModelError
from onebyone.measurement import measuring, modes
from onebyone.measurement.counting import count
from onebyone.measurement.measuring import measure
from onebyone.measurement.memory import measure_memory
from onebyone.measurement.timing import MOST_THREADS, OneByOneError, cpu_threads


@pytest.fixture(autouse=True)
def made_up_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "measure_machine", lambda **_: MACHINE)


def quickly(model: nn.Module, *inputs: Any, **options: Any) -> measuring.Measurement:
    return measure(model, inputs, latency=True, seconds=0.02, **options)


class Stateful(nn.Module):
    """Keeps what it saw: an attribute, a counter, a buffer, a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.last, self.cache = 0, None, None

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = self.conv.weight * 2
        self.calls += 1
        self.seen += 1
        y = F.conv2d(x, self.cache, self.conv.bias)
        self.last = y.detach()
        return y


class Holding(Stateful):
    """The same, and it cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize("kind", [Stateful, Holding])
@pytest.mark.parametrize("latency", [False, True])
def test_what_a_network_keeps_is_its_own(kind: type[Stateful], latency: bool) -> None:
    model, x = kind(), torch.randn(1, 3, 4, 4)
    model.conv.weight.grad = before = torch.ones_like(model.conv.weight)
    measure(model, x, latency=latency, seconds=0.02)
    assert (model.calls, model.seen.item(), model.last, model.cache) == (0, 0, None, None)
    assert model.conv.weight.grad is before
    assert (before == 1).all()
    model(x).sum().backward()


def test_random_numbers_of_all_kinds_go_on_as_before() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * random.random() + np.random.rand() + torch.rand(1)

    x = torch.randn(1, 3, 4, 4)
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    quickly(Noisy(), x)
    after = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    assert after[:2] == before[:2]
    assert torch.equal(after[2], before[2])


def test_a_weight_that_flows_through_another_layer_takes_nothing_from_it() -> None:
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Embedding(10, 32)
            self.decoder = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(self.queries.weight[None], x)

    layers = count(Queries().eval(), torch.randn(1, 50, 32)).layers
    assert layers["decoder.self_attn.out_proj"].macs == 10 * 32 * 32
    assert layers["decoder.self_attn"].macs == 3 * 10 * 32 * 32 + 2 * 10 * 10 * 32


def test_autocast_is_seen() -> None:
    class Mixed(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(input)

    model = Mixed(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    found = count(model, torch.randn(1, 3, 16, 16))
    outputs = [o.writes[0].dtype for o in found.operations if o.macs]
    assert outputs == ["bfloat16", "bfloat16"]
    assert "autocast" in found.notes[0]
    peak = measure_memory(model, torch.randn(1, 3, 16, 16), training=False).inference
    assert {a.dtype for a in peak.alive if a.shape == (1, 8, 16, 16)} == {"bfloat16"}


def test_bytes_are_those_that_move() -> None:
    linear = count(nn.Linear(64, 64, bias=False), torch.randn(1, 100, 64)).layers[""]
    assert (linear.bytes_read, linear.bytes_written) == (4 * (6400 + 4096), 4 * 6400)
    table = count(nn.Embedding(5000, 16), torch.arange(3)[None]).layers[""]
    assert table.bytes_read == 4 * 3 * 16 + 8 * 3
    norm = count(nn.Sequential(nn.Linear(4, 4, bias=False)), torch.randn(2, 3, 4))
    assert "aten._unsafe_view" not in norm.uncounted


def test_a_buffer_alone_is_no_layer_that_never_ran() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model.register_buffer("mean", torch.zeros(3))
    assert count(model, torch.randn(1, 3, 4, 4)).unused == ()


def test_a_network_on_shapes_alone() -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.randn(2, 3, 8, 8)
    found = measure(model, x, batch=4)
    assert found.macs == 2 * 36 * 216
    assert found.memory is not None
    assert found.batch == 4
    with pytest.raises(OneByOneError, match="no time can be measured"):
        quickly(model, x)


def test_a_batch_is_said_also_without_the_clock() -> None:
    assert measure(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4), batch=6).batch == 6


def test_only_batches_are_images() -> None:
    assert measure(nn.Conv2d(3, 4, 1), torch.randn(2, 3, 4, 4)).images == 2
    assert measure(nn.Linear(5, 3), torch.randn(5)).images is None

    class Listed(nn.Module):
        def forward(self, images: list[Tensor]) -> Tensor:
            return torch.stack([i.mean() for i in images])

    found = measure(Listed(), ([torch.randn(3, 8, 8)],))
    assert found.images is None
    with pytest.raises(OneByOneError, match="first input is a list"):
        measure(Listed(), ([torch.randn(3, 8, 8)],), batch=4)


def test_sparse_matrices() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 6)

        def forward(self, x: Tensor, links: Tensor) -> Tensor:
            return torch.sparse.mm(links, self.linear(x))

    links = torch.eye(5).to_sparse()
    found = count(Graph(), torch.randn(5, 4), links)
    assert found.layers["linear"].macs == 5 * 4 * 6


def test_no_gradient_costs_the_training_step_alone() -> None:
    model = nn.Conv2d(3, 4, 1).requires_grad_(False)
    found = quickly(model, torch.randn(1, 3, 4, 4), training=True)
    assert [t.mode for t in found.latency] == ["inference"]
    assert any(n.startswith("no training step") for n in found.notes)


def test_one_image_cannot_be_normalized_in_training() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4), nn.BatchNorm2d(4))
    found = measure(model.eval(), torch.randn(1, 3, 4, 4))
    assert found.notes == (
        "no training step: a normalization needs more than one image in training; give a batch of 2 "
        "or more",
    )


def test_outputs_in_objects() -> None:
    @dataclass
    class Output:
        logits: Tensor
        itself: Any = None

    class Model(nn.Conv2d):
        def forward(self, input: Tensor) -> Output:  # type: ignore[override]
            output = Output(super().forward(input))
            output.itself = output
            return output

    found = quickly(Model(3, 4, 1), torch.randn(1, 3, 4, 4), training=True)
    assert found.memory is not None
    assert found.memory.training is not None
    assert len(found.latency) == 2


def test_whole_numbers_have_no_roofline() -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    found = quickly(Counting(), torch.arange(12).reshape(1, 3, 4))
    assert (found.machine, found.placement) == (None, None)
    assert found.latency


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_scripts_are_timed_as_a_whole() -> None:
    script = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval())
    found = quickly(script, torch.randn(1, 3, 4, 4))
    assert found.params == 16
    assert found.layer_latency is None
    assert len(found.latency) == 1


def test_notes_of_the_clock_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from onebyone.measurement import timing

    monkeypatch.setattr(timing, "busy_notes", lambda *_: ("the machine is busy",))
    found = quickly(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4), training=True)
    assert found.notes.count("the machine is busy") == 1


def test_a_parent_that_uses_its_childs_weight_is_placed_with_it() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.conv.weight)

    found = quickly(nn.Sequential(Parent(), nn.ReLU()), torch.randn(1, 8, 9, 9))
    placed = found.layers["0"].placement
    assert placed is not None
    assert placed.limit_ms == pytest.approx(4 * (2 * 648 + 64) / 1e7)
    assert found.layers["0.conv"].latency is None


@pytest.mark.parametrize("threads", [0, MOST_THREADS * 1000])
def test_threads_that_no_machine_has(threads: int) -> None:
    with pytest.raises(OneByOneError, match=f"{threads} threads"), cpu_threads(threads):
        pass


def test_functions_of_functions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    found = count(Branches(), torch.ones(2, 3, 4))
    assert not found.unknown
    assert found.uncounted["aten.add"] == 24
    monkeypatch.setattr(modes, "DENSE", None)  # an operator that does not say how it is to be run
    found = count(Branches(), torch.ones(2, 3, 4))
    assert any("cond" in name for name in found.unknown)


def test_functions_of_functions_in_a_new_process() -> None:
    """Where nothing has asked for the compiler before."""
    code = """
import torch
from torch import nn
from onebyone.measurement.measuring import measure

class Branches(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda y: torch.bmm(y, y), lambda y: y - 1, (x,))

print(measure(Branches(), torch.ones(2, 3, 3)).macs)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "54", found.stderr


def test_a_forward_on_the_instance_leaves_the_original_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    model.forward = lambda x: model[1](model[0](x))  # type: ignore[method-assign]
    norm: Any = model[1]
    found = measure(model, torch.randn(2, 3, 4, 4))
    assert found.macs == 2 * 16 * 12
    assert norm.num_batches_tracked.item() == 0
    assert (norm.running_mean == 0).all()
    assert all(p.grad is None for p in model.parameters())


class _Inside(nn.Module):
    """A network that turns gradients off for good in its own forward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


class _Einsum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bij,bkj->bik", x, x) + x @ x.mT


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (nn.Conv2d(3, 5, 3), torch.randn(2, 3, 8, 8)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3),
                       nn.Flatten(), nn.Linear(192, 5)), torch.randn(2, 3, 8, 8)),
        (nn.GRU(6, 5), torch.randn(2, 7, 6)),
        (_Einsum(), torch.randn(2, 7, 6)),
    ],
)  # fmt: skip
def test_operators_that_nothing_takes_apart_in_inference_mode(net: nn.Module, x: Tensor) -> None:
    expected, found = count(net.eval(), x), count(_Inside(net).eval(), x)
    assert found.macs == expected.macs > 0
    inside = measure_memory(_Inside(net).eval(), x, training=False).inference
    assert inside.bytes >= measure_memory(net, x, training=False).inference.bytes


def test_convolutions_inside_cond() -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x: Tensor) -> Any:
            return torch.cond(x.sum() > 0, lambda y: self.conv(y), lambda y: self.conv(2 * y), (x,))

    assert count(Chooses(), torch.randn(2, 3, 8, 8)).macs == 9720


def test_modules_of_exported_programs() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 8, 8)
    found = measure(torch.export.export(net, (x,)).module(), x)
    assert found.macs == count(net, x).macs
    assert any("no train mode" in note for note in found.notes)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_scripts_have_a_training_step_too() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(2, 3, 8, 8)
    for script in (torch.jit.script(net), nn.Sequential(torch.jit.script(net))):
        memory = measure_memory(script, x)
        assert memory.training is not None
        assert memory.training.of("gradient") > 0
        assert all(p.requires_grad and p.grad is None for p in script.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_frozen_scripts_are_measured_and_it_is_said_what_cannot_be_seen() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(2, 3, 8, 8)
    found = quickly(torch.jit.freeze(torch.jit.script(net)), x)
    assert (found.macs, found.params) == (count(net, x).macs, 0)
    assert any("frozen scripts" in note for note in found.notes)


def test_what_runs_in_other_threads_is_said_not_to_be_counted() -> None:
    net, x = Threaded(), torch.randn(1, 3, 8, 8)
    found = count(net, x)
    assert found.macs == 4 * 3 * 64
    assert not found.unused
    assert found.notes == ("what runs in threads that the forward starts is not counted: aside",)


class Fused(nn.Module):
    """Queries, keys and values by one product with their weights together."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.spare = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        layers = self.query, self.key, self.value
        weight = torch.cat([layer.weight for layer in layers])
        return nn.functional.linear(x, weight, torch.cat([layer.bias for layer in layers]))


class Ensemble(nn.Module):
    """Three layers as one whose weights are stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.spare = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        weights, buffers = torch.func.stack_module_state(list(self.members))

        def run(own: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(self.members[0], (own, buffers), (x,))

        return torch.vmap(run)(weights, buffers)


@pytest.mark.parametrize("network", [Fused, Ensemble])
def test_layers_whose_weights_other_code_reads_are_used(network: type[nn.Module]) -> None:
    found = count(network(), torch.randn(1, 5, 8))
    assert found.macs == 3 * 5 * 64
    assert found.unused == ("spare",)


def test_a_bag_reads_a_row_for_each_index() -> None:
    bag = nn.EmbeddingBag(1000, 8, mode="sum")
    found = count(bag, torch.tensor([[1, 2], [3, 4]])).layers[""]
    rows, indices, offsets = 4 * 8 * 4, 4 * 8, 2 * 8
    assert found.bytes_read == rows + indices + offsets


class OfItsValues(nn.Module):
    """A layer in a network whose control flow depends on data."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0] if x.sum() < 1e9 else x


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_are_counted_by_the_operators_that_run(kind: type[nn.RNNBase]) -> None:
    layer, x = kind(16, 16), torch.randn(5, 2, 16)
    alone, inside = count(layer, x), count(OfItsValues(layer), x)
    assert alone.macs == inside.macs
    names = [[o.name for o in c.operations if o.layer in ("", "layer")] for c in (alone, inside)]
    assert [name for name in names[1] if name not in ("aten.sum", "aten.lt")] == names[0]
    assert alone.layers[""].bytes_read == inside.layers["layer"].bytes_read
    assert [n for n in alone.notes if "recurrent layers" in n]
    with torch.device("meta"):
        assert count(kind(16, 16), torch.empty(5, 2, 16)).macs == alone.macs


class Ragged(nn.Module):
    """Works on rows of several lengths."""

    def __init__(self, layout: torch.layout = torch.jagged, attention: bool = False) -> None:
        super().__init__()
        self.linear, self.layout, self.attention = nn.Linear(4, 6), layout, attention

    def forward(self, x: Tensor) -> Tensor:
        rows: Any = torch.nested.nested_tensor([x[0, :2], x[1, :3]], layout=self.layout)
        rows = self.linear(rows)
        if self.attention:
            heads = rows.unflatten(-1, [2, 3]).transpose(1, 2)
            rows = F.scaled_dot_product_attention(heads, heads, heads)
        return rows.values()


NESTED = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")


@NESTED
def test_nested_tensors_are_counted_by_their_rows() -> None:
    found = measure(Ragged(), torch.randn(2, 3, 4))
    layer = found.layers["linear"]
    assert found.macs == layer.macs == (2 + 3) * 4 * 6
    assert (layer.input_shape, layer.output_shape) == ((5, 4), (5, 6))
    assert found.memory is not None
    assert found.memory.inference.layer == "linear"


@NESTED
def test_other_nested_tensors_are_refused_by_name() -> None:
    x = torch.randn(2, 3, 4)
    for network in (Ragged(torch.strided), Ragged(attention=True)):
        for ask in (count, measure_memory):
            with pytest.raises(
                ModelError, match=r"^nested tensors of layout torch\.strided cannot"
            ):
                ask(network, x)
    with pytest.raises(ModelError, match=r"^nested tensors cannot be given"):
        count(Ragged(), torch.nested.nested_tensor([x[0], x[1, :2]], layout=torch.jagged))
