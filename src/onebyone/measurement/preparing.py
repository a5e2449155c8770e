"""A network and its inputs as they are to be timed: mode, type, layout, place, batch; then given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter, tree_map

from onebyone.errors import DataError, ModelError, is_whole, line_of
from onebyone.measurement.timing import cpu_threads
from onebyone.running import call, wants_gradients
from onebyone.tree import (
    check_shapes,
    deep_copy,
    evaluating,
    guarded,
    kept,
    random_state,
    tensors_in,
    to_training,
    uncompiled,
)

GRADIENTS = "timed with gradients kept, since the network takes some in its own forward"
COMPILATIONS = 256  # networks of one class that torch.compile may meet in a process


@dataclass(frozen=True)
class Setting:
    """How networks are to be run; None leaves the example or the network as it is."""

    training: bool = False
    threads: int = 1
    batch: int | None = None
    dtype: torch.dtype | None = None
    channels_last: bool = False
    compiled: bool = False
    device: torch.device | str | None = None


@dataclass(frozen=True)
class Ready:
    """A network in the right mode, type, layout and place, and inputs that suit it.

    `plain` is the network without what torch.compile wraps around it. `notes` has a sentence where the
    network was found to take gradients in its own forward: it runs with gradients then. `afresh` makes
    the inputs again.
    """

    model: nn.Module
    plain: nn.Module
    inputs: tuple[Any, ...]
    afresh: Callable[[], tuple[Any, ...]]
    notes: list[str] = field(default_factory=list)
    versions: list[int] = field(init=False, default_factory=list)  # counts of writes to the inputs

    def __post_init__(self) -> None:
        self.versions[:] = [t._version for t in _tensors(self.inputs)]

    @property
    def weight(self) -> Tensor:
        """What tells the device and the type: the first floating-point parameter, else the input."""
        tensors = (*self.plain.parameters(), *tensors_in(self.inputs))
        return next((t for t in tensors if t.is_floating_point()), tensors[0])

    def infer(self) -> object:
        """One forward pass."""
        if not self.notes:
            try:
                return call(self.model, *self.inputs)
            except ModelError as error:
                if not wants_gradients(error):
                    raise
        with torch.inference_mode(False), torch.enable_grad():
            output = call(self.model, *self.inputs)
        if not self.notes:
            self.notes.append(GRADIENTS)
        return output

    def train(self) -> None:
        """Forward, the sum of all floating-point outputs, backward."""
        backward(total(self.infer()))

    def renew(self) -> None:
        """Before a pass, outside the clock: no gradients, and inputs as given where it wrote to them."""
        if torch.is_grad_enabled():
            self.forget_gradients()
        own = _tensors(self.inputs)
        if self.versions == [t._version for t in own]:
            return
        with torch.no_grad():
            for tensor, new in zip(own, _tensors(self.afresh()), strict=True):
                tensor.detach_().copy_(new)
        self.versions[:] = [t._version for t in own]

    def forget_gradients(self) -> None:
        """As an optimizer does after each step."""
        self.plain.zero_grad(set_to_none=True)


@contextmanager
def prepared(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    setting: Setting,
    *,
    values: bool = True,
) -> Iterator[Ready]:
    """The network and its inputs as the setting asks, in the right mode; all is given back.

    Random numbers start from a fixed seed inside. Gradients are on for training only. What
    torch.compile has wrapped is taken out: the setting says whether it is compiled. values: something
    will be computed, so weights on the meta device are refused.
    """
    training = setting.training
    model = uncompiled(model)
    _check_weights(model, values)
    with ExitStack() as stack:
        stack.enter_context(random_state(0))
        stack.enter_context(guarded(model))
        stack.enter_context(cpu_threads(setting.threads))
        with torch.inference_mode(False), torch.no_grad():
            plain = _fitted(model, setting, stack, values)
            _check_weights(plain, values)
            given = example if isinstance(example, tuple) else (example,)
            given = _repeated(given, setting.batch)
            inputs = _suited(given, plain, setting)
        stack.enter_context(torch.inference_mode(not training))
        if training:
            stack.enter_context(torch.enable_grad())
            to_training(plain)
        else:
            stack.enter_context(evaluating(plain))
        ready = Ready(plain, plain, inputs, lambda: _suited(given, plain, setting))
        if setting.compiled:
            # After 8 networks of one class torch.compile would leave the next ones as they are.
            limits: Any = torch._dynamo.config.patch(
                recompile_limit=COMPILATIONS, fail_on_recompile_limit_hit=True
            )
            stack.enter_context(limits)
            ready = _compiled(ready, training)
        yield ready


def _check_weights(model: nn.Module, values: bool) -> None:
    """Raise ModelError for weights that nothing can be computed with yet."""
    check_shapes(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta and values:
            raise ModelError(
                f"{name!r} is on the meta device, where nothing is computed and no time can be "
                "measured: load the network with its weights"
            )


def _fitted(model: nn.Module, setting: Setting, stack: ExitStack, values: bool) -> nn.Module:
    """A copy as the setting asks; the model itself, to be given back, where none can be made or need be."""
    if not isinstance(setting.dtype, torch.dtype | None):
        raise ModelError(
            f"dtype={setting.dtype!r} is no type: give one of torch's, as torch.float16"
        )
    try:
        given = setting.device
        device = None if given is None else torch.empty(0, device=given).device  # with its number
        moves = setting.channels_last or _moves(model, device, setting.dtype)
        if not (values or setting.training or moves):
            return model  # it will not run
        try:
            own = deep_copy(model)
        except ModelError:
            if setting.training or moves:
                raise
            stack.enter_context(kept(model))
            return model
        own = own.to(device=device, dtype=setting.dtype) if moves else own
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"the network cannot be brought to {setting.device or 'its device'} in "
            f"{setting.dtype or 'its type'} ({type(error).__name__}: {line_of(error)}): choose others"
        ) from error
    if setting.channels_last:
        to_channels_last(own)
    return own


def to_channels_last(model: nn.Module) -> None:
    """Weights and buffers of four and of five axes, in place; Module.to refuses networks that have both."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = _channels_last(tensor.data)


