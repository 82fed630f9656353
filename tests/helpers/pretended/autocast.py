"""CUDA's autocast lists for the pretended device, registered when this file is imported.

The lists are those of torch's ATen/autocast_mode.h. Casts are not cached, so a weight that a step uses twice is cast
twice here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from helpers.pretended.backend import GPU

TO_LOW = """
    _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d.input conv_transpose3d.input
    convolution prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul
    linalg_multi_dot scaled_dot_product_attention
"""
TO_FLOAT32 = """
    acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar pow.Tensor_Tensor
    pow.Scalar softplus layer_norm native_layer_norm group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim
    cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss
    smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
    multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d
    upsample_nearest1d.vec _upsample_nearest_exact1d _upsample_nearest_exact1d.vec upsample_nearest2d
    upsample_nearest2d.vec _upsample_nearest_exact2d _upsample_nearest_exact2d.vec upsample_linear1d
    upsample_linear1d.vec upsample_bilinear2d upsample_bilinear2d.vec _upsample_bilinear2d_aa
    _upsample_bilinear2d_aa.vec upsample_bicubic2d upsample_bicubic2d.vec _upsample_bicubic2d_aa
    _upsample_bicubic2d_aa.vec norm.Scalar norm.ScalarOpt_dim
"""
RESULT_FLOAT32 = """
    prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
    linalg_matrix_norm.str_ord sum sum.dim_IntList
"""
PROMOTED = "addcdiv addcmul atan2 bilinear cross dot grid_sampler index_put tensordot scatter_add"
REJECTED = "binary_cross_entropy"

Cast = Callable[[Any, list[Any], dict[str, Any]], tuple[list[Any], dict[str, Any]]]


def castable(value: Any) -> bool:
    """Whether autocast touches it: floating point tensors on the device but those of float64."""
    floats = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return floats and value.device.type == GPU.type


def cast_to(dtype: torch.dtype, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments with their floating point tensors in ``dtype``."""

    def cast(value: Any) -> Any:
        if type(value) in (list, tuple):
            return type(value)(map(cast, value))
        return value.to(dtype) if castable(value) else value

    return list(map(cast, args)), {key: cast(value) for key, value in kwargs.items()}


def to_low(op: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return cast_to(torch.get_autocast_dtype(GPU.type), args, kwargs)


def to_float32(op: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return cast_to(torch.float32, args, kwargs)


def result_float32(op: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    given = dict(zip((argument.name for argument in op._schema.arguments), args)) | kwargs
    if given.get("dtype") is None and castable(args[0]):
        given["dtype"] = torch.float32
    return [], given


def promoted(op: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    floats = [value for value in (*args, *kwargs.values()) if castable(value)]
    widest = any(value.dtype == torch.float32 for value in floats)
    return cast_to(torch.float32, args, kwargs) if widest else (args, kwargs)


def rejected(op: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    raise RuntimeError(f"{op} is unsafe to autocast")


def register(library: torch.library.Library, name: str, cast: Cast) -> None:
    """Let autocast apply ``cast`` to the arguments of an operator, and then call it with autocast off."""
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
            args, kwargs = cast(op, list(args), kwargs)  # type: ignore[assignment]
            return op(*args, **kwargs)

    library.impl(name, kernel, "AutocastPrivateUse1")


AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
_operators = torch.library.Library("aten", "IMPL")
_others = torch.library.Library("_", "IMPL")
_lists = {to_low: TO_LOW, to_float32: TO_FLOAT32, result_float32: RESULT_FLOAT32, promoted: PROMOTED}
for _cast, _names in {**_lists, rejected: REJECTED}.items():
    for _name in _names.split():
        register(_operators, _name, _cast)
_others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
