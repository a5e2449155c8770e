"""A block of plain layers → the PyTorch code that builds it, with nothing of onebyone in it."""

from __future__ import annotations

from typing import Any

from torch import nn

from onebyone.chains import Block, Parallel, Residual
from onebyone.windows import shape_text

PARALLEL = '''

class Parallel(nn.Sequential):
    """Branches that read the same input; their channels are concatenated."""

    def forward(self, x):
        return torch.cat([branch(x) for branch in self], 1)
'''
RESIDUAL = '''

class Residual(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, x):
        return x + super().forward(x)
'''


def source(block: Block) -> str:
    """Python code that imports torch alone and leaves a block like this one in the variable `block`.

    Its layers have the same names, so the weights of one can be loaded into the other. Raises TypeError
    for a layer of a kind that no block has.

    >>> from onebyone.blocks import Direct
    >>> print(source(Direct("3x8x8", "16x8x8")))
    from torch import nn
    <BLANKLINE>
    # 3×8×8 → 16×8×8
    block = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
    )
    <BLANKLINE>
    """
    shortcut = isinstance(block, Residual) and block.shortcut
    parallel = any(isinstance(m, Parallel) for m in block.modules())
    needed = (PARALLEL if parallel else "") + (RESIDUAL if shortcut else "")
    head = ("import torch\n" if parallel else "") + f"from torch import nn\n{needed}\n"
    gap = "\n" if needed else ""
    shapes = f"# {shape_text(block.input_shape)} → {shape_text(block.output_shape)}"
    built = _built(block, "", "Residual" if shortcut else "nn.Sequential")
    return f"{head}{gap}{shapes}\nblock = {built}\n"


def _built(layer: nn.Module, indent: str, kind: str = "nn.Sequential") -> str:
    """The expression that makes one layer, the lines after the first one indented."""
    if isinstance(layer, nn.Sequential):
        kind = "Parallel" if isinstance(layer, Parallel) else kind
        inner = f"{indent}    "
        items = "".join(f"{inner}{_built(item, inner)},\n" for item in layer)
        return f"{kind}(\n{items}{indent})"
    name = type(layer).__name__
    return f"nn.{name}({', '.join(_arguments(layer))})"


def _arguments(layer: nn.Module) -> list[str]:
    """What the layer's constructor is given, defaults left out."""
    if isinstance(layer, nn.Conv2d):
        given = [str(layer.in_channels), str(layer.out_channels), _short(layer.kernel_size)]
        given += _named(stride=layer.stride, padding=layer.padding)
        given += [f"groups={layer.groups}"] if layer.groups != 1 else []
        return given + (["bias=False"] if layer.bias is None else [])
    if isinstance(layer, nn.MaxPool2d):
        # Its stride is the kernel where none is given.
        stride = [f"stride={_short(layer.stride)}"]
        return [_short(layer.kernel_size), *stride, *_named(padding=layer.padding)]
    if isinstance(layer, nn.ZeroPad2d):
        return [str(tuple(layer.padding))]
    if isinstance(layer, nn.ConstantPad2d):
        return [str(tuple(layer.padding)), f'float("{layer.value}")']
    if isinstance(layer, nn.ReLU | nn.ReLU6):
        return []
    raise TypeError(f"no block has a layer of the kind {type(layer).__name__}")


def _named(**values: Any) -> list[str]:
    plain = {"stride": "1", "padding": "0"}
    return [f"{k}={_short(v)}" for k, v in values.items() if _short(v) != plain[k]]


def _short(value: Any) -> str:
    """One number where both axes have it."""
    return str(value[0]) if isinstance(value, tuple) and len(set(value)) == 1 else str(value)
