"""fine_tune: what it learns, what it keeps, what it gives back, how it ends and goes on."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TRAPS, Viewing, as_trained, images
from torch import Tensor, nn
from torch.nn import functional as F

import onebyone as obo
from onebyone.errors import DataError, ModelError, OneByOneError, OutputError, TrainingError
from onebyone.pools import open_pool
from onebyone.recovery import training as loop
from onebyone.recovery.augmentation import augmented
from onebyone.recovery.features import block_ends, standing_for
from onebyone.recovery.normalization import reestimate
from onebyone.recovery.objective import Objective
from onebyone.recovery.scoring import Score, holds_up
from onebyone.recovery.status import Status
from onebyone.recovery.training import Measured
from onebyone.tree import deep_copy

QUICK = obo.Recipe(
    epochs=2, batch_size=16, precision="float32", learning_rate=0.05, average=0.9, augment=()
)


def net(seed: int = 0) -> nn.Sequential:
    """A small classifier of 3 classes with BatchNorm."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for c_in, c_out in ((2, 12), (12, 16), (16, 16)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()


def cut_channels(model: nn.Sequential, kept: Tensor) -> None:
    """Leave these channels of the last feature map of `net`."""
    conv, norm, last = nn.Conv2d(16, len(kept), 3, padding=1), nn.BatchNorm2d(len(kept)), model[11]
    for new, old in ((conv, model[6]), (norm, model[7])):
        state = old.state_dict()
        new.load_state_dict({k: t[kept] if t.ndim else t for k, t in state.items()})
    model[6], model[7] = conv, norm.eval()
    model[11] = nn.Linear(len(kept), 3)
    with torch.no_grad():
        model[11].weight.copy_(last.weight[:, kept])


def labeled(n: int = 96, seed: int = 1) -> obo.Images:
    """Images whose class is the brighter of two channels, or neither."""
    inputs = images(n, 2, 10, 10, seed=seed)
    gap = inputs.mean((2, 3)).diff(dim=1)[:, 0]
    edges = gap.quantile(torch.tensor([1 / 3, 2 / 3]))
    return obo.Images(inputs, torch.bucketize(gap, edges))


class Extra(nn.Sequential):
    """A network with a state of its own that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 3}


def broken() -> nn.Module:
    """A network whose loss is NaN from the first step on."""
    model = net()
    nn.init.constant_(model[-1].weight, math.nan)
    return model


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether both have the same weights and buffers to the bit."""
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


