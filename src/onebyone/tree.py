"""Module trees: walk them, replace modules by identity, borrow their state and give it back."""

from __future__ import annotations

import copy
import functools
import gc
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from onebyone.closures import Functions
from onebyone.errors import ModelError

PLAIN = (nn.Parameter, Tensor)
LAZY = (nn.UninitializedParameter, nn.UninitializedBuffer)


def check_networks(**given: Any) -> None:
    """Raise ModelError, by the argument's name, for what is no network."""
    for name, model in given.items():
        if isinstance(model, nn.Module):
            continue
        kind, advice = "None" if model is None else type(model).__name__, ""
        if isinstance(getattr(model, "model", None), nn.Module):
            advice = ": give its .model"
        elif isinstance(model, type):
            kind, advice = f"the class {model.__name__}", ": give an instance of it"
        elif isinstance(model, Mapping):
            advice = ": build the network and give it these weights with load_state_dict"
        elif isinstance(model, str):
            advice = f": give onebyone.load({model!r}).model"
        raise ModelError(f"{name}= is {kind}, and a network (torch.nn.Module) is expected{advice}")


def check_weights(**given: Any) -> None:
    """`check_networks`, and ModelError for networks whose weights hold no values, or have no shape yet."""
    check_networks(**given)
    for name, model in given.items():
        if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
            raise ModelError(
                f"{name}= has tensors on the meta device, which hold no values: give it its weights first "
                "(load_state_dict with assign=True)"
            )
        check_shapes(model)


def without_shape(model: nn.Module) -> Tensor | None:
    """A weight that gets its shape from the first input (a lazy layer's), if there is one."""
    lazy = (t for t in held_tensors(model) if type(t) not in PLAIN and isinstance(t, LAZY))
    return next(lazy, None)


def check_shapes(model: nn.Module) -> None:
    """Raise ModelError for weights that have no shape yet."""
    tensor = without_shape(model)
    if tensor is not None:
        named = (*model.named_parameters(), *model.named_buffers())
        name = next(name for name, other in named if other is tensor)
        raise ModelError(
            f"the parameter {name!r} has no shape yet (a lazy layer): run the network once on an "
            "input before"
        )


def uncompiled(model: nn.Module) -> nn.Module:
    """What torch.compile has wrapped; the model itself where it has not."""
    return getattr(model, "_orig_mod", model)


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Every module once, by its first qualified name; the root's name is the empty string.

    As `named_modules` has them, in a third of the time.
    """
    found: dict[str, nn.Module] = {}
    _visit("", model, found, set())
    return found


def _visit(name: str, module: nn.Module, found: dict[str, nn.Module], seen: set[int]) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    found[name] = module
    for key, child in module._modules.items():
        if child is not None:
            _visit(f"{name}.{key}" if name else key, child, found, seen)


def replace_modules(model: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    """Put new modules in place of old ones wherever the old ones stand; the root may be one.

    Names are those of `modules_by_name`. The tree is changed in place, and its root returned.
    """
    old = modules_by_name(model)
    missing = [name for name in new if name not in old]
    if missing:
        raise KeyError(f"the model has no module {missing[0]!r}")
    by_id = {id(old[name]): module for name, module in new.items()}
    if id(model) in by_id:
        return by_id[id(model)]
    for parent in list(old.values()):
        for key, child in list(parent._modules.items()):
            if child is not None and id(child) in by_id:
                parent._modules[key] = by_id[id(child)]
    return model


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors inside nested tuples, lists, dicts and dataclass-like outputs, in order."""
    yield from _tensors_in(value, set())


def _tensors_in(value: object, around: set[int]) -> Iterator[Tensor]:
    """`around` are the containers that a value lies in: one that holds itself is not entered twice."""
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in around or isinstance(value, nn.Module):
        return
    if isinstance(value, Mapping):
        items = list(value.values())
    elif isinstance(value, list | tuple):
        items = list(value)
    else:
        items = list(getattr(value, "__dict__", {}).values())
    for item in items:
        yield from _tensors_in(item, around | {id(value)})


def held_tensors(model: nn.Module) -> Iterator[Tensor]:
    """The parameters and buffers of every module; tied ones as often as they are held."""
    for module in modules_by_name(model).values():
        for held in (module._parameters, module._buffers):
            for tensor in held.values():
                if tensor is not None:
                    yield tensor


def shallow_copy(model: nn.Module) -> nn.Module:
    """A copy of the module tree that shares every parameter and buffer with the model."""
    memo: dict[int, object] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return deep_copy(model, memo)


