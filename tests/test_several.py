"""Networks of several inputs: slimmed, saved and loaded, and called as they were."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import onebyone as obo
from onebyone.cli.app import app
from onebyone.data import open_images
from onebyone.errors import DataError, ModelError, PlanError, TrainingError
from onebyone.exporting.export import examine
from onebyone.several import Packing, as_called, pack, packed, unpacked


def block(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())


class Fused(nn.Module):
    """A picture and its depth, a time step that is looked up, and conditions that scale channels."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb = nn.Sequential(block(3, 16), block(16, 24))
        self.depth = nn.Sequential(block(1, 16), block(16, 24))
        self.steps, self.film = nn.Embedding(6, 24), nn.Linear(5, 24)
        self.both = nn.Sequential(block(48, 32), block(32, 32), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(32, 7)

    def forward(
        self, image: Tensor, depth: Tensor, step: Tensor, conditions: Tensor | None = None
    ) -> dict[str, Tensor]:
        found = self.rgb(image)
        if conditions is not None:
            found = found * self.film(conditions)[:, :, None, None]
        other = self.depth(depth) + self.steps(step)[:, :, None, None]
        return {"logits": self.head(self.both(torch.cat([found, other], 1)).flatten(1))}


class Difference(nn.Module):
    """Two pictures of one shape: which is which matters."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = block(3, 16), block(3, 16)
        self.last = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.last(self.one(before) - 0.3 * self.other(after))


def fused() -> tuple[Fused, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = Fused().eval()
    return model, (torch.zeros(1, 3, 12, 12), torch.zeros(1, 1, 12, 12), torch.zeros(1).long())


class Between(Difference):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, y)


class Sum(nn.Module):
    """Nothing in it can be followed by a block but the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return nn.functional.conv2d(before + after, self.weight)


def wide() -> nn.Module:
    """A reference that costs more than `Difference`."""
    torch.manual_seed(1)
    model = Difference()
    model.one, model.other = block(3, 64), block(3, 64)
    model.last = nn.Conv2d(64, 4, 3, padding=1)
    return model.eval()


def between() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return Between().eval(), (torch.zeros(1, 3, 10, 10), torch.zeros(1, 3, 10, 10))


def inputs(n: int = 48) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "depth": torch.randn(n, 1, 12, 12, generator=g),
        "image": torch.randn(n, 3, 12, 12, generator=g),
        "step": torch.randint(0, 6, (n,), generator=g),
        "conditions": torch.randn(n, 5, generator=g),
    }


def call(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**given)["logits"]


TRAINING = obo.Recipe(batch_size=16, precision="float32")


def model_macs(model: nn.Module) -> int:
    return obo.measure(model, fused()[1], latency=False).macs


