"""CUDA's autocast rules on CPU tensors: CPU autocast promotes mixed types where CUDA raises.

``with CUDAAutocast():`` casts the arguments of torch functions by CUDA's lists (PyTorch's autocast op reference) and
leaves the others, so mixed types meet the kernels' own checks. ``torch.autocast(..., enabled=False)``
inside switches it off, as on a GPU.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

# fmt: off
TO_BF16 = frozenset([
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "prelu", "addmm",
    "addmv", "addr", "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "linear", "addbmm", "baddbmm", "bmm",
    "chain_matmul", "multi_dot", "scaled_dot_product_attention", "einsum",
])
# fmt: on
# fmt: off
TO_FLOAT32 = frozenset([
    "__pow__", "__rpow__", "pow", "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2",
    "log1p", "reciprocal", "rsqrt", "sinh", "tan", "softplus", "layer_norm", "group_norm", "norm",
    "nuclear_norm", "cosine_similarity", "nll_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss",
    "mse_loss", "binary_cross_entropy_with_logits", "cross_entropy", "cosine_embedding_loss",
    "poisson_nll_loss", "hinge_embedding_loss", "margin_ranking_loss", "multi_margin_loss",
    "triplet_margin_loss", "dist", "cdist", "pdist", "renorm", "logsumexp", "prod", "softmax", "log_softmax",
    "softmin", "cumprod", "cumsum", "sum",
])
# fmt: on
# fmt: off
PROMOTED = frozenset([
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "grid_sample", "grid_sampler", "index_put",
    "scatter_add", "tensordot",
])
# fmt: on
BANNED = frozenset(["binary_cross_entropy"])


class CUDAAutocast(TorchFunctionMode):
    """Apply the lists while CPU autocast to bfloat16 is on; CPU autocast's own casts are switched off around calls."""

    def __enter__(self) -> Any:
        self._on = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
        self._on.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._on.__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not torch.is_autocast_enabled("cpu") or not any(map(castable, tree_leaves((args, kwargs)))):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in BANNED:
            raise RuntimeError(f"{name} is unsafe to autocast")
        given = [value.dtype for value in tree_leaves((args, kwargs)) if castable(value)]
        if name in TO_BF16:
            target = torch.bfloat16
        elif name in TO_FLOAT32 or (name in PROMOTED and torch.float32 in given):
            target = torch.float32
        else:
            target = None
        if target is not None:
            args, kwargs = tree_map(lambda value: value.to(target) if castable(value) else value, (args, kwargs))
        was = torch.is_autocast_enabled("cpu")
        torch.set_autocast_enabled("cpu", False)
        try:
            return func(*args, **kwargs)
        finally:
            torch.set_autocast_enabled("cpu", was)


def castable(value: Any) -> bool:
    """Whether autocast touches it: floating point tensors but float64."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