def deep_copy(model: nn.Module, memo: dict[int, object] | None = None) -> nn.Module:
    """A copy that shares nothing (but what `memo` names); raises ModelError where none can be made."""
    made = {id(t): t.detach().clone() for t in _made_by_hooks(model)}
    memo = made | (memo or {})
    functions = Functions(model, memo)
    try:
        functions.note_all(model)
        with torch.no_grad():  # else what TorchScript copies is no leaf
            copied = copy.deepcopy(model, memo)
        if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
            for given, own in zip(model.parameters(), copied.parameters(), strict=True):
                own.requires_grad_(given.requires_grad)  # what TorchScript copies loses it
        functions.bind()
        return copied
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}): models that "
            "hold computed tensors or open files as attributes must drop them first"
        ) from error


def _made_by_hooks(model: nn.Module) -> Iterator[Tensor]:
    """Weights that hooks compute from others before each pass, as weight_norm once did: no leaves."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            made = vars(module).get(str(getattr(hook, "name", "")))
            if isinstance(made, Tensor):
                yield made


def tensor_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict: a module's extra state may be anything, and is not of the weights."""
    return {k: t for k, t in model.state_dict().items() if isinstance(t, Tensor)}


def to_training(model: nn.Module) -> None:
    """Train mode for every module; ModelError for a network that has none."""
    try:
        model.train()
    except NotImplementedError as error:
        raise ModelError(
            "the module of an exported program has no train mode: give the network that it was made from"
        ) from error


def to_evaluation(model: nn.Module) -> None:
    """Eval mode for every module; an exported program's module has one mode, and stays in it."""
    with suppress(NotImplementedError):
        model.eval()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for every module; each gets its own mode back."""
    modes = [
        (m, m.training) for m in model.modules() if hasattr(m, "training")
    ]  # frozen ones have none
    to_evaluation(model)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient; each gets its own flag back. ModelError where none can be set."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    if any(p.is_inference() for p, _ in flags):
        raise ModelError(
            "the network's weights were made under torch.inference_mode(), where nothing can take "
            "gradients from them: build it outside, or give copy.deepcopy of it made outside"
        )
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Random numbers of PyTorch, Python and NumPy go on outside as if nothing had been drawn."""
    others = _others()
    try:
        # All of them by name: PyTorch warns where there are several and none is named.
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            yield
    finally:
        _set_others(others)


def random_numbers() -> tuple[Any, ...]:
    """Where the random numbers of PyTorch, Python and NumPy are, for `draw_from`."""
    devices = [torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())]
    return torch.get_rng_state(), devices, _others()


def draw_from(state: tuple[Any, ...]) -> None:
    """Go on with random numbers from there: two networks that draw some get the same ones."""
    own, devices, others = state
    torch.set_rng_state(own)
    for index, device in enumerate(devices):
        torch.cuda.set_rng_state(device, index)
    _set_others(others)


def _others() -> tuple[Any, Any]:
    """Where those of Python and NumPy are."""
    numpy = sys.modules.get("numpy")
    return random.getstate(), None if numpy is None else numpy.random.get_state()


def _set_others(state: tuple[Any, Any]) -> None:
    python, arrays = state
    random.setstate(python)
    if arrays is not None:
        sys.modules["numpy"].random.set_state(arrays)


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Attributes, buffers and gradients of a model that no copy can be made of, given back.

    The values of weights are not looked at: a pass does not change them.
    """
    parts = ("_parameters", "_buffers", "_modules")
    modules = [
        (m, dict(vars(m)), [dict(getattr(m, p)) for p in parts])
        for m in model.modules()
        if not isinstance(m, torch.jit.ScriptModule)  # their parts are not Python's
    ]
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    try:
        yield
    finally:
        for module, attributes, registered in modules:
            vars(module).clear()
            vars(module).update(attributes)
            for part, entries in zip(parts, registered, strict=True):
                getattr(module, part).clear()
                getattr(module, part).update(entries)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def guarded(model: nn.Module) -> Iterator[None]:
    """`kept`, where running a copy may run the model itself: by a forward that an instance holds."""
    own = any(
        "forward" in vars(m) and not isinstance(m, torch.jit.ScriptModule)
        for m in modules_by_name(model).values()
    )
    with kept(model) if own else nullcontext():
        yield


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection inside: one looks at every object of the process, which may take longer.

    For what makes many objects and keeps no memory.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@contextmanager
def random_state(seed: int) -> Iterator[torch.Generator]:
    """Global random numbers start from `seed` inside and go on outside as if nothing had been drawn."""
    with random_numbers_kept():
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


def out_of_inference(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that keeps tensors: the inference mode of a network's own forward is off inside it."""

    @functools.wraps(hook)
    def outside(*given: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return hook(*given)
        with torch.inference_mode(False), torch.no_grad():
            return hook(*given)

    return outside


@contextmanager
def hooked(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Take hooks off again; append the handles inside."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