class TestPacking:
    def test_takes_apart_what_it_packed(self) -> None:
        given: dict[str, Any] = {
            "a": torch.randn(4, 2, 3), "b": torch.tensor([3, -7, (1 << 24) - 1, 0]),
            "c": torch.tensor([[True], [False], [True], [True]]), "d": np.ones((4, 1, 2, 2)),
        }  # fmt: skip
        values, packing = pack(given)
        assert values.shape == (4, 1, 6 + 1 + 1 + 4)
        parts = packing.apart(values)
        assert list(parts) == list(packing.names)
        for name, part in parts.items():
            expected = torch.as_tensor(given[name])
            assert part.shape == expected.shape
            torch.testing.assert_close(part.double(), expected.double())
            if not expected.is_floating_point():
                assert part.dtype == expected.dtype

    def test_survives_json(self) -> None:
        packing = pack(inputs())[1]
        assert Packing.from_json(packing.to_json()) == packing

    def test_the_packed_network_computes_the_same_and_shares_its_weights(self) -> None:
        model, _ = fused()
        given = inputs()
        values, packing = pack(given)
        made = packed(model, packing)
        assert torch.equal(made(values)["logits"], call(model, given))
        assert made.get_parameter("head.weight") is model.head.weight
        assert type(model) is Fused
        assert [n for n, _ in made.named_modules()] == [n for n, _ in model.named_modules()]
        again = copy.deepcopy(made)
        assert torch.equal(again(values)["logits"], call(model, given))
        assert type(unpacked(again)) is Fused
        assert torch.equal(call(again, given), call(model, given))

    def test_what_the_network_is_called_with_has_its_order(self) -> None:
        model, _ = fused()
        values, packing = pack(inputs())
        parts = as_called(packed(model, packing), values)
        assert isinstance(parts, tuple)
        assert [tuple(p.shape[1:]) for p in parts] == [(3, 12, 12), (1, 12, 12), (), (5,)]
        assert torch.equal(model(*parts)["logits"], call(model, inputs()))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "empty"),
            ({"a": torch.zeros(3, 1), "b": torch.zeros(4, 1)}, "3 of a, 4 of b"),
            ({"a": "text"}, "its 'a' is str"),
            ({"a": np.array(["x", "y"])}, "'a' is no array of numbers"),
            ({"a": torch.zeros(2, 2, dtype=torch.complex64)}, "complex64"),
            ({"a": torch.tensor(1.0)}, "at least one image"),
            ({"a": torch.tensor([1 << 24])}, "16,777,216 and more"),
            ({"a": torch.tensor([[1.0], [torch.nan]])}, "NaN"),
        ],
    )
    def test_refusals(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            open_images(given)


class TestSlim:
    def test_meets_its_budget_and_stays_near(self, tmp_path: Path) -> None:
        model, _ = fused()
        given, before = inputs(), copy.deepcopy(model.state_dict())
        slimmed = obo.slim(model, given, macs=0.5, latency=False)
        assert slimmed.plan.macs_after <= 0.5 * slimmed.plan.macs_before
        assert type(slimmed.model) is Fused
        assert slimmed.verification.output_error is not None
        assert slimmed.verification.output_error < 0.05
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert not torch.equal(call(slimmed.model, given), call(model, given))
        assert any("depth 1×12×12" in note for note in slimmed.plan.notes)

        folder = slimmed.save(tmp_path / "out")
        loaded = obo.load(folder, architecture=Fused())
        assert torch.equal(call(loaded.model, given), call(slimmed.model, given))
        assert [x.shape[1:] for x in loaded.inputs] == [x.shape[1:] for x in slimmed.example]
        loaded.model(*loaded.inputs)
        alone = obo.load(folder)  # from model.pt2
        assert alone.fixed_batch is None
        torch.testing.assert_close(
            call(alone.model, given), call(slimmed.model, given), rtol=1e-5, atol=1e-5
        )
        again = obo.slim(alone.model, given, macs=0.7, latency=False)
        assert again.plan.macs_after <= 0.7 * again.plan.macs_before
        assert again.verification.output_error is not None
        assert again.verification.output_error < 0.1

    @pytest.mark.parametrize("damaged", ["text", [{"name": "image"}], [{"name": 1, "shape": 2}]])
    def test_damaged_inputs_of_a_folder_are_told(self, damaged: object, tmp_path: Path) -> None:
        model, _ = fused()
        folder = obo.slim(model, inputs(16), macs=0.8, latency=False).save(tmp_path / "out")
        values = json.loads((folder / "plan.json").read_text())
        values["model"]["inputs"] = damaged
        (folder / "plan.json").write_text(json.dumps(values))
        with pytest.raises(PlanError, match="damaged `inputs`"):
            obo.load(folder, architecture=Fused())

    def test_a_whole_number_may_come_first(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")

        class First(Fused):
            def forward(self, step: Tensor, image: Tensor, depth: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
                return super().forward(image, depth, step)

        torch.manual_seed(0)
        given = {k: v for k, v in inputs(16).items() if k != "conditions"}
        slimmed = obo.slim(First().eval(), given, macs=0.8, latency=False)
        folder = slimmed.save(tmp_path / "out")
        found = examine(slimmed.model, slimmed.example, folder / "model.onnx", latency=True)
        assert found.check.failure is None
        assert found.timings

    def test_the_onnx_file_takes_them_all(self, tmp_path: Path) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        model, _ = fused()
        given = inputs()
        slimmed = obo.slim(model, given, macs=0.6, latency=False)
        folder = slimmed.save(tmp_path / "out")
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        order = ("image", "depth", "step", "conditions")
        assert [i.name for i in session.get_inputs()] == [*order]
        feed = {name: given[name].numpy() for name in order}
        found = torch.as_tensor(session.run(None, feed)[0])
        torch.testing.assert_close(found, call(slimmed.model, given), atol=1e-4, rtol=1e-4)

    def test_the_order_of_the_dict_changes_nothing(self) -> None:
        torch.manual_seed(0)
        model = Difference().eval()
        one, other = torch.randn(32, 3, 10, 10), 2 * torch.randn(32, 3, 10, 10)
        made = [
            obo.slim(model, given, macs=0.95, held_out=0, latency=False).model
            for given in ({"before": one, "after": other}, {"after": other, "before": one})
        ]
        with torch.no_grad():
            outputs = [m(one, other) for m in made]
            exact, swapped = model(one, other), made[0](other, one)
        torch.testing.assert_close(outputs[0], outputs[1], atol=1e-3, rtol=1e-3)
        assert (outputs[0] - exact).square().mean() < 0.1 * exact.var()
        assert (swapped - exact).square().mean() > 0.5 * exact.var()

    def test_step_by_step(self) -> None:
        model, _ = fused()
        given = inputs()
        seen = obo.observe(model, given)
        plan = obo.plan(model, seen, obo.Budget(macs=0.5))
        lighter = obo.rewrite(model, plan, given, statistics=seen)
        assert type(lighter) is Fused
        assert obo.verify(model, lighter, given, latency=False).output_error == pytest.approx(
            float((call(lighter, given) - call(model, given)).square().sum(1).mean()
                  / call(model, given).var(0, correction=0).sum()), rel=1e-3,
        )  # fmt: skip

    def test_labels_go_with_them(self) -> None:
        model, _ = fused()
        given = inputs()
        labels = call(model, given).argmax(1)
        slimmed = obo.slim(model, (given, labels), macs=0.6, latency=False)
        assert slimmed.verification.before.accuracy == 1.0

    @pytest.mark.parametrize(
        ("left_out", "message"),
        [
            (("depth",), "forward takes image, depth, step, conditions"),
            (("image", "depth", "step"), "give each that it needs"),
        ],
    )
    def test_missing_inputs_are_named(self, left_out: tuple[str, ...], message: str) -> None:
        model, _ = fused()
        given = {k: v for k, v in inputs().items() if k not in left_out}
        with pytest.raises(ModelError, match=message):
            obo.slim(model, given, macs=0.5)

    def test_those_taken_by_name_alone_are_named(self) -> None:
        class ByName(nn.Conv2d):
            def forward(self, *, image: Tensor, scale: Tensor) -> Tensor:
                return super().forward(image) * scale[:, None, None, None]

        with pytest.raises(ModelError, match="takes image, scale by name alone"):
            obo.slim(
                ByName(3, 8, 3),
                {"image": torch.randn(8, 3, 8, 8), "scale": torch.ones(8)},
                macs=0.5,
            )

    def test_channels_are_left_out_beside_numbers_that_are_looked_up(self) -> None:
        model, _ = fused()
        spaces = {s.name: s for s in obo.observe(model, inputs()).spaces}
        assert spaces["rgb.0.0"].refusal is None
        assert spaces["depth.0.0"].refusal is None

    def test_an_optional_input_may_be_left_out(self) -> None:
        model, _ = fused()
        given = {k: v for k, v in inputs().items() if k != "conditions"}
        slimmed = obo.slim(model, given, macs=0.6, latency=False)
        assert call(slimmed.model, given).isfinite().all()

    def test_what_is_held_out_must_be_alike(self) -> None:
        model, _ = fused()
        given = inputs()
        turned = dict(reversed(given.items()))
        with pytest.raises(DataError, match="same names, in the same order"):
            obo.slim(model, given, macs=0.5, held_out=turned)

    def test_whole_numbers_need_a_type_that_has_them(self) -> None:
        model, _ = fused()
        with pytest.raises(ModelError, match="which has not every whole number of step"):
            obo.slim(model.bfloat16(), inputs(16), macs=0.5)

    def test_double_precision_given_and_computed(self) -> None:
        model, _ = fused()
        given = inputs()
        double = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
        slimmed = obo.slim(model.double(), double, macs=0.6, held_out=given, latency=False)
        assert slimmed.verification.output_error is not None
        assert slimmed.verification.output_error < 0.05
        assert call(slimmed.model, double).dtype == torch.float64

    def test_traced_networks(self, tmp_path: Path) -> None:
        model, _ = fused()
        traced = torch.fx.symbolic_trace(model, concrete_args={"conditions": None})
        given = {k: v for k, v in inputs(64).items() if k != "conditions"}
        slimmed = obo.slim(traced, given, macs=0.5, latency=False)
        plain = obo.slim(model, given, macs=0.5, latency=False)
        forms = {d.layer: d.form for d in plain.plan.decisions if d.layer != "film"}  # not called
        assert {d.layer: d.form for d in slimmed.plan.decisions} == forms
        assert isinstance(slimmed.model, torch.fx.GraphModule)
        assert torch.equal(call(traced, given), call(model, given))
        torch.testing.assert_close(
            call(slimmed.model, given), call(plain.model, given), rtol=1e-3, atol=1e-4
        )
        tuned = obo.fine_tune(slimmed.model, given, teacher=traced, epochs=1, recipe=TRAINING)
        assert call(tuned.model, given).shape == (64, 7)
        slimmed.save(tmp_path / "out")
        loaded = obo.load(tmp_path / "out", architecture=traced).model
        assert torch.equal(call(loaded, given), call(slimmed.model, given))

    def test_programs(self, tmp_path: Path) -> None:
        model, example = fused()
        two = tuple(torch.cat([x, x]) for x in example)
        batch = {name: {0: torch.export.Dim("n")} for name in ("image", "depth", "step")}
        program = torch.export.export(model, two, dynamic_shapes=batch)
        torch.export.save(program, tmp_path / "m.pt2")
        loaded = obo.load(tmp_path / "m.pt2")
        assert loaded.fixed_batch is None
        assert [x.shape for x in loaded.inputs] == [x.shape for x in example]
        given = {k: v for k, v in inputs(64).items() if k != "conditions"}
        torch.testing.assert_close(call(loaded.model, given), call(model, given))
        slimmed = obo.slim(loaded.model, given, macs=0.5, latency=False, source=loaded.source)
        assert slimmed.plan.macs_after <= 0.5 * slimmed.plan.macs_before
        again = obo.load(slimmed.save(tmp_path / "out"))
        assert torch.equal(call(again.model, given), call(slimmed.model, given))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_onnx_files(self, tmp_path: Path) -> None:
        pytest.importorskip("onnx2torch")
        pytest.importorskip("onnxruntime")
        model, example = fused()
        torch.onnx.export(
            model, example, tmp_path / "m.onnx", input_names=["image", "depth", "step"],
            opset_version=17, dynamo=False,
        )  # fmt: skip
        loaded = obo.load(tmp_path / "m.onnx")
        assert [(x.shape, x.dtype) for x in loaded.inputs] == [(x.shape, x.dtype) for x in example]
        names = list(inspect.signature(loaded.model.forward).parameters)
        assert names == ["image", "depth", "step"]
        torch.testing.assert_close(
            loaded.model(*loaded.inputs), model(*loaded.inputs)["logits"], rtol=1e-4, atol=1e-5
        )
        with pytest.raises(ModelError, match="3 inputs"):
            obo.load(tmp_path / "m.onnx", input_size=(3, 12, 12))

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script")
    def test_compiled_networks_are_refused(self) -> None:
        torch.manual_seed(0)
        images = torch.randn(8, 3, 10, 10)
        compiled = torch.jit.script(Difference().eval())
        with pytest.raises(ModelError, match="is compiled"):
            obo.slim(compiled, {"before": images, "after": images}, macs=0.5)


class TestTraining:
    def test_a_disturbed_network_comes_back(self) -> None:
        model, _ = fused()
        given, other = inputs(256), copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(parameter.std() * torch.randn_like(parameter))
        tuned = obo.fine_tune(other, given, teacher=model, epochs=8, recipe=TRAINING)
        assert type(tuned.model) is Fused
        assert tuned.before is not None
        assert tuned.after is not None
        assert tuned.after.loss < 0.5 * tuned.before.loss
        wanted, far, near = (call(m, given).softmax(1) for m in (model, other, tuned.model))
        assert (near - wanted).square().sum() < 0.5 * (far - wanted).square().sum()

    def test_the_teacher_may_take_them_in_another_order(self) -> None:
        model, _ = fused()

        class Turned(Fused):
            def forward(
                self, step: Tensor, conditions: Tensor, image: Tensor, depth: Tensor
            ) -> Any:  # type: ignore[override]
                return super().forward(image, depth, step, conditions)

        teacher = Turned().eval()
        teacher.load_state_dict(model.state_dict())
        tuned = obo.fine_tune(model, inputs(64), teacher=teacher, epochs=1, recipe=TRAINING)
        assert tuned.before is not None
        assert tuned.before.agreement == 1.0

    def test_labels_count(self) -> None:
        model, _ = fused()
        given = inputs(128)
        labels = (given["step"] % 7).long()
        recipe = obo.Recipe(epochs=12, batch_size=16, precision="float32")
        tuned = obo.fine_tune(model, (given, labels), recipe=recipe, held_out=(given, labels))
        assert tuned.before is not None
        assert tuned.after is not None
        assert tuned.before.accuracy is not None
        assert tuned.after.accuracy is not None
        assert tuned.after.accuracy > tuned.before.accuracy + 0.2

    def test_resumes_to_the_same_bits(self, tmp_path: Path) -> None:
        model, _ = fused()
        given, file = inputs(64), tmp_path / "c.safetensors"
        whole = obo.fine_tune(model, given, teacher=model, epochs=2, recipe=TRAINING)

        def stop(status: Any) -> None:
            if status.epoch >= 1.5:
                raise KeyboardInterrupt

        settings: dict[str, Any] = {"teacher": model, "epochs": 2, "recipe": TRAINING}
        first = obo.fine_tune(model, given, checkpoint=file, progress=stop, **settings)
        assert first.ended == "interrupted"
        again = obo.fine_tune(model, given, checkpoint=file, resume=True, **settings)
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(tensor, again.model.state_dict()[name]), name

    def test_in_steps(self, tmp_path: Path) -> None:
        model, _ = fused()
        given = inputs(160)
        slimmed = obo.slim(
            model, given, macs=0.4, steps=2, finetune_epochs=1, recipe=TRAINING, latency=False
        )
        assert type(slimmed.model) is Fused
        assert slimmed.plan.macs_after <= 0.4 * slimmed.plan.macs_before
        assert len(slimmed.plan.schedule) == 2
        assert isinstance(slimmed.example, tuple)
        assert "takes depth 1×12×12, image 3×12×12" in " ".join(slimmed.plan.notes)
        slimmed.save(tmp_path / "out")
        loaded = obo.load(tmp_path / "out", architecture=Fused()).model
        assert torch.equal(call(loaded, given), call(slimmed.model, given))

    def test_batches_of_a_loader(self) -> None:
        model, _ = fused()
        given = inputs(96)
        labels = given["step"] % 7

        class Rows(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return 96

            def __getitem__(self, i: int) -> tuple[dict[str, Tensor], int]:
                return {k: v[i] for k, v in given.items()}, int(labels[i])

        loader = torch.utils.data.DataLoader(Rows(), batch_size=24)
        images = open_images(loader)
        assert torch.equal(images.inputs, open_images(given).inputs)
        assert images.labels is not None
        assert torch.equal(images.labels, labels)
        lighter = obo.slim(model, loader, macs=0.5, held_out=0, latency=False).model
        tuned = obo.fine_tune(
            lighter, loader, teacher=model, epochs=2, held_out=(given, labels), recipe=TRAINING
        )
        assert tuned.images == 192
        assert type(tuned.model) is Fused
        assert tuned.before is not None
        assert tuned.after is not None
        assert tuned.before.accuracy is not None
        assert tuned.after.accuracy is not None
        assert tuned.after.accuracy >= tuned.before.accuracy
        steps = obo.slim(
            model, loader, macs=0.4, steps=2, finetune_epochs=1, held_out=0, recipe=TRAINING,
            latency=False,
        )  # fmt: skip
        assert type(steps.model) is Fused

    def test_batches_that_differ(self) -> None:
        given = inputs(8)
        turned = dict(reversed(given.items()))
        with pytest.raises(DataError, match="the batches differ: inputs of depth"):
            open_images([(given,), (turned,)])
        with pytest.raises(DataError, match="inputs of one image and of depth"):
            open_images([(torch.zeros(8, 1, 577),), (given,)])
        with pytest.raises(DataError, match="first item is str"):
            open_images([("a", 1)])

    @pytest.mark.parametrize("trained", [False, True])
    def test_deepen(self, trained: bool, tmp_path: Path) -> None:
        model, _ = fused()
        given = inputs(160)
        lighter = obo.slim(model, given, macs=0.4, latency=False)
        deeper = obo.deepen(
            lighter.model, lighter.example, obo.Budget(macs=0.8), reference=model, data=given,
            epochs=float(trained), recipe=TRAINING,
        )  # fmt: skip
        assert type(deeper.model) is Fused
        assert any(not i.refused for i in deeper.plan.insertions)
        assert 0.4 < deeper.plan.macs_after / model_macs(model) <= 0.8
        if not trained:
            torch.testing.assert_close(
                call(deeper.model, given), call(lighter.model, given), rtol=1e-4, atol=1e-5
            )
        deeper.save(tmp_path / "out")
        loaded = obo.load(tmp_path / "out", architecture=lighter.model).model
        assert torch.equal(call(loaded, given), call(deeper.model, given))
        page = (tmp_path / "out" / "report.html").read_text()
        assert "depth 1×12×12, image 3×12×12, step (one number), conditions 5" in page

    def test_deepen_by_rule(self) -> None:
        model, _ = fused()
        lighter = obo.slim(model, inputs(), macs=0.4, latency=False)
        deeper = obo.deepen(lighter.model, lighter.example, obo.Budget(macs=0.8), reference=model)
        torch.testing.assert_close(
            call(deeper.model, inputs()), call(lighter.model, inputs()), rtol=1e-4, atol=1e-5
        )

    @pytest.mark.parametrize("traced", [False, True])
    def test_nothing_stands_around_the_whole(self, traced: bool) -> None:
        torch.manual_seed(0)
        model = Difference().eval()
        x, y = torch.randn(2, 1, 3, 10, 10)
        network = torch.fx.symbolic_trace(model) if traced else model
        deeper = obo.deepen(network, (x, y), obo.Budget(macs=1.0), reference=wide())
        assert any(not i.refused for i in deeper.plan.insertions)
        assert all(i.place or i.refused for i in deeper.plan.insertions)
        torch.testing.assert_close(deeper.model(x, y), model(x, y))
        with pytest.raises(ModelError, match="several inputs"):
            obo.deepen(Sum().eval(), (x, y), obo.Budget(macs=1.0), reference=wide())

    def test_deepen_refuses_what_is_unlike(self) -> None:
        model, example = fused()
        with pytest.raises(DataError, match="give a tuple of them as the example"):
            obo.deepen(model, example[0], obo.Budget(macs=1.0), reference=model, data=inputs())
        with pytest.raises(DataError, match="and the example is image"):
            obo.deepen(model, example, obo.Budget(macs=1.0), reference=model, data=inputs())
        given = {k: v for k, v in inputs().items() if k != "conditions"}
        turned = dict(reversed(given.items()))
        with pytest.raises(DataError, match="in the same order"):
            obo.deepen(
                model, example, obo.Budget(macs=1.0), reference=model, data=given, held_out=turned
            )

    def test_refusals(self) -> None:
        model, _ = fused()
        given = inputs()
        with pytest.raises(TrainingError, match="augment shift changes one image alone"):
            obo.fine_tune(
                model, given, teacher=model, recipe=obo.Recipe(augment=("shift",), batch_size=16)
            )
        other = {k: v for k, v in given.items() if k != "conditions"}
        with pytest.raises(DataError, match="in the same order"):
            obo.fine_tune(model, given, teacher=model, held_out=other, recipe=TRAINING)
        with pytest.raises(DataError, match="in the same order"):
            obo.slim(
                model, given, macs=0.5, held_out=other, steps=2, finetune_epochs=1, recipe=TRAINING
            )


def succeed(line: str) -> str:
    """What a command line prints, in one line."""
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


class TestCommands:
    @pytest.fixture
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(Path(__file__).parent)
        given = {k: v.numpy() for k, v in inputs(96).items() if k != "conditions"}
        np.savez(tmp_path / "data.npz", **given, labels=np.arange(96) % 7)
        more = {k: v.numpy() for k, v in inputs(200).items() if k != "conditions"}
        np.savez(tmp_path / "more.npz", **more)
        return tmp_path

    def test_slim_and_verify(self, here: Path) -> None:
        line = "slim test_several:fused --data data.npz --macs 0.5 --no-latency -o out"
        succeed(line)
        assert (here / "out" / "report.html").is_file()
        line = "verify out --data data.npz --trust --no-latency"
        assert "96 held-out images" in succeed(line)

    def test_finetune_and_deepen(self, here: Path) -> None:
        slim = "slim test_several:fused --data data.npz --macs 0.4 --no-latency -o out"
        tune = "finetune out --trust --data more.npz --epochs 1 --batch 16 --no-latency -o tuned"
        deeper = "deepen tuned --trust --data more.npz --macs 0.8 --epochs 0.5 -o deeper"
        for line in (slim, tune, deeper):
            succeed(line)
        loaded = obo.load(here / "deeper", trust=True)
        given = {k: v for k, v in inputs().items() if k != "conditions"}
        assert type(loaded.model) is Fused
        assert bool(call(loaded.model, given).isfinite().all())

    def test_inputs_named_like_images_and_labels(self, here: Path) -> None:
        g = torch.Generator().manual_seed(0)
        x, y = (torch.randn(32, 3, 10, 10, generator=g).numpy() for _ in range(2))
        np.savez(here / "xy.npz", x=x, y=y, labels=np.zeros(32, int))
        line = "slim test_several:between --data xy.npz --macs 0.5 --no-latency -o out"
        assert "takes x 3×10×10, y 3×10×10" in succeed(line)

    def test_in_steps(self, here: Path) -> None:
        line = "slim test_several:fused --data more.npz --macs 0.5 --steps 2 --finetune-epochs 0.5 -o out"
        succeed(f"{line} --no-latency")
        assert len(json.loads((here / "out" / "plan.json").read_text())["schedule"]) == 2

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("slim test_several:fused --data demo --macs 0.5 -o out", "demo has one input"),
            ("slim demo --data data.npz --macs 0.5 -o out", "the network takes"),
            ("slim test_several:fused --data other.npz --macs 0.5 -o out", "other.npz has image"),
            ("slim test_several:fused --data other.npz --macs 0.5 --steps 2 --finetune-epochs 1 "
             "-o out", "other.npz has image"),
        ],
    )  # fmt: skip
    def test_refusals(self, here: Path, line: str, message: str) -> None:
        np.savez(here / "other.npz", image=np.zeros((4, 3, 12, 12)), deep=np.zeros((4, 1)))
        result = CliRunner().invoke(app, line.split())
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
        assert not (here / "out").exists()
