"""Multiply–accumulates of every operator that has any: one plain table, by operator name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor

from onebyone.measurement.owning import tensors

Formula = Callable[[Sequence[Any], Any], int]  # (positional arguments, output) → MACs


def convolution(x: Tensor, weight: Tensor, y: Tensor, transposed: bool) -> int:
    """MACs of any convolution, grouped, dilated or strided, over any number of axes.

    weight (c_out, c_in / groups, taps …): every output reads c_in / groups · taps products. Transposed,
    weight (c_in, c_out / groups, taps …): every input feeds c_out / groups · taps. Products with
    padding are counted, so those of a transposed one that fall outside the output are too.
    """
    return (x if transposed else y).numel() * prod(weight.shape[1:])


def _convolution(args: Sequence[Any], y: Any) -> int:
    return convolution(args[0], args[1], y, bool(args[6]))


def _convolution_backward(args: Sequence[Any], y: Any) -> int:
    """The gradients of its input and of its weight take as many products each as the output did."""
    once = convolution(args[1], args[2], args[0], bool(args[7]))
    return once * (bool(args[10][0]) + bool(args[10][1]))


def _weight_second(args: Sequence[Any], y: Any) -> int:
    return convolution(args[0], args[1], y, transposed=False)


def _product(left: int, right: int) -> Formula:
    """A matrix product (… m k) · (… k n), its factors at these places of the arguments: outputs · k."""

    def formula(args: Sequence[Any], y: Any) -> int:
        k = args[left].shape[-1]
        return prod(args[left].shape[:-1]) * k * _columns(args[right])

    return formula


def _columns(right: Tensor) -> int:
    return right.shape[-1] if right.ndim > 1 else 1


def _linear(args: Sequence[Any], y: Any) -> int:
    return args[0].numel() * args[1].shape[0]


def _trilinear(args: Sequence[Any], y: Any) -> int:
    """`nn.Bilinear`, weight (out, in₁, in₂): x₁ W, then its product with x₂, as einsum counts it."""
    first, weight = args[0], args[1]
    outputs, _, second = weight.shape
    return first.numel() // first.shape[-1] * (weight.numel() + outputs * second)


def _attention(args: Sequence[Any], y: Any) -> int:
    """Q Kᵀ and its product with V: batch · heads · queries · keys · (d + d_v), masked ones counted."""
    query, key, value = args[:3]
    return prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attention_kernel(args: Sequence[Any], y: Any) -> int:
    """The same for kernels that take (batch, length, heads, d)."""
    query, key, value = args[:3]
    return prod(query.shape[:-1]) * key.shape[-3] * (query.shape[-1] + value.shape[-1])


def _attention_backward(args: Sequence[Any], y: Any) -> int:
    """Q Kᵀ again, and the products that send gradients back to both factors of both products."""
    query, key, value = args[1:4]
    return prod(query.shape[:-1]) * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1])


def _bmm(args: Sequence[Any], y: Any) -> int:
    return args[0].numel() * args[1].shape[-1]


def _baddbmm(args: Sequence[Any], y: Any) -> int:
    return args[1].numel() * args[2].shape[-1]


def _several(args: Sequence[Any], y: Any) -> int:
    """A product for each pair of two lists."""
    return sum(left.numel() * right.shape[-1] for left, right in zip(args[0], args[1], strict=True))


def _outer(args: Sequence[Any], y: Any) -> int:
    """A column times a row, added to a matrix."""
    return args[1].numel() * args[2].numel()


def _distances(args: Sequence[Any], y: Any) -> int:
    """‖a‖² − 2 a·b + ‖b‖² for all pairs of rows: one product, the two squares as columns beside a and b."""
    return y.numel() * (args[0].shape[-1] + 2)


def _recurrent(args: Sequence[Any], y: Any) -> int:
    """Fused recurrent layers: each matrix meets every item of every step once."""
    x = args[0]
    steps = prod(x.shape[:-1])
    weights = [w for w in tensors(args[1:]) if w.ndim == 2]
    return steps * sum(w.numel() for w in weights)


def _recurrent_layer(args: Sequence[Any], y: Any) -> int:
    return prod(args[0].shape[:-1]) * (args[1].numel() + args[2].numel())


def _package(args: Sequence[Any]) -> Any:
    """The object in which a weight is packed away: some operators have an addend before it."""
    return next(value for value in args if not isinstance(value, Tensor))


def _packed_convolution(args: Sequence[Any], y: Any) -> int:
    """int8 convolutions whose weight is packed away in an object."""
    package = _package(args)
    return convolution(args[0], package.unpack()[0], y, bool(package.transpose()))


def _packed_linear(args: Sequence[Any], y: Any) -> int:
    return args[0].numel() * _package(args).unpack()[0].shape[0]


def _by_outputs(args: Sequence[Any], y: Any) -> int:
    """Linear layers whose weight lies in memory in another shape than (out, in)."""
    return args[0].numel() * y.shape[-1]


def _packed_recurrent(gates: int) -> Formula:
    """int8 recurrent layers: every direction of the first reads x, of later ones all directions."""

    def formula(args: Sequence[Any], y: Any) -> int:
        by_batch_sizes = bool(tensors(args[2:3]))  # a packed sequence: its batch sizes come second
        x, hidden = args[0], tensors(args[1 + by_batch_sizes : 2 + by_batch_sizes])[0].shape[-1]
        layers, directions = args[4 + by_batch_sizes], 1 + bool(args[7 + by_batch_sizes])
        read = x.shape[-1] + (layers - 1) * directions * hidden + layers * hidden
        return prod(x.shape[:-1]) * directions * gates * hidden * read

    return formula


def _packed_cell(args: Sequence[Any], y: Any) -> int:
    weights = sum(packed.unpack()[0].numel() for packed in args[2:4])
    return prod(args[0].shape[:-1]) * weights


def _time_batch_channels(args: Sequence[Any], y: Any) -> int:
    """A 1d convolution whose weight is (taps, c_in, c_out)."""
    return y.numel() * prod(args[1].shape[:2])


def _grouped_product(args: Sequence[Any], y: Any) -> int:
    """One product a group; two axes are three of which one is cut into groups."""
    left, right = args[0], args[1]
    repeated = left.shape[0] if left.ndim > right.ndim else 1
    return left.numel() * right.shape[-1] // repeated


def _fused_convolution(args: Sequence[Any], y: Any) -> int:
    return convolution(args[0], args[3], y, transposed=False)


def _fused_linear(args: Sequence[Any], y: Any) -> int:
    return args[0].numel() // args[0].shape[-1] * args[3].numel()


ATTENTION = (
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math", "_scaled_dot_product_attention_math_for_mps",
)  # fmt: skip
PACKED = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
PACKED_LINEAR = (
    "linear", "linear_relu", "linear_leaky_relu", "linear_tanh", "linear_dynamic", "linear_relu_dynamic",
    "linear_dynamic_fp16", "linear_relu_dynamic_fp16",
)  # fmt: skip
INT4 = ("_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu", "_dyn_quant_matmul_4bit")

COMPLEX = 4  # products of real numbers in one of complex numbers
FORMULAS: dict[str, Formula] = {
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::convolution_overrideable": _convolution,
    "aten::convolution_backward": _convolution_backward,
    "aten::mkldnn_convolution": _weight_second,
    "aten::cudnn_convolution": _weight_second,
    "aten::cudnn_convolution_relu": _weight_second,
    "aten::cudnn_convolution_add_relu": _weight_second,
    "aten::miopen_convolution": _weight_second,
    "aten::_slow_conv2d_forward": _weight_second,
    "aten::slow_conv3d_forward": _weight_second,
    "aten::_conv_depthwise2d": _weight_second,
    "aten::conv_depthwise3d": _weight_second,
    "aten::conv_tbc": _time_batch_channels,
    "torchvision::deform_conv2d": _weight_second,
    "mkldnn::_convolution_pointwise": _weight_second,
    "aten::mm": _product(0, 1),
    "aten::_int_mm": _product(0, 1),
    "aten::_scaled_mm": _product(0, 1),
    "aten::_sparse_mm": _product(0, 1),
    "aten::addmm": _product(1, 2),
    "aten::addmm_": _product(1, 2),
    "aten::_sparse_addmm": _product(1, 2),
    "aten::_sparse_sparse_matmul": _product(0, 1),
    "aten::_sparse_mm_reduce_impl": _product(0, 1),
    "aten::hspmm": _product(0, 1),
    "aten::sspaddmm": _product(1, 2),
    "aten::sparse_sampled_addmm": _product(1, 2),
    "aten::_addmm_activation": _product(1, 2),
    "aten::mv": _product(0, 1),
    "aten::addmv": _product(1, 2),
    "aten::addmv_": _product(1, 2),
    "aten::dot": _product(0, 1),
    "aten::vdot": _product(0, 1),
    "aten::bmm": _bmm,
    "aten::baddbmm": _baddbmm,
    "aten::baddbmm_": _baddbmm,
    "aten::addbmm": _baddbmm,
    "aten::addbmm_": _baddbmm,
    "aten::addr": _outer,
    "aten::addr_": _outer,
    "aten::_foreach_mm": _several,
    "aten::_grouped_mm": _grouped_product,
    "aten::linear": _linear,
    "aten::mkldnn_linear": _linear,
    "mkldnn::_linear_pointwise": _linear,
    "aten::_weight_int8pack_mm": _linear,
    "aten::_trilinear": _trilinear,
    "aten::_euclidean_dist": _distances,
    "higher_order::flex_attention": _attention,
    "aten::_flash_attention_forward": _attention_kernel,
    "aten::_efficient_attention_forward": _attention_kernel,
    "aten::mkldnn_rnn_layer": _recurrent_layer,
    "aten::_cudnn_rnn": _recurrent,
    "aten::lstm": _recurrent,
    "aten::quantized_lstm": _packed_recurrent(4),
    "aten::quantized_gru": _packed_recurrent(3),
    "onednn::qconv1d_pointwise": _fused_convolution,
    "onednn::qconv2d_pointwise": _fused_convolution,
    "onednn::qconv3d_pointwise": _fused_convolution,
    "onednn::qlinear_pointwise": _fused_linear,
    **{f"aten::{name}": _attention for name in ATTENTION},
    **{f"aten::{name}_backward": _attention_backward for name in ATTENTION[:4]},
    **{f"quantized::{name}": _packed_convolution for name in PACKED},
    **{f"quantized::{name}_relu": _packed_convolution for name in PACKED[:3]},
    **{f"quantized::{name}_dynamic": _packed_convolution for name in PACKED},
    **{f"quantized::conv2d_{name}": _packed_convolution for name in ("add", "add_relu")},
    **{f"quantized::{name}": _packed_linear for name in PACKED_LINEAR},
    **{f"aten::{name}": _by_outputs for name in INT4},
    "quantized::matmul": _product(0, 1),
    **{
        f"quantized::quantized_{name}_cell_dynamic": _packed_cell
        for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    },
}
"""Operator name → its MACs. What is not here does no products of its own that the field counts."""