class Overwriting(nn.Module):
    """A head that writes into what the sigmoid's gradient needs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.body, self.head = net(seed)[:9], nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.body(x)).sigmoid()
        y[:, :2] = 2 * y[:, :2] - 0.5
        return y


class Table(nn.Module):
    """A network with a parameter and a buffer of five axes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.kernels = nn.Parameter(torch.randn(2, 3, 3, 1, 1))
        self.register_buffer("table", torch.zeros(1, 2, 3, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) @ self.kernels[0, :, :, 0, 0]


class TestLearning:
    @pytest.mark.parametrize("precision", ["auto", "bfloat16"])
    def test_what_a_network_overwrites_is_copied_for_its_gradients(self, precision: str) -> None:
        model, teacher = (Overwriting(seed).eval() for seed in (3, 4))
        data = images(96, 2, 10, 10)
        recipe = replace(QUICK, precision=precision, learning_rate=0.2)
        tuned = obo.fine_tune(model, data, teacher=teacher, recipe=recipe, held_out=32)
        assert tuned.before and tuned.after  # noqa: PT018
        assert tuned.after.loss < 0.8 * tuned.before.loss
        assert any("overwrites" in note for note in tuned.notes)

    def test_tensors_of_five_axes_stay_as_they_are(self) -> None:
        tuned = obo.fine_tune(Table().eval(), labeled(), recipe=replace(QUICK, epochs=1))
        assert tuned.after is not None
        assert not any("overwrites" in note for note in tuned.notes)

    def test_networks_that_find_other_numbers_of_things_are_told(self) -> None:
        class Found(nn.Module):
            def __init__(self, seed: int) -> None:
                super().__init__()
                self.body = net(seed)

            def forward(self, x: Tensor) -> Tensor:
                found = self.body(x)
                return found[found[:, 0] > found[:, 1]]

        with pytest.raises(TrainingError, match=r"rows and its teacher .* as detectors do"):
            obo.fine_tune(
                Found(0).eval(), images(64, 2, 10, 10), teacher=Found(1).eval(), recipe=QUICK
            )

    def test_labels_alone(self) -> None:
        model, (data, others) = net(), labeled(330).split(90)
        tuned = obo.fine_tune(model, data, recipe=replace(QUICK, epochs=9), held_out=others)
        assert tuned.before
        assert tuned.after
        assert tuned.before.agreement is None
        assert tuned.after.accuracy is not None
        assert tuned.before.accuracy is not None
        assert tuned.after.accuracy > max(0.6, tuned.before.accuracy)
        assert (tuned.images, len(tuned.measured), tuned.ended) == (9 * 240, 10, "done")

    def test_probabilities_are_learned_as_the_logits_behind_them(self) -> None:
        data, others = labeled(330).split(90)
        teacher, student = net(), net(1)
        found = [
            obo.fine_tune(
                nn.Sequential(deep_copy(student), *end), data, held_out=others, recipe=QUICK,
                teacher=nn.Sequential(deep_copy(teacher), *end),
            )
            for end in ([], [nn.Softmax(1)])
        ]  # fmt: skip
        for one, other in zip(*(f.measured for f in found), strict=True):
            assert one.score
            assert other.score
            assert other.score.loss == pytest.approx(one.score.loss, rel=0.02)
            assert other.score.agreement == pytest.approx(one.score.agreement, abs=0.03)

    def test_a_teacher_of_another_type(self) -> None:
        data, given = labeled(64), {"held_out": 0, "recipe": QUICK}
        one, other = (
            obo.fine_tune(net(1), data, teacher=teacher, **given).model
            for teacher in (net(), net().double())
        )
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    def test_extra_state_that_is_no_tensor(self, tmp_path: Path) -> None:
        data, path = labeled(64), tmp_path / "checkpoint.safetensors"
        given: dict[str, Any] = {"held_out": 0, "recipe": QUICK}
        whole = obo.fine_tune(Extra(net()), data, checkpoint=path, **given)
        again = obo.fine_tune(Extra(net()), data, checkpoint=path, resume=True, **given)
        assert equal(again.model[0], whole.model[0])
        slimmed = obo.slim(Extra(net()), data.inputs, macs=0.6, held_out=16, latency=False)
        assert obo.load(slimmed.save(tmp_path / "out"), architecture=Extra(net())).model

    def test_image_files_that_cannot_be_read_are_named(self, tmp_path: Path) -> None:
        from PIL import Image

        generator = torch.Generator().manual_seed(0)
        for number in range(24):
            pixels = torch.randint(0, 256, (10, 10, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(tmp_path / f"{number:02}.png")
        (tmp_path / "broken.png").write_bytes(b"no picture")
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        tuned = obo.fine_tune(
            model, tmp_path, teacher=model, held_out=0, recipe=replace(QUICK, batch_size=5),
            preprocess=obo.Preprocess((3, 10, 10), (0.5,) * 3, (0.25,) * 3),
        )  # fmt: skip
        assert sum("1 image file could not be read: " in note for note in tuned.notes) == 1
        assert any("broken.png: " in note for note in tuned.notes)

    def test_another_trainings_checkpoint_is_not_gone_on_with(self, tmp_path: Path) -> None:
        data, path = labeled(64), tmp_path / "checkpoint.safetensors"
        given: dict[str, Any] = {"held_out": 0, "recipe": QUICK, "checkpoint": path}
        obo.fine_tune(net(), data, **given)
        assert path.is_file()
        with pytest.raises(TrainingError):  # before anything of its own is written
            obo.fine_tune(broken(), data, **given)
        with pytest.raises(TrainingError, match="no checkpoint"):
            obo.fine_tune(net(1), data, resume=True, **given)
        with pytest.raises(OutputError, match="is a folder: give the name of a file"):
            obo.fine_tune(net(), data, **{**given, "checkpoint": tmp_path})

    def test_a_teacher_alone(self) -> None:
        data, others = labeled(330).split(90)
        teacher = obo.fine_tune(net(), data, recipe=QUICK, epochs=6, held_out=others).model
        recipe = replace(QUICK, epochs=8, features=0.2)
        tuned = obo.fine_tune(
            net(1), data.inputs, teacher=teacher, held_out=others.inputs, recipe=recipe
        )
        assert tuned.before
        assert tuned.after
        assert tuned.after.accuracy is None
        assert tuned.after.loss < 0.5 * tuned.before.loss

    def test_outputs_that_are_no_logits(self) -> None:
        teacher = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))
        student = deep_copy(teacher)
        nn.init.normal_(student[2].weight)
        data = images(64, 2, 8, 8)
        tuned = obo.fine_tune(student, data, teacher=teacher, recipe=QUICK, epochs=8)
        assert tuned.before
        assert tuned.after
        assert tuned.after.agreement is None
        assert tuned.after.loss < 0.5 * tuned.before.loss

    def test_the_loss_is_the_formula(self) -> None:
        """T² KL, cross-entropy and relative squared distance of features, worked out by hand."""
        teacher, student = net(0), net(1)
        x, y = images(8, 2, 10, 10), torch.arange(8) % 3
        recipe = obo.Recipe(soft=0.3, temperature=2.5, features=0.7, smoothing=0.1)
        with Objective(student, teacher, recipe, x[:1]) as objective:
            loss = objective.loss(x, y)
        given, wanted = student(x), teacher(x).detach()
        p, q = (wanted / 2.5).softmax(1), (given / 2.5).softmax(1)
        soft = 2.5**2 * (p * (p / q).log()).sum(1).mean()
        hard = F.cross_entropy(given, y, label_smoothing=0.1)
        assert objective.names == ("8",)  # the last layer at 10×10; pooled maps are left out
        f, t = student[:9](x), teacher[:9](x).detach()
        features = (f - t).square().mean() / t.square().mean()
        expected = 0.3 * soft + 0.7 * hard + 0.7 * features
        torch.testing.assert_close(loss.value, expected)
        assert loss.right is not None
        assert int(loss.right) == int((given.argmax(1) == y).sum())

    def test_block_ends_of_residual_networks(self) -> None:
        model = obo.load("demo:resnet").model
        ends = block_ends(model, deep_copy(model), torch.randn(1, 1, 28, 28))
        assert ends == tuple(f"stage{s}.{b}" for s in (1, 2, 3) for b in (0, 1))

    def test_features_of_another_shape_are_left_out(self) -> None:
        teacher, student = net(), net()
        student[0], student[1] = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        student[3] = nn.Conv2d(8, 16, 3, padding=1)
        names = block_ends(student, teacher, images(1, 2, 10, 10))
        assert names == ("8",)

    def test_fewer_channels_are_matched_with_those_that_they_stand_for(self) -> None:
        teacher, x = as_trained(net()), images(32, 2, 10, 10)
        kept = torch.tensor([5, 1, 6, 11])
        assert teacher[8](teacher[:8](x)).shape[1] > 11
        student = deep_copy(teacher)
        cut_channels(student, kept)
        recipe = obo.Recipe(soft=0.5, features=0.7)
        objective = Objective(student, teacher, recipe, x)
        assert objective.names == ("8",)
        assert torch.equal(objective.channels["8"], kept)
        with torch.no_grad():  # away from the teacher, in the features too
            student[6].weight += 0.1 * torch.randn_like(student[6].weight)
        with objective:
            loss = objective.loss(x, None)
        f, t = student[:9](x), teacher[:9](x)[:, kept].detach()
        features = (f - t).square().mean() / t.square().mean()
        logits = [m(x) for m in (student, teacher)]
        soft = 4 * F.kl_div(
            (logits[0] / 2).log_softmax(1), (logits[1] / 2).log_softmax(1),
            reduction="batchmean", log_target=True,
        )  # fmt: skip
        torch.testing.assert_close(loss.value, soft + 0.7 * features)

    def test_channels_that_stand_for_none_are_not_matched(self) -> None:
        other = images(16, 6, 4, 4)
        chosen = standing_for(other[:, [4, 0]] * 3 - 1 + 0.3 * images(16, 2, 4, 4, seed=5), other)
        assert chosen is not None
        assert chosen.tolist() == [4, 0]
        assert standing_for(other[:, [4, 4]], other) is None  # two for one
        assert standing_for(images(16, 2, 4, 4, seed=9), other) is None  # noise
        assert standing_for(torch.zeros(16, 2, 4, 4), other) is None


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_a_network_that_overwrites_is_deepened() -> None:
    model, data = Overwriting(3).eval(), images(96, 2, 10, 10)
    lighter = obo.slim(model, data, macs=0.5, latency=False).model
    for given in (None, data):
        deeper = obo.deepen(lighter, data[:1], obo.Budget(macs=1.0), reference=model, data=given)
        assert any(not i.refused for i in deeper.plan.insertions)
        torch.testing.assert_close(deeper.model(data), lighter(data))


def test_losses_of_any_size_and_one_image_are_told_shortly() -> None:
    measured = tuple(
        Measured(epoch, 1, None, Score(1, None, None, loss), 0.0)
        for epoch, loss in ((0.0, 1.3716e37), (1.0, 0.18304))
    )
    done = obo.FineTuned(net(), measured, 1, QUICK, "float32", 1, 2.0)
    assert done.words == (
        "fine-tuned on 1 image in all (float32, 2 s): loss 1.4e37 → 0.1830 on 1 held-out image"
    )
    going = Status(0.5, 2.0, 1.3716e37, None, 1250.0, 100.0)
    assert going.words == "epoch 0.5 of 2, 0:01:40 left, loss 1.4e37, 1,250 images/s"


class TestKeeping:
    def test_the_model_and_random_numbers_are_untouched(self) -> None:
        model, teacher = net(), net(3)
        before, guide = deep_copy(model), deep_copy(teacher)
        torch.manual_seed(11)
        expected = torch.rand(3)
        torch.manual_seed(11)
        obo.fine_tune(model, labeled(64), teacher=teacher, recipe=QUICK)
        assert torch.equal(torch.rand(3), expected)
        assert equal(model, before)
        assert equal(teacher, guide)
        for module in (*model.modules(), *teacher.modules()):
            assert not module._forward_hooks
            assert not module.training
        assert all(p.grad is None and p.requires_grad for p in model.parameters())

    @pytest.mark.filterwarnings("ignore:Using padding='same'")
    @pytest.mark.parametrize("name", sorted(TRAPS))
    def test_trap_models(self, name: str) -> None:
        """Every model that runs in float32 trains; types, formats, modes and frozen parts come back."""
        trap = TRAPS[name]
        model, data = trap.model(), trap.images(32)
        if trap.error is not None:
            with pytest.raises(OneByOneError):
                obo.fine_tune(model, data, teacher=model, recipe=QUICK)
            return
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        tuned = obo.fine_tune(model, data, teacher=model, recipe=replace(QUICK, epochs=1))
        for (n, a), (m, b) in zip(
            model.state_dict().items(), tuned.model.state_dict().items(), strict=True
        ):
            assert (n, a.dtype, a.stride()) == (m, b.dtype, b.stride())
            if n in frozen:
                assert torch.equal(a, b)
        assert [m.training for m in model.modules()] == [m.training for m in tuned.model.modules()]

    def test_the_best_is_kept_and_not_the_last(self) -> None:
        """Wrong labels ruin the network: what was there before is what comes back."""
        model, data = net(), labeled(96)
        good = obo.fine_tune(model, data, recipe=replace(QUICK, epochs=6), held_out=data).model
        assert data.labels is not None
        wrong = obo.Images(data.inputs, (data.labels + 1) % 3)
        ruined = obo.fine_tune(
            good, wrong, held_out=data, recipe=replace(QUICK, epochs=4, learning_rate=0.5)
        )
        scores = [m.score.value for m in ruined.measured if m.score]
        assert scores[-1] < scores[0]
        assert ruined.best == 0
        assert equal(ruined.model, good)

    def test_longer_training_wins_within_a_standard_error(self) -> None:
        """Of 0.9 on 900 images the standard error is 0.01."""

        def seen(accuracy: float | None, loss: float = 1.0) -> Score:
            return Score(900, accuracy, None, loss)

        start, best = seen(0.8), seen(0.9)
        assert holds_up(start, [])
        assert holds_up(seen(0.891), [start, best])
        assert not holds_up(seen(0.889), [start, best])
        assert not holds_up(seen(0.895), [seen(0.9), seen(0.85)])
        assert holds_up(seen(None, 0.4), [seen(None, 0.9), seen(None, 0.5)])
        assert not holds_up(seen(None, 0.5), [seen(None, 0.9), seen(None, 0.5)])

    def test_early_stop(self) -> None:
        model, data = net(), labeled(96)
        recipe = replace(QUICK, epochs=50, patience=2, learning_rate=1e-12)
        tuned = obo.fine_tune(model, data, recipe=recipe, held_out=labeled(30, 3))
        assert tuned.ended == "early"
        assert len(tuned.measured) < 20

    def test_unused_parameters_stay(self) -> None:
        class Spare(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net, self.spare = net(), nn.Linear(3, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.net(x)

        model = Spare()
        tuned = obo.fine_tune(model, labeled(48), recipe=QUICK)
        assert torch.equal(tuned.model.spare.weight, model.spare.weight)  # type: ignore[union-attr]
        assert not equal(tuned.model, model)

    def test_low_precision_weights_come_back_as_they_were(self) -> None:
        model = net().to(torch.bfloat16)
        tuned = obo.fine_tune(model, labeled(48), recipe=QUICK)
        assert {p.dtype for p in tuned.model.parameters()} == {torch.bfloat16}
        assert not equal(tuned.model, model)

    def test_the_type_that_was_computed_in_is_told(self) -> None:
        assert obo.fine_tune(net().double(), labeled(48), recipe=QUICK).precision == "float64"
        autocast = replace(QUICK, precision="bfloat16")
        assert obo.fine_tune(net(), labeled(48), recipe=autocast).precision == "bfloat16"


class TestEnding:
    def test_resumed_to_the_bit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stopped in the middle of an epoch and gone on from the checkpoint, as if never stopped."""
        model, teacher, data = net(1), net(), labeled(100)
        dropping = nn.Sequential(*model[:-1], nn.Dropout(0.3), model[-1]).eval()
        recipe = replace(
            QUICK, epochs=3, augment=("shift", "mirror"), momentum=0.9, learning_rate=0.01
        )
        arguments: dict[str, Any] = {"teacher": teacher, "held_out": 0, "recipe": recipe}
        whole = obo.fine_tune(dropping, data, **arguments)
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        monkeypatch.setattr(loop, "TELL_SECONDS", 0.0)
        file = tmp_path / "c.safetensors"

        class Gone(Exception):
            pass

        def stop(status: Status) -> None:
            if status.epoch > 1.4:
                raise Gone

        with pytest.raises(Gone):
            obo.fine_tune(dropping, data, checkpoint=file, progress=stop, **arguments)
        again = obo.fine_tune(dropping, data, checkpoint=file, resume=True, **arguments)
        assert equal(again.model, whole.model)
        assert again.images == whole.images
        assert [m.loss for m in again.measured[:2]] == [m.loss for m in whole.measured[:2]]

    @pytest.mark.parametrize("optimizer", ["shampoo", "sgd", "adamw"])
    def test_the_optimizer_goes_on_too(self, optimizer: str, tmp_path: Path) -> None:
        model, data, file = net(), labeled(64), tmp_path / "c.safetensors"
        recipe = replace(QUICK, optimizer=optimizer, epochs=2, measure_every=0.5)
        whole = obo.fine_tune(model, data, recipe=recipe, held_out=0)
        kept: list[bytes] = []

        def copy(status: Status) -> None:
            if file.exists() and not kept:
                kept.append(file.read_bytes())

        tell = loop.TELL_SECONDS
        loop.TELL_SECONDS = 0.0
        try:
            obo.fine_tune(model, data, recipe=recipe, held_out=0, checkpoint=file, progress=copy)
        finally:
            loop.TELL_SECONDS = tell
        file.write_bytes(kept[0])
        again = obo.fine_tune(model, data, recipe=recipe, held_out=0, checkpoint=file, resume=True)
        assert equal(again.model, whole.model)

    def test_an_interrupt_keeps_the_best(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop, "TELL_SECONDS", 0.0)

        def interrupt(status: Status) -> None:
            if status.epoch > 2.5:
                raise KeyboardInterrupt

        data = labeled(96)
        tuned = obo.fine_tune(
            net(), data, recipe=replace(QUICK, epochs=9), held_out=data, progress=interrupt
        )
        assert tuned.ended == "interrupted"
        assert tuned.why == "interrupted at epoch 2.67"
        assert len(tuned.measured) == 3
        scores = [m.score for m in tuned.measured if m.score]
        assert tuned.best == max(i for i in range(3) if holds_up(scores[i], scores[:i]))
        assert scores[tuned.best].value > scores[0].value

    @pytest.mark.parametrize("inside", [False, True])
    def test_an_interrupt_leaves_a_checkpoint_of_one_moment(
        self, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between two steps, or where the signal comes in the middle of one; resumed to the bit."""
        monkeypatch.setattr(loop, "TELL_SECONDS", 0.0)
        data, recipe = labeled(96), replace(QUICK, epochs=2)
        whole = obo.fine_tune(net(), data, recipe=recipe, held_out=data)
        calls, step = [], loop.Training._step

        def signaled(self: loop.Training, *batch: Any) -> float:
            value = step(self, *batch)
            calls.append(value)
            if len(calls) == 2:
                signal.raise_signal(signal.SIGINT)
                calls.append(0.0)  # the signal waits for the end of the step
            return value

        def interrupt(status: Status) -> None:
            raise KeyboardInterrupt

        if inside:
            monkeypatch.setattr(loop.Training, "_step", signaled)
        file = tmp_path / "state.safetensors"
        options: dict[str, Any] = {} if inside else {"progress": interrupt}
        before = signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # tests may run ignoring it
        try:
            first = obo.fine_tune(
                net(), data, recipe=recipe, held_out=data, checkpoint=file, **options
            )
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        finally:
            signal.signal(signal.SIGINT, before)
        assert first.ended == "interrupted"
        assert first.images == 16 * (2 if inside else 1)
        assert len(calls) == (3 if inside else 0)
        again = obo.fine_tune(
            net(), data, recipe=recipe, held_out=data, checkpoint=file, resume=True
        )
        assert equal(again.model, whole.model)
        assert [m.score for m in again.measured] == [m.score for m in whole.measured]

    def test_a_float64_network_resumes_to_the_bit(self, tmp_path: Path) -> None:
        """What Shampoo keeps in float32 stays so."""
        data, file = labeled(96), tmp_path / "state.safetensors"
        arguments: dict[str, Any] = {"recipe": replace(QUICK, measure_every=0.4), "held_out": data}
        whole = obo.fine_tune(net().double(), data, **arguments)

        def interrupt(status: Status) -> None:
            raise KeyboardInterrupt

        first = obo.fine_tune(
            net().double(), data, checkpoint=file, progress=interrupt, **arguments
        )
        assert first.ended == "interrupted"
        again = obo.fine_tune(net().double(), data, checkpoint=file, resume=True, **arguments)
        assert equal(again.model, whole.model)
        for mine, other in zip(again.measured, whole.measured, strict=True):
            assert (mine.loss, mine.score) == (other.loss, other.score)  # of all steps in between

    def test_a_checkpoint_of_other_weights_is_told(self, tmp_path: Path) -> None:
        data, file = labeled(96), tmp_path / "state.safetensors"
        arguments: dict[str, Any] = {"recipe": QUICK, "held_out": data, "checkpoint": file}
        done = obo.fine_tune(net(), data, **arguments)
        with pytest.raises(TrainingError, match="of the same shapes with other weights"):
            obo.fine_tune(net(5), data, resume=True, **arguments)
        # In a folder that is fine-tuned in place stand the best weights so far.
        again = obo.fine_tune(done.model, data, resume=True, **arguments)
        assert equal(again.model, done.model)

    @pytest.mark.parametrize("held_out", [True, False])
    def test_what_the_last_step_breaks_is_told(self, held_out: bool) -> None:
        data = labeled(96)
        recipe = obo.Recipe(
            batch_size=32, epochs=1 / 3, optimizer="sgd", learning_rate=1e30, clip=0.0, warmup=0.0,
            precision="float32", average=0.0,
        )  # fmt: skip
        plain = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 3))
        with pytest.raises(TrainingError, match="no finite number after the update at step 1 of 1"):
            obo.fine_tune(plain.eval(), data, recipe=recipe, held_out=data if held_out else 0)

    def test_sigterm_leaves_a_checkpoint(self, tmp_path: Path) -> None:
        data, file = labeled(96), tmp_path / "state.safetensors"
        arguments: dict[str, Any] = {"recipe": QUICK, "held_out": data, "checkpoint": file}
        whole = obo.fine_tune(net(), data, **arguments)
        file.unlink()

        def leave(status: Status) -> None:
            raise SystemExit(143)

        with pytest.raises(SystemExit):
            obo.fine_tune(net(), data, progress=leave, **arguments)
        assert file.is_file()
        again = obo.fine_tune(net(), data, resume=True, **arguments)
        assert equal(again.model, whole.model)

    def test_labels_are_checked_before_anything_is_trained(self, tmp_path: Path) -> None:
        data, file = labeled(96), tmp_path / "state.safetensors"
        assert data.labels is not None
        data.labels[[3, 70]] = 99
        with pytest.raises(DataError, match=r"a label is 99, .* \(2 of 96 are none\)"):
            obo.fine_tune(net(), data, recipe=QUICK, held_out=labeled(33, 2), checkpoint=file)
        assert not file.exists()

    def test_divergence_stops_and_keeps_the_best(self) -> None:
        model, data = net(), labeled(96)
        recipe = replace(QUICK, epochs=9, learning_rate=1e9, clip=0.0, warmup=1.0, augment=())
        with pytest.raises(TrainingError, match=r"step [\d,]+ of 54 .*learning rate") as caught:
            obo.fine_tune(model, data, recipe=recipe, held_out=data)
        best = caught.value.best
        assert isinstance(best, obo.FineTuned)
        assert best.ended == "diverged"
        assert all(t.isfinite().all() for t in best.model.state_dict().values())

    def test_nan_images_never_reach_the_weights(self) -> None:
        class Bad:
            def __len__(self) -> int:
                return 2

            def __iter__(self) -> Iterator[Tensor]:
                yield images(16, 2, 10, 10)
                yield images(16, 2, 10, 10) * math.nan

        with pytest.raises(DataError, match="NaN"):
            obo.fine_tune(net(), Bad(), teacher=net(), recipe=QUICK)


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"epochs": 0}, "epochs=0 does not fit"),
            ({"epochs": math.nan}, "epochs=nan"),
            ({"optimizer": "lion"}, "'lion' is not known: give one of shampoo, sgd, adamw"),
            ({"soft": 1.5}, "soft=1.5 does not fit: give a number from 0 to 1"),
            ({"augment": ("flip",)}, "'flip' is not known"),
            ({"batch_size": 0}, "batch_size=0"),
            (
                {"batch_size": 8.0},
                r"batch_size=8\.0 does not fit: give a whole number of 1 or more",
            ),
            ({"patience": 0}, "patience=0"),
        ],
    )
    def test_recipes(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(TrainingError, match=message):
            obo.Recipe(**change)

    def test_a_last_batch_of_one_image(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(200, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        parts = [(images(n, 2, 10, 10), torch.zeros(n, dtype=torch.long)) for n in (16, 1)]
        with pytest.raises(ModelError, match=r"single image is too little .*drop_last=True"):
            obo.fine_tune(model, parts, recipe=replace(QUICK, epochs=2), held_out=0)

    def test_a_recipe_survives_json(self) -> None:
        recipe = obo.Recipe(augment=("mirror",), patience=3, learning_rate=0.1)
        assert obo.Recipe.from_json(recipe.to_json()) == recipe

    @pytest.mark.parametrize(
        ("data", "options", "message"),
        [
            (images(10, 2, 10, 10), {"teacher": net()}, "9 images fill no batch of 16"),
            (images(40, 2, 10, 10), {}, "nothing to learn from"),
            (images(40, 3, 10, 10), {"teacher": net()}, "fails on an input"),
            ((images(40, 2, 10, 10), torch.full((40,), 3)), {}, "a label is 3.*3 classes"),
            (iter([images(16, 2, 10, 10)]), {"teacher": net()}, "only once"),
            (images(40, 2, 10, 10), {"teacher": net(), "resume": True}, "nothing to resume"),
            (
                images(40, 2, 10, 10), {"teacher": net(), "held_out": images(5, 3, 10, 10)},
                "3 channels",
            ),
        ],
    )  # fmt: skip
    def test_data(self, data: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(OneByOneError, match=message):
            obo.fine_tune(net(), data, recipe=QUICK, **options)

    def test_nothing_may_be_trained(self) -> None:
        with pytest.raises(TrainingError, match="no weight of the network may be trained"):
            obo.fine_tune(net().requires_grad_(False), labeled(40), recipe=QUICK)

    def test_a_teacher_of_another_kind(self) -> None:
        other = nn.Sequential(nn.Flatten(), nn.Linear(200, 7))
        with pytest.raises(TrainingError, match=r"shape \(\d+, 3\) and its teacher's \(\d+, 7\)"):
            obo.fine_tune(net(), labeled(40), teacher=other, recipe=QUICK)

    def test_checkpoints(self, tmp_path: Path) -> None:
        file, data = tmp_path / "c.safetensors", labeled(40)
        arguments: dict[str, Any] = {"checkpoint": file, "resume": True}
        with pytest.raises(TrainingError, match="there is no checkpoint"):
            obo.fine_tune(net(), data, recipe=QUICK, **arguments)
        obo.fine_tune(net(), data, recipe=QUICK, checkpoint=file)
        bigger = net()
        bigger[0], bigger[1] = nn.Conv2d(2, 12, 5, padding=2), nn.BatchNorm2d(12)
        with pytest.raises(TrainingError, match=r"of another network: 0\.weight is .*\(1 differ\)"):
            obo.fine_tune(bigger, data, recipe=QUICK, **arguments)
        with pytest.raises(TrainingError, match="made with epochs 2, now 3"):
            obo.fine_tune(net(), data, recipe=QUICK, epochs=3, **arguments)
        file.write_bytes(b"no")
        with pytest.raises(TrainingError, match="cannot be read"):
            obo.fine_tune(net(), data, recipe=QUICK, **arguments)

    def test_a_checkpoint_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(OneByOneError, match="cannot be written"):
            obo.fine_tune(net(), labeled(40), recipe=QUICK, checkpoint=tmp_path / "no" / "c")


class TestBatches:
    def test_an_epoch_has_each_image_once(self) -> None:
        from onebyone.distributed import World
        from onebyone.recovery.supply import Shuffled

        data = torch.arange(40.0).reshape(40, 1, 1, 1)
        supply = Shuffled(open_pool(data), 8, 8, seed=3)
        assert supply.held_out is not None
        held = set(supply.held_out.inputs.flatten().tolist())
        epochs = [[x.flatten().tolist() for x, _ in supply.epoch(e, 0, World())] for e in (0, 1, 0)]
        for epoch in epochs:
            assert sorted(x for batch in epoch for x in batch) == sorted(set(range(40)) - held)
        assert epochs[0] == epochs[2] != epochs[1]
        late = [x.flatten().tolist() for x, _ in supply.epoch(0, 2, World())]
        assert late == epochs[0][2:]

    def test_processes_share_each_batch(self) -> None:
        from onebyone.distributed import World
        from onebyone.recovery.supply import Shuffled

        supply = Shuffled(open_pool(torch.arange(48.0).reshape(48, 1, 1, 1)), 8, 0, seed=3)
        alone = [x.flatten().tolist() for x, _ in supply.epoch(0, 0, World())]
        parts = [
            [x.flatten().tolist() for x, _ in supply.epoch(0, 0, World(rank, 2))] for rank in (0, 1)
        ]
        assert [a + b for a, b in zip(*parts, strict=True)] == alone

    def test_folders_are_read_as_needed(self, tmp_path: Path) -> None:
        from PIL import Image

        for label in ("a", "b"):
            (tmp_path / label).mkdir()
            for i in range(20):
                shade = 40 if label == "a" else 200
                Image.new("RGB", (10, 10), (shade, shade, i)).save(tmp_path / label / f"{i}.png")
        (tmp_path / "a" / "broken.png").write_bytes(b"no picture")
        model = net()
        model[0] = nn.Conv2d(3, 12, 3, padding=1)
        preprocess = obo.Preprocess((3, 10, 10), (0.5,), (0.5,))
        tuned = obo.fine_tune(
            model, tmp_path, preprocess=preprocess, recipe=replace(QUICK, batch_size=8, epochs=8)
        )
        assert tuned.after is not None
        assert tuned.after.accuracy == 1.0

    def test_loaders(self) -> None:
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(labeled(64).inputs, labeled(64).labels), batch_size=16
        )
        tuned = obo.fine_tune(net(), loader, recipe=QUICK)
        assert tuned.images == 2 * 64
        assert tuned.before is None
        assert any("last weights are kept" in note for note in tuned.notes)


class TestAugmentation:
    def test_shifts_move_whole_pixels_and_mirrors_turn(self) -> None:
        x = torch.arange(2.0 * 3 * 28 * 28).reshape(2, 3, 28, 28)
        generator = torch.Generator().manual_seed(0)
        seen = set()
        for _ in range(40):
            y = augmented(x, ("shift",), generator)
            for before, after in zip(x, y, strict=True):
                found = [
                    (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)
                    if torch.equal(after[:, 4:-4, 4:-4], before[:, 4 + dy : 24 + dy, 4 + dx : 24 + dx])
                ]  # fmt: skip
                assert len(found) == 1
                seen.add(found[0])
        assert len(seen) > 15
        for after, before in zip(augmented(x, ("mirror",), generator), x, strict=True):
            assert torch.equal(after, before) or torch.equal(after, before.flip(-1))

    def test_small_images_do_not_move(self) -> None:
        x = images(2, 1, 8, 8)
        assert torch.equal(augmented(x, ("shift",), torch.Generator()), x)


class TestNormalization:
    def test_statistics_are_the_mean_over_the_batches(self) -> None:
        norm = nn.BatchNorm2d(3)
        nn.init.constant_(norm.running_mean, 7.0)  # type: ignore[arg-type]
        batches = [images(6, 3, 5, 5, seed=s) * (s + 1) for s in range(3)]
        reestimate(nn.Sequential(norm).eval(), nn.Sequential(nn.BatchNorm2d(3)).train(), batches)
        means = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
        variances = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
        torch.testing.assert_close(norm.running_mean, means)
        torch.testing.assert_close(norm.running_var, variances)
        assert norm.momentum == 0.1
        assert not norm.training

    def test_frozen_layers_keep_theirs(self) -> None:
        norm = nn.BatchNorm2d(3).eval()
        reestimate(
            nn.Sequential(norm), nn.Sequential(nn.BatchNorm2d(3)).eval(), [images(4, 3, 5, 5)]
        )
        assert torch.equal(norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("teaching", [True, False])
def test_networks_that_do_not_run_in_channels_last_are_trained_in_the_plain_format(
    teaching: bool,
) -> None:
    torch.manual_seed(0)
    model, inputs = Viewing(), images(40, 3, 8, 8)
    labels = torch.arange(40) % 5
    tuned = obo.fine_tune(
        model, inputs if teaching else (inputs, labels), teacher=Viewing() if teaching else None,
        recipe=obo.Recipe(batch_size=20, epochs=1), held_out=0,
    )  # fmt: skip
    assert not tuned.recipe.channels_last
    assert any("channels-last" in note for note in tuned.notes)
    assert not torch.equal(tuned.model.head.weight, model.head.weight)  # type: ignore[union-attr]