def _moves(model: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> bool:
    """Whether a weight would have to change its place or its type."""
    return any(
        (device is not None and t.device != device)
        or (dtype is not None and t.is_floating_point() and t.dtype != dtype)
        for t in (*model.parameters(), *model.buffers())
    )


def _channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = formats.get(tensor.ndim)
    return tensor if layout is None else tensor.contiguous(memory_format=layout)


def is_channels_last(model: nn.Module) -> bool:
    """Whether a weight lies so that could lie otherwise."""
    return any(
        p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in model.parameters()
    )


def batch_of(inputs: tuple[Any, ...]) -> int:
    """The length of the first axis of the first input that has one."""
    return next((len(t) for t in tree_iter(inputs) if isinstance(t, Tensor) and t.ndim), 1)


def _repeated(inputs: tuple[Any, ...], batch: int | None) -> tuple[Any, ...]:
    if batch is None:
        return inputs
    if inputs and not isinstance(inputs[0], Tensor):
        raise DataError(
            f"a batch of {batch} cannot be made: the network's first input is a "
            f"{type(inputs[0]).__name__}, not a tensor; give an example of so many"
        )
    given = batch_of(inputs)
    if not is_whole(batch) or batch < 1 or given < 1:
        raise DataError(
            f"a batch of {batch!r} cannot be made of an example of {given}: both must be whole numbers, 1 "
            "or more"
        )

    def fit(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or len(value) != given:
            return value
        times = ceil(batch / given)
        return value.repeat(times, *[1] * (value.ndim - 1))[:batch].contiguous()

    return tree_map(fit, inputs)


def _suited(inputs: tuple[Any, ...], model: nn.Module, setting: Setting) -> tuple[Any, ...]:
    """Copies of the inputs in the network's place and type, whole-number ones in their own type."""
    weights = list(model.parameters())
    first = next((p for p in weights if p.is_floating_point()), None)
    device = weights[0].device if weights else setting.device
    dtype = setting.dtype if first is None else first.dtype

    def fit(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        own = dtype if value.is_floating_point() else None
        value = value.detach().to(device=device, dtype=own, copy=True)
        return _channels_last(value) if setting.channels_last else value

    # What was made in inference mode could not be kept for a backward pass.
    with torch.inference_mode(False), torch.no_grad():
        return tree_map(fit, inputs)


def _tensors(inputs: tuple[Any, ...]) -> list[Tensor]:
    return [value for value in tree_iter(inputs) if isinstance(value, Tensor)]


def _compiled(ready: Ready, training: bool) -> Ready:
    """What torch.compile makes of the network, after one run, which compiles it."""
    options: dict[str, Any] = {} if training else {"options": {"freezing": True}}
    model: Any = torch.compile(ready.plain, dynamic=False, **options)
    made = replace(ready, model=model, notes=[])
    run: Callable[[], object] = made.train if training else made.infer
    ready.infer()  # so that a network that fails is told from one that cannot be compiled
    try:
        run()
    except Exception as error:
        # Advice to PyTorch's developers follows after an empty line.
        said = " ".join(str(error.__cause__ or error).partition("\n\n")[0].split())
        raise ModelError(
            f"torch.compile cannot compile the network here ({said}): time it without"
        ) from error
    return made


def total(outputs: object) -> Tensor:
    """The sum of all floating-point outputs that depend on a weight; complex ones are two numbers each."""
    found = [t for t in tensors_in(outputs) if t.requires_grad]
    sums = [(torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).sum() for t in found]
    if not sums:
        raise ModelError(
            "no output of the network has a gradient, so no training step can be measured: parameters "
            "must have requires_grad, and an output must depend on them"
        )
    return torch.stack([s.to(sums[0].dtype) for s in sums]).sum() if len(sums) > 1 else sums[0]


def backward(loss: Tensor, advice: str = "time inference only") -> None:
    """The backward pass; ModelError where it fails, with the advice."""
    try:
        loss.backward()
    except (ModelError, MemoryError):
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {line_of(error).partition(': [')[0]}"
        raise ModelError(f"the network's backward pass fails ({why}): {advice}") from error
