"""Trap networks: small models with one awkward thing each, and what must become of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from onebyone.errors import ModelError, OneByOneError


def as_trained(model: nn.Module) -> nn.Module:
    """In place: scores as cross-entropy leaves them, whose mean over the classes no image changes."""
    *_, last = (m for m in model.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        last.weight -= last.weight.mean(0)
    return model


@dataclass(frozen=True)
class Trap:
    """How to build a network, the shape of one image, and what is expected.

    `refused` maps layers that must keep every bit to words of the reason; `error` is the refusal of
    the whole network, and words of its message; a `cpu_half` network computes in half precision.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (4, 12, 12)
    refused: dict[str, str] = field(default_factory=dict)
    error: tuple[type[OneByOneError], str] | None = None

    def model(self, seed: int = 0) -> nn.Module:
        """The network with random weights, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().eval()

    def images(self, n: int = 24, seed: int = 1) -> Tensor:
        """Random images with some structure: neighboring pixels and channels are correlated."""
        return images(n, *self.shape, seed=seed)


def images(n: int, channels: int, *size: int, seed: int = 1) -> Tensor:
    """(n, channels, *size) of correlated noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, channels, *size, generator=generator)
    mixing = torch.randn(channels, channels, generator=generator) / channels**0.5
    smooth = (noise + noise.roll(1, -1) + noise.roll(1, 2)) / 3**0.5
    return torch.einsum("oc,nc...->no...", mixing, smooth) + 0.3


def head(first: nn.Module, channels: int = 16, dims: int = 2) -> nn.Sequential:
    """The layer in question as `first`, then a normalised 3×3 convolution and a classifier."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims]
    model = nn.Sequential()
    for name, module in {
        "first": first,
        "relu": nn.ReLU(inplace=True),
        "conv": conv(channels, 24, 3, padding=1, bias=False),
        "norm": norm(24),
        "relu2": nn.ReLU(),
        "pool": pool(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(24, 10),
    }.items():
        model.add_module(name, module)
    _settle(model)
    return model


def _settle(model: nn.Module) -> None:
    """Normalisation statistics and scales that are not the defaults."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)


def plain() -> nn.Sequential:
    """No trap: three convolutions and a classifier, the sound case beside the others."""
    return head(nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3)))


class Tied(nn.Module):
    """One convolution under two names of one parent and under a third in another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.a = nn.Conv2d(16, 16, 3, padding=1)
        self.b = self.a
        self.inner = nn.Sequential(nn.ReLU(), self.a)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.b(self.a(self.stem(x)).relu()))
        return self.fc(x.mean((2, 3)))


class TiedWeights(nn.Module):
    """Two layers with one weight tensor, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.second.weight = self.first.weight
        self.last = nn.Conv2d(16, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.stem(x).relu()).relu()).relu()
        return self.last(x).mean((2, 3))


class TiedEmbedding(nn.Module):
    """A classifier whose weight is that of an embedding, which is no layer of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.embedding = nn.Embedding(10, 16)
        self.decoder = nn.Linear(16, 10, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv2(self.conv(x).relu()).mean((2, 3))
        return self.decoder(features + self.embedding(features.argmax(1) % 10))


class Standardized(nn.Conv2d):
    """A convolution that computes with other weights than those it holds."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


class Attended(nn.Conv2d):
    """A convolution whose weights each batch computes for itself."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight * (1 + input.mean()), self.bias)


class Functional(nn.Module):
    """Uses its convolution's weight itself and never calls it."""

    def __init__(self, also_called: bool = False) -> None:
        super().__init__()
        self.also_called = also_called
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = F.conv2d(x, self.conv.weight, padding=1)
        if self.also_called:
            y = y + self.conv(x)
        return self.last(y.relu()).mean((2, 3))


class NeverRun(nn.Module):
    """Has a convolution that no forward pass reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain()
        self.spare = nn.Conv2d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class RunThrice(nn.Module):
    """Sends its data through one convolution three times, on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x).relu()).relu()
        x = self.conv(F.avg_pool2d(x, 2)).relu()
        return self.fc(self.conv(x).mean((2, 3)))


class Branching(nn.Module):
    """Takes one of two ways, as the data say."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.bright = nn.Conv2d(16, 16, 3, padding=1)
        self.dark = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        y = self.bright(y) if x.mean() > 0 else self.dark(y)
        return self.last(y.relu()).mean((2, 3))


class PartlyFrozen(nn.Module):
    """A first normalisation that stays in eval mode, and parameters that do not train."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain()
        self.norm = nn.BatchNorm2d(4)
        self.norm.requires_grad_(False)
        self.body.first[0].requires_grad_(False)  # type: ignore[index,union-attr]
        _settle(self.norm)

    def train(self, mode: bool = True) -> PartlyFrozen:
        super().train(mode)
        self.norm.training = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.norm(x))


