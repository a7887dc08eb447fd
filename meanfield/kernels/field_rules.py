"""Which function of torch is read by which rule, by its name. To add one, write it beside its kin and name it here (equations 97, 98)."""

from __future__ import annotations

from meanfield.kernels.field_affine import affine
from meanfield.kernels.field_matrices import attention, convolution, einsum, linear, matmul
from meanfield.kernels.field_norms import layer_norm, over_neurons, spread_over_neurons
from meanfield.kernels.field_pointwise import add, by_activation, elementwise, extreme, like, off, same, times
from meanfield.kernels.field_reading import Rule
from meanfield.kernels.field_shapes import concatenated, expanded, halved, indexed, reshaped, shared, transposed


def _named(rule: Rule, *lines: str) -> dict[str, Rule]:
    return dict.fromkeys((word for line in lines for word in line.split()), rule)


def _with_changes(rule: Rule, *lines: str) -> dict[str, Rule]:
    """Of functions that torch has in place, too"""
    return _named(rule, *lines) | {f"{name}_": rule for name in _named(rule, *lines)}


RULES: dict[str, Rule] = {
    **_named(
        affine,
        "rsub __rsub__ squeeze unsqueeze movedim moveaxis swapaxes",
        "select narrow index_select pad _pad avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d",
        "adaptive_avg_pool2d adaptive_avg_pool3d interpolate roll flip masked_fill where cumsum tril triu diff repeat_interleave",
        "embedding lerp atleast_2d",
    ),
    **_named(add, "add __add__ __radd__ __iadd__ add_ sub __sub__ sub_ __isub__"),
    **_named(transposed, "transpose permute t T mT"),
    **_named(reshaped, "reshape view flatten unflatten reshape_as view_as"),
    **_named(shared, "chunk split unbind tensor_split"),
    **_named(halved, "glu"),
    **_named(expanded, "expand expand_as broadcast_to"),
    **_named(concatenated, "cat stack concat concatenate"),
    **_named(indexed, "__getitem__"),
    **_with_changes(times, "mul multiply div true_divide divide neg negative"),
    **_named(times, "__mul__ __rmul__ __imul__ __truediv__ __itruediv__ __rdiv__ __rtruediv__ __neg__"),
    **_named(over_neurons, "mean sum"),
    **_named(spread_over_neurons, "var std norm vector_norm"),
    **_named(layer_norm, "layer_norm rms_norm group_norm"),
    **_named(matmul, "matmul __matmul__ bmm mm mv"),
    **_with_changes(
        elementwise,
        "tanh sigmoid special_expit erf special_erf erfc special_erfc special_ndtr special_log_ndtr sin cos sinc sinh cosh exp exp2 expm1",
        "log log1p silu gelu softplus mish softsign log_sigmoid square pow __pow__ atan arctan asinh arcsinh tanhshrink logaddexp",
        "relu leaky_relu prelu rrelu abs absolute __abs__ elu selu celu relu6 hardtanh hardsigmoid hardswish clamp clip clamp_min",
        "clamp_max hardshrink softshrink threshold _threshold addcmul reciprocal sqrt rsqrt",
    ),
    **_named(extreme, "maximum minimum max min"),
    **_named(same, "contiguous clone positive to double type type_as requires_grad_"),
    **_named(off, "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"),
    **_named(like(0.0), "zeros_like new_zeros"),
    **_named(like(1.0), "ones_like new_ones"),
    "activated": by_activation,
    "linear": linear,
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
    "conv1d": convolution(1),
    "conv2d": convolution(2),
    "conv3d": convolution(3),
}
