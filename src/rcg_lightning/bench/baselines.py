"""The baseline: our own modules with their fast paths switched off, to compute as the official code does.

Attention is explicit, the encoder's last block computes all tokens, and values that depend on the timestep only are
computed for every example. Optimizer, EMA weights and gradient norm process one parameter after the other. Weights and
results are the same.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.vit import VisionTransformer
from rcg_lightning.types import Backbone


@contextmanager
def baseline_networks(*roots: nn.Module) -> Iterator[None]:
    """Context in which all attention and the networks among the modules of ``roots`` compute as the baseline."""
    modules = {module for root in roots for module in root.modules()}
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(half_precision_attention())
        for module in modules:
            if isinstance(module, VisionTransformer):
                stack.enter_context(switched(module, "class_token_alone", False))
            if isinstance(module, Backbone):
                stack.callback(module.register_forward_pre_hook(_timestep_per_example).remove)
            if isinstance(module, EMA):
                stack.enter_context(switched(module, "move", move_one_by_one))
        yield


@contextmanager
def half_precision_attention() -> Iterator[None]:
    """Context in which explicit attention keeps the precision of its inputs on GPUs."""
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def as_baseline(work: Callable[[], object], *roots: nn.Module) -> Callable[[], None]:
    """Return ``work`` run inside ``baseline_networks(*roots)``."""

    def baseline() -> None:
        with baseline_networks(*roots):
            work()

    return baseline


@contextmanager
def baseline_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Context in which the optimizer updates one parameter after the other, one operation at a time.

    Step counts are on the host meanwhile, as in an optimizer that is not fused.
    """
    before = [{name: group[name] for name in ("fused", "foreach")} for group in optimizer.param_groups]
    counted = [state for state in optimizer.state.values() if "step" in state and state["step"].device.type != "cpu"]
    devices = [state["step"].device for state in counted]
    steps = torch.stack([state["step"] for state in counted]).cpu() if counted else []
    for state, step in zip(counted, steps):
        state["step"] = step
    for group in optimizer.param_groups:
        group.update(fused=False, foreach=False)
    try:
        yield
    finally:
        for state, device in zip(counted, devices):
            state["step"] = state["step"].to(device, non_blocking=True)
        for group, settings in zip(optimizer.param_groups, before):
            group.update(settings)


def clip_one_by_one(parameters: list[nn.Parameter], clip: float | None) -> Tensor:
    """Clip the gradients and return their norm, which the official code computes even without clipping."""
    if clip is not None:
        return nn.utils.clip_grad_norm_(parameters, clip, foreach=False)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=False)


def move_one_by_one(ema_weights: list[Tensor], weights: list[Tensor], rate: float, skip: Tensor | None = None) -> None:
    """``EMA.move`` by three operations per EMA weight; the baseline skips no step."""
    for ema_weight, weight in zip(ema_weights, weights):
        ema_weight.sub_(rate * (ema_weight - weight))


@contextmanager
def switched(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Context in which the attribute ``name`` of a module is ``value``."""
    own = name in vars(module)
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before) if own else delattr(module, name)


def _timestep_per_example(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Expand one timestep for all examples to one for each."""
    x, t, *others = inputs
    return (x, t.expand(len(x)), *others)
