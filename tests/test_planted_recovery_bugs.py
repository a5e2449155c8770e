"""Tests of the tests of recovery: each law catches a bug that is planted here, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import test_progressive
import test_recovery
import torch
from torch import Tensor, nn

from onebyone import merging
from onebyone.recovery import augmentation, objective, supply, training

Patch = pytest.MonkeyPatch
Law = Callable[[Patch, Path], object]


def _no_temperature(patch: Patch) -> None:
    whole = objective._divergence
    patch.setattr(objective, "_divergence", lambda q, p, t: whole(q, p, t) / t**2)


def _teacher_trains(patch: Patch) -> None:
    from onebyone.recovery import fine_tuning

    patch.setattr(fine_tuning, "_teacher", lambda model, recipe, example: model.train())


def _steps_draw_by_history(patch: Patch) -> None:
    patch.setattr(training.torch, "manual_seed", lambda seed: None)


def _no_momentum_saved(patch: Patch) -> None:
    patch.setattr(training, "optimizer_tensors", lambda optimizer: {})
    patch.setattr(training, "fill_optimizer", lambda optimizer, tensors: None)


def _last_is_best(patch: Patch) -> None:
    whole = training.Training.measure

    def measure(self: training.Training, loss: float | None) -> None:
        whole(self, loss)
        self.best = {k: t.clone() for k, t in self.average.module.state_dict().items()}

    patch.setattr(training.Training, "measure", measure)


def _part_of_the_epoch_twice(patch: Patch) -> None:
    whole = supply.Shuffled.epoch

    def epoch(self, number, first, world):
        batches = list(whole(self, number, 0, world))
        yield from (batches[:1] + batches[:-1])[first:]

    patch.setattr(supply.Shuffled, "epoch", epoch)


def _shift_per_batch(patch: Patch) -> None:
    def shifted(inputs: Tensor, axis: int, generator: torch.Generator) -> Tensor:
        return inputs.roll(1, axis) * 0.5 + inputs * 0.5

    patch.setattr(augmentation, "_shifted", shifted)


def _old_statistics(patch: Patch) -> None:
    from onebyone.recovery import normalization

    patch.setattr(
        normalization.nn.modules.batchnorm._BatchNorm, "reset_running_stats", lambda s: None
    )
    patch.setattr(test_recovery, "reestimate", lambda model, like, batches: None)


def _bias_lost(patch: Patch) -> None:
    whole = merging._merged

    def merged(layers: list[nn.Module], conv: object) -> nn.Module:
        made = whole(layers, conv)  # type: ignore[arg-type]
        nn.init.zeros_(made.bias)  # type: ignore[arg-type]
        return made

    patch.setattr(merging, "_merged", merged)


BUGS: dict[str, tuple[Callable[[Patch], object], Law]] = {
    "the soft targets' part lacks T²": (
        _no_temperature, lambda p, _: test_recovery.TestLearning().test_the_loss_is_the_formula()
    ),
    "the teacher is trained on": (
        _teacher_trains,
        lambda p, _: test_recovery.TestKeeping().test_the_model_and_random_numbers_are_untouched(),
    ),
    "random numbers go on from where they were": (
        _steps_draw_by_history, lambda p, d: test_recovery.TestEnding().test_resumed_to_the_bit(d, p)
    ),
    "the momentum is not in the checkpoint": (
        _no_momentum_saved, lambda p, d: test_recovery.TestEnding().test_resumed_to_the_bit(d, p)
    ),
    "the last weights are kept": (
        _last_is_best,
        lambda p, _: test_recovery.TestKeeping().test_the_best_is_kept_and_not_the_last(),
    ),
    "a batch comes twice and another never": (
        _part_of_the_epoch_twice,
        lambda p, _: test_recovery.TestBatches().test_an_epoch_has_each_image_once(),
    ),
    "images are blurred, not shifted": (
        _shift_per_batch,
        lambda p, _: test_recovery.TestAugmentation().test_shifts_move_whole_pixels_and_mirrors_turn(),
    ),
    "statistics stay as they were": (
        _old_statistics,
        lambda p, _: test_recovery.TestNormalization().test_statistics_are_the_mean_over_the_batches(),
    ),
    "merging forgets the bias": (
        _bias_lost, lambda p, _: test_progressive.check_merged("plain")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
def test_the_law_holds_and_fails_with_the_bug(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, law = BUGS[name]
    (tmp_path / "well").mkdir()
    (tmp_path / "ill").mkdir()
    with monkeypatch.context() as patch:
        law(patch, tmp_path / "well")
    with monkeypatch.context() as patch:
        plant(patch)
        with pytest.raises((AssertionError, ValueError, RuntimeError)):
            law(patch, tmp_path / "ill")