class Containers(nn.Module):
    """Convolutions in a ModuleList and a ModuleDict."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = nn.ModuleList([nn.Conv2d(4, 16, 3), nn.Conv2d(16, 16, 3)])
        self.named = nn.ModuleDict({"deep": nn.Conv2d(16, 24, 3), "fc": nn.Linear(24, 10)})

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.listed:
            x = conv(x).relu()
        return self.named["fc"](self.named["deep"](x).relu().mean((2, 3)))


class PlainList(nn.Module):
    """Calls registered convolutions through an ordinary list, past the module tree."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 16, 3)
        self.conv2 = nn.Conv2d(16, 32, 3)
        self.order = [self.conv1, self.conv2]

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.order:
            x = conv(x).relu()
        return x.mean((2, 3))


class Excite(nn.Module):
    """Squeeze-and-excitation: 1×1 convolutions on one pixel, in-place activations behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 32, 3, padding=1)
        self.down = nn.Conv2d(32, 16, 1)
        self.relu = nn.ReLU(inplace=True)
        self.up = nn.Conv2d(16, 32, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        gate = self.up(self.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.fc((x * gate).mean((2, 3)))


class ReadsNumbers(nn.Module):
    """Its own code reads strides and channels of its layers, and takes the larger one of each pair."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.Conv2d(4, 48, 3, padding=1)
        self.first = nn.Conv2d(24, 24, 3, padding=1)
        self.second = nn.Conv2d(24, 24, (3, 1), 2)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        one, other = torch.split(self.pairs(x), self.pairs.out_channels // 2, 1)
        x = torch.max(one, other)
        for layer in (self.first, self.second):
            y = layer(x)
            x = y + x if layer.stride == (1, 1) and layer.kernel_size[0] == 3 else y.relu()
        return self.fc(x.mean((2, 3)).view(-1, self.fc.in_features))


class TwoInputs(nn.Module):
    """Needs two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(x + y)


class Wrapped(nn.Module):
    """Gives a tuple, or a dict, of a map and logits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.features = nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        maps = self.features(x)
        logits = self.fc(maps.mean((2, 3)))
        return (logits, maps) if self.kind == "tuple" else {"logits": logits, "maps": maps}


class Attentive(nn.Module):
    """An attention product, and a linear layer over a sequence, between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3)
        self.mix = nn.Linear(16, 48)
        self.conv2 = nn.Conv2d(16, 16, 3)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        q, k, v = self.mix(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        mixed = ((q @ k.transpose(1, 2)).softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        return self.fc(self.conv2(mixed).mean((2, 3)))


class Table(nn.Module):
    """Linear layers that run on a table of positions, whatever the images (Swin Transformer V2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 32, 3, padding=1)
        self.inner, self.outer = nn.Linear(2, 64), nn.Linear(64, 32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = torch.meshgrid(
            torch.linspace(-1, 1, 12, dtype=x.dtype), torch.linspace(-1, 1, 12, dtype=x.dtype),
            indexing="ij",
        )  # fmt: skip
        table = torch.stack([rows, columns], -1)[None]
        scale = self.outer(self.inner(table).relu()).permute(0, 3, 1, 2)
        return self.fc((self.conv(x).relu() * (1 + scale)).mean((2, 3)))


class Uncopyable(nn.Module):
    """Holds a computed tensor, which `copy.deepcopy` refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain()
        self.kept = self.body.conv.weight * 2  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Broken(nn.Module):
    """Gives NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * torch.nan


class Threaded(nn.Module):
    """Runs a layer in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.aside = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, made = self.stem(x), []
        thread = threading.Thread(target=lambda: made.append(self.aside(x)))
        thread.start()
        thread.join()
        return made[0]


def _doubled(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return output * 2


def _hooked() -> nn.Module:
    model = plain()
    model.get_submodule("conv").register_forward_hook(_doubled)
    return model


def _weight_norm() -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(16, 16, 3))


def _normed_and_hooked() -> nn.Module:
    layer = _weight_norm()
    layer.register_forward_hook(_doubled)
    return layer


def _layer(layer: Callable[[], nn.Module], channels: int = 16) -> Callable[[], nn.Module]:
    """A stem, then the layer in question as `first.1`."""
    return lambda: head(nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), layer()), channels)


TRAPS: dict[str, Trap] = {
    "plain": Trap(plain),
    "1×1 with stride 2": Trap(_layer(lambda: nn.Conv2d(16, 16, 1, stride=2))),
    "1×1 with padding": Trap(_layer(lambda: nn.Conv2d(16, 16, 1, padding=1))),
    "3×3 with stride 2": Trap(_layer(lambda: nn.Conv2d(16, 16, 3, stride=2, padding=1))),
    "grouped": Trap(_layer(lambda: nn.Conv2d(16, 16, 3, groups=4))),
    "depthwise": Trap(_layer(lambda: nn.Conv2d(16, 32, 3, groups=16), 32)),
    "dilated": Trap(_layer(lambda: nn.Conv2d(16, 16, 3, dilation=(2, 3), padding=2))),
    "same padding": Trap(_layer(lambda: nn.Conv2d(16, 16, 5, padding="same"))),
    "same padding, even kernel": Trap(_layer(lambda: nn.Conv2d(16, 16, (4, 2), padding="same"))),
    "circular padding": Trap(
        _layer(lambda: nn.Conv2d(16, 16, 3, padding=(1, 2), padding_mode="circular"))
    ),
    "reflected padding": Trap(
        _layer(lambda: nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"))
    ),
    "replicated padding": Trap(
        _layer(lambda: nn.Conv2d(16, 16, 3, padding="same", padding_mode="replicate"))
    ),
    "even kernel": Trap(_layer(lambda: nn.Conv2d(16, 16, 4, padding=1))),
    "non-square kernels": Trap(
        _layer(
            lambda: nn.Sequential(nn.Conv2d(16, 16, (1, 5)), nn.Conv2d(16, 16, (3, 1), stride=2))
        )
    ),
    "tied layers": Trap(Tied),
    "tied weights": Trap(
        TiedWeights, refused={"first": "tied to that of second", "second": "tied to that of first"}
    ),
    "tied embedding": Trap(TiedEmbedding, refused={"decoder": "tied to that of embedding"}),
    "root is a convolution": Trap(lambda: nn.Conv2d(16, 16, 3), (16, 12, 12)),
    "root is pointwise": Trap(lambda: nn.Conv2d(32, 32, 1), (32, 12, 12)),
    "subclass": Trap(_layer(lambda: Standardized(16, 16, 3))),
    "weights by the data": Trap(
        _layer(lambda: Attended(16, 16, 3)), refused={"first.1": "not one of the plain layers"}
    ),
    "parametrised": Trap(_layer(_weight_norm)),
    "parametrised, with a hook": Trap(
        _layer(_normed_and_hooked), refused={"first.1": "parametrised"}
    ),
    "weight used directly": Trap(Functional, refused={"conv": "never ran"}),
    "weight used directly too": Trap(
        lambda: Functional(also_called=True), refused={"conv": "reads its attribute `weight`"}
    ),
    "never run": Trap(NeverRun, refused={"spare": "never ran"}),
    "run three times": Trap(RunThrice),
    "data-dependent": Trap(Branching, refused={"dark": "never ran"}),
    "partly frozen": Trap(PartlyFrozen),
    "hooks": Trap(_hooked, refused={"conv": "hooks"}),
    "float16": Trap(lambda: plain().half()),
    "bfloat16": Trap(lambda: plain().bfloat16()),
    "float64": Trap(lambda: plain().double()),
    "channels-last": Trap(lambda: plain().to(memory_format=torch.channels_last)),  # type: ignore[call-overload]
    "lists and dicts of modules": Trap(Containers),
    "a plain list": Trap(PlainList),
    "one pixel, in place": Trap(Excite),
    "reads strides and channels": Trap(ReadsNumbers),
    "1d": Trap(
        lambda: head(nn.Sequential(nn.Conv1d(4, 16, 3), nn.Conv1d(16, 16, 5)), dims=1), (4, 24)
    ),
    "3d": Trap(
        lambda: head(nn.Sequential(nn.Conv3d(2, 8, 3), nn.Conv3d(8, 16, (1, 3, 3))), dims=3),
        (2, 4, 8, 8),
    ),
    "transposed": Trap(_layer(lambda: nn.ConvTranspose2d(16, 16, 2, stride=2))),
    "transposed, over one another": Trap(
        _layer(lambda: nn.ConvTranspose2d(16, 16, 4, 2, 1, groups=2, output_padding=1))
    ),
    "two inputs": Trap(TwoInputs, error=(ModelError, "the network fails on an input")),
    "tuple output": Trap(lambda: Wrapped("tuple")),
    "dict output": Trap(lambda: Wrapped("dict")),
    "attention": Trap(Attentive),
    "a table": Trap(Table),
    "cannot be copied": Trap(Uncopyable, error=(ModelError, "cannot be copied")),
    "NaN": Trap(Broken, error=(ModelError, "NaN")),
    "no layer": Trap(
        lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), error=(ModelError, "no convolution")
    ),
}


class Viewing(nn.Module):
    """Flattens its feature map by `view`, which a map in channels-last does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(8 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.maps(x)
        return self.head(y.view(y.size(0), -1))
