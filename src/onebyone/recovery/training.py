"""The training loop: steps, measurements on the way, the best so far, checkpoints."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from onebyone.data import Images
from onebyone.distributed import World, losses_told
from onebyone.errors import TrainingError
from onebyone.recovery.augmentation import augmented
from onebyone.recovery.checkpoints import (
    Checkpoint,
    fill_optimizer,
    optimizer_tensors,
    read_checkpoint,
    write_checkpoint,
)
from onebyone.recovery.interrupts import undisturbed
from onebyone.recovery.normalization import reestimate
from onebyone.recovery.objective import Objective, floats
from onebyone.recovery.recipe import Recipe
from onebyone.recovery.scoring import Score, holds_up, score
from onebyone.recovery.status import Shown, Status
from onebyone.recovery.supply import Supply
from onebyone.recovery.updating import averager_of, optimizer_of
from onebyone.running import call, suited
from onebyone.sensing import copying
from onebyone.tree import evaluating, tensor_state

CHECKPOINT_SECONDS = 300.0
TELL_SECONDS = 0.25
FAR = 0.5  # from a checkpoint's best weights: those of another network are further


@dataclass(frozen=True)
class Measured:
    """A measurement on the way: after `epoch` epochs and `images` images of training.

    `loss` is the mean training loss since the one before, None at the start; `score` is of the
    averaged weights on the held-out images, None where there are none.
    """

    epoch: float
    images: int
    loss: float | None
    score: Score | None
    seconds: float


class Training:
    """One training under way, and all that a checkpoint of it holds.

    `student` is changed; what is measured and kept is `average`, its exponential moving average
    (Polyak & Juditsky 1992) with a decay that begins low: min(decay, (1 + n) / (10 + n)). `calm` are
    batches of training images, unchanged, for the statistics of its BatchNorm layers; with `copies`, what
    the network overwrites that its gradients need is copied.
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        recipe: Recipe,
        supply: Supply,
        held_out: Images | None,
        calm: Sequence[Tensor],
        precision: torch.dtype,
        copies: bool,
        world: World,
    ) -> None:
        self.student, self.objective, self.recipe = student, objective, recipe
        self.supply, self.held_out, self.world = supply, held_out, world
        self.calm, self.precision, self.copies = calm, precision, copies
        self.optimizer = optimizer_of(student, recipe)
        self.average = AveragedModel(student, multi_avg_fn=averager_of(recipe), use_buffers=True)
        self.steps = max(1, round(recipe.epochs * supply.steps))
        self.start = _fingerprint(student)  # tells the network that the training began with
        self.step, self.images, self.waited, self.kept = 0, 0, 0, 0
        self.total, self.count = 0.0, 0  # of the losses since the last measurement
        self.measured: list[Measured] = []
        self.best: dict[str, Tensor] = {}
        self.began = time.perf_counter()
        self.spent = 0.0  # seconds before this process went on from a checkpoint
        self.whole = False  # between two steps, so that a checkpoint is of one moment
        self._shown = Shown()

    @property
    def seconds(self) -> float:
        """Of training so far, over all processes that worked at it one after the other."""
        return self.spent + time.perf_counter() - self.began

    def run(self, checkpoint: Path | None, tell: Callable[[Status], None]) -> str | None:
        """Train to the end; the reason where it stopped before. TrainingError where it diverged."""
        if not self.measured:
            self.measure(None)
        self.whole = True
        every = max(1, round(self.recipe.measure_every * self.supply.steps))
        saved, told = time.perf_counter(), 0.0
        for inputs, labels in self._batches():
            with undisturbed():
                self.whole = False
                value = self._step(inputs, labels)
                self.total, self.count = self.total + value, self.count + 1
                self.step += 1
                measuring = self.step % every == 0 or self.step == self.steps
                self.whole = not measuring
            now = time.perf_counter()
            if now - told > TELL_SECONDS or self.step == self.steps:
                told = now
                tell(self._status())
            if measuring:
                self.measure(self.total / self.count)
                self.total, self.count, self.whole = 0.0, 0, True
            if checkpoint and (measuring or now - saved > CHECKPOINT_SECONDS):
                self.save(checkpoint)
                saved = now
            if measuring and self.recipe.patience and self.waited >= self.recipe.patience:
                return f"no better measurement in the last {self.waited}"
        return None

    def _batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The batches that are left, over the epochs."""
        while self.step < self.steps:
            number, first = divmod(self.step, self.supply.steps)
            before = self.step
            for batch in self.supply.epoch(number, first, self.world):
                yield batch
                if self.step >= self.steps:
                    return
            if self.step == before:
                raise TrainingError(f"the data gave no batch in epoch {number + 1}")

    def _step(self, inputs: Tensor, labels: Tensor | None) -> float:
        """One step; the loss."""
        recipe = self.recipe
        # Random numbers depend on the step alone, so that a resumed training draws the same.
        seed = hash((recipe.seed, self.step, self.world.rank)) % (1 << 62)
        torch.manual_seed(seed)
        changed = augmented(inputs, recipe.augment, torch.Generator().manual_seed(seed))
        ready = suited(self.student, changed)
        if recipe.channels_last and ready.ndim == 4:
            ready = ready.contiguous(memory_format=torch.channels_last)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate_at(self.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        with copying(self.copies):
            with _precision(ready.device, self.precision):
                wanted = None if labels is None else labels.to(ready.device)
                loss = self.objective.loss(ready, wanted)
            with losses_told():
                loss.value.backward()
        self._check(loss.value, self._clip())
        self.optimizer.step()
        self.average.update_parameters(self.student)
        self.images += len(inputs) * self.world.size
        value = float(loss.value.detach())
        self._shown.add(value, None if loss.right is None else int(loss.right), len(inputs))
        return value

    def _clip(self) -> Tensor:
        """Bound the norm of the gradient; the norm before."""
        most = self.recipe.clip or torch.inf
        parameters = [p for p in self.student.parameters() if p.grad is not None]
        return nn.utils.clip_grad_norm_(parameters, most)

    def _check(self, loss: Tensor, norm: Tensor) -> None:
        # Over several processes the gradients are the same, so all of them see it.
        if not (loss.isfinite() and norm.isfinite()):
            what = f"the loss or its gradient became {loss.item():g} (norm {float(norm):g})"
            raise self._diverged(what, self.step + 1)

    def _diverged(self, what: str, step: int) -> TrainingError:
        """What became no number, and at which step."""
        rate = self.recipe.rate_at(step - 1, self.steps)
        other = ", or precision float32" if self.precision != torch.float32 else ""
        return TrainingError(
            f"{what} at step {step:,} of {self.steps:,} (epoch {(step - 1) / self.supply.steps:.2f}), "
            f"learning rate {rate:g}: give a lower learning rate{other}"
        )

    def _check_whole(self, network: nn.Module, found: Score | None) -> None:
        """Raise TrainingError where the last steps have made of the outputs what is no number."""
        if found is not None:
            finite, said = isfinite(found.loss) or not _finite(self.measured[0]), "held-out images"
        else:
            finite, said = self._gives_numbers(network), "training images"
        if not finite:
            raise self._diverged(
                f"the loss on {said} was no finite number after the update", self.step
            )

    def _gives_numbers(self, network: nn.Module) -> bool:
        """Whether the outputs on some training images are finite, in all processes."""
        with evaluating(network), torch.inference_mode():
            given = floats(call(network, suited(network, self.calm[0])))
        finite = torch.tensor([float(all(bool(t.isfinite().all()) for t in given))])
        self.world.least(finite)
        return bool(finite)

    def measure(self, loss: float | None) -> None:
        """Score the averaged weights, and keep them where they hold up beside the best so far.

        The weights before the training stay unless later ones are better on the held-out images.
        """
        network = self.average.module
        if self.step:
            reestimate(network, self.student, self.calm)
        self._agree()
        found = None
        if self.held_out is not None:
            found = score(network, self.objective.teacher, self.held_out, self.world)
        if self.step:
            self._check_whole(network, found)
        earlier = [m.score for m in self.measured if m.score]
        epoch = self.step / self.supply.steps
        self.measured.append(Measured(epoch, self.images, loss, found, self.seconds))
        better = found is None or all(found.value > other.value for other in earlier)
        self.waited = 0 if better else self.waited + 1
        if found is None or holds_up(found, earlier):
            self.best = {k: t.detach().clone() for k, t in tensor_state(network).items()}
            self.kept = len(self.measured) - 1

    def _agree(self) -> None:
        """The buffers of all processes (BatchNorm's statistics) become their mean."""
        if self.world.size > 1:
            for buffer in (*self.student.buffers(), *self.average.module.buffers()):
                if buffer.is_floating_point():
                    self.world.add(buffer)
                    buffer.div_(self.world.size)

    def _status(self) -> Status:
        shown, left = self._shown, self.steps - self.step
        seconds = max(1e-9, time.perf_counter() - shown.began)
        rate = shown.steps / seconds
        return Status(
            self.step / self.supply.steps, self.steps / self.supply.steps, shown.loss,
            shown.accuracy, shown.images * self.world.size / seconds, left / rate if rate else 0.0,
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write a checkpoint; only the leading process does."""
        if not self.world.leads:
            return
        parts = {
            "student": tensor_state(self.student), "average": tensor_state(self.average),
            "best": self.best, "optimizer": optimizer_tensors(self.optimizer),
        }  # fmt: skip
        tensors = {f"{part}/{k}": t for part, held in parts.items() for k, t in held.items()}
        about = {
            "recipe": self.recipe.to_json(), "step": self.step, "steps": self.steps,
            "images": self.images, "waited": self.waited, "kept": self.kept,
            "seconds": self.seconds, "start": self.start, "total": self.total, "count": self.count,
            "precision": str(self.precision), "world": self.world.size,
            "measured": [asdict(m) for m in self.measured],
        }  # fmt: skip
        write_checkpoint(path, Checkpoint(tensors, about))

    def resume(self, path: Path) -> None:
        """Go on where a checkpoint was written; TrainingError where it is of another training."""
        found = read_checkpoint(path)
        about = found.about
        _check_same(found, self, path)
        self.student.load_state_dict(self.student.state_dict() | found.part("student"))
        self.average.load_state_dict(self.average.state_dict() | found.part("average"))
        fill_optimizer(self.optimizer, found.part("optimizer"))
        self.best = found.part("best")
        self.step, self.images = about["step"], about["images"]
        self.waited, self.kept = about["waited"], about["kept"]
        self.spent, self.start = about["seconds"], about.get("start", self.start)
        self.total, self.count = about.get("total", 0.0), about.get("count", 0)
        self.precision = getattr(torch, about["precision"].removeprefix("torch."))
        self.measured = [_measured(m) for m in about["measured"]]


def share(student: nn.Module, world: World) -> Callable[[Tensor], object]:
    """What to call for a pass whose gradients become the mean over all processes."""
    if world.size == 1:
        return student
    device = next(student.parameters()).device
    # BatchNorm's statistics are each process's own until they are measured; the name of that option
    # changed in PyTorch 2.13.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    with losses_told():
        wrapped = DistributedDataParallel(
            student, device_ids=[device.index] if device.type == "cuda" else None, **options
        )

    def run(inputs: Tensor) -> object:
        with losses_told():
            return wrapped(inputs)

    return run


@contextmanager
def _precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Convolutions and matrix products in this type."""
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def _check_same(found: Checkpoint, training: Training, path: Path) -> None:
    own = {k: tuple(t.shape) for k, t in tensor_state(training.student).items()}
    other = {k: tuple(t.shape) for k, t in found.part("student").items()}
    if own != other:
        names = [n for n in {**own, **other} if own.get(n) != other.get(n)]
        raise TrainingError(
            f"the checkpoint {path} is of another network: {names[0]} is "
            f"{other.get(names[0], 'absent')} there and {own.get(names[0], 'absent')} here "
            f"({len(names)} differ); start without --resume (resume=False)"
        )
    start = found.about.get("start", training.start)
    if start != training.start and _away(training.student, found.part("best")) > FAR:
        raise TrainingError(
            f"the checkpoint {path} is of a network of the same shapes with other weights: give the one "
            "that its training began with, or start without --resume (resume=False)"
        )
    mine, theirs = training.recipe.to_json(), found.about["recipe"]
    differ = [f"{k} {theirs.get(k)!r}, now {mine[k]!r}" for k in mine if theirs.get(k) != mine[k]]
    if found.about["steps"] != training.steps:
        differ.append(f"{found.about['steps']:,} steps in all, now {training.steps:,}")
    if differ:
        raise TrainingError(
            f"the checkpoint {path} was made with {'; '.join(differ)}: give the same, or start "
            "without --resume (resume=False)"
        )


def _fingerprint(model: nn.Module) -> str:
    """A hash of all weights and buffers."""
    hashed = sha256()
    for name, tensor in sorted(tensor_state(model).items()):
        values = tensor.detach().cpu().contiguous()
        hashed.update(name.encode() + values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def _away(model: nn.Module, best: dict[str, Tensor]) -> float:
    """How far the weights are from others of their shapes, in parts of those: what a training that was
    broken off has left in a folder is near its best so far."""
    gap = whole = 0.0
    for name, parameter in model.named_parameters():
        other = best[name].to(parameter)
        gap += float((parameter.detach() - other).double().square().sum())
        whole += float(other.double().square().sum())
    return sqrt(gap / max(whole, torch.finfo(torch.float64).tiny))


def _finite(measured: Measured) -> bool:
    return measured.score is None or isfinite(measured.score.loss)


def _measured(values: dict[str, Any]) -> Measured:
    found = values["score"]
    made: dict[str, Any] = {**values, "score": Score(**found) if found else None}
    return Measured(**made)
