"""Steps of a transformer block with a backward of their own, which keep and move no more than they must.

Under torch.compile the plain formulas run instead, since the compiler fuses those itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks

_local = threading.local()


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """layer_norm(x) * (1 + scale) + shift, for (B, L, D) by (B, 1, D). Only `x` is kept for backward."""
    if torch.compiler.is_compiling():
        return _modulated_norm(x, shift, scale)
    return _note(_ModulatedNorm.apply(x, shift, scale), _modulated_norm, x, shift, scale)


def gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x + gate * update, for (B, L, D) by (B, 1, D). `update` is kept for backward only if the gate learns."""
    if torch.compiler.is_compiling():
        return x + gate * update
    return _Gated.apply(x, gate, update)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension. Only `x` is kept for backward."""
    if torch.compiler.is_compiling() or x.is_cuda:  # CUDA has a kernel of its own
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    return _RMSNorm.apply(x, weight, eps)


def gelu(x: Tensor) -> Tensor:
    """GELU, approximated by tanh."""
    return _note(F.gelu(x, approximate="tanh"), _gelu, x)


def beside_gelu(left: Tensor, x: Tensor) -> Tensor:
    """[left | gelu(x)] along the channels, (B, L, D) and (B, L, M) to (B, L, D + M). Only `x` is kept for backward."""
    if torch.compiler.is_compiling():
        return torch.cat([left, _gelu(x)], dim=-1)
    return _note(_BesideGELU.apply(left, x), _beside_gelu, left, x)


@contextmanager
def making_again() -> Iterator[None]:
    """Inside, a layer that wants the output of a GELU or `modulated_norm` for its backward gets it computed again.

    It is not kept then, while its input is kept anyway, and both are cheap. Hooks on saved tensors from outside, such
    as those of checkpointing, see all that is kept.
    """
    outer_hooks = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or outer_hooks is None:
        yield
        return
    outer_pack, outer_unpack = outer_hooks(True) or (_same, _same)
    made: dict[int, _Made] = {}  # by storage

    def pack(x: Tensor) -> tuple[Any, ...]:
        known = made.get(x.untyped_storage().data_ptr())
        if known is None or x._version != known.version:  # something else, or changed in place since
            return (outer_pack(x),)
        view = (x.size(), x.stride(), x.storage_offset())
        return *map(outer_pack, known.sources), known.make, view

    def unpack(kept: tuple[Any, ...]) -> Tensor:
        if len(kept) == 1:
            return outer_unpack(kept[0])
        *sources, make, view = kept
        return make(*map(outer_unpack, sources)).as_strided(*view)

    before, _local.made = getattr(_local, "made", None), made
    try:
        with saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _local.made = before
        made.clear()  # the graph holds `pack`, and so this


class _Made(NamedTuple):
    """How a tensor was made; it is held meanwhile, so that no other one gets its address."""

    tensor: Tensor
    version: int
    make: Callable[..., Tensor]
    sources: tuple[Tensor, ...]


def _note(tensor: Tensor, make: Callable[..., Tensor], *sources: Tensor) -> Tensor:
    made: dict[int, _Made] | None = getattr(_local, "made", None)
    if made is not None and (address := tensor.untyped_storage().data_ptr()):
        made[address] = _Made(tensor, tensor._version, make, tuple(x.detach() for x in sources))
    return tensor


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _beside_gelu(left: Tensor, x: Tensor) -> Tensor:
    width = left.shape[-1]
    out = x.new_empty(*x.shape[:-1], width + x.shape[-1], dtype=torch.result_type(left, x))
    out[..., :width] = left
    torch.ops.aten.gelu.out(x, approximate="tanh", out=out[..., width:])
    return out


def _modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def _same(x: Any) -> Any:
    return x


def heads_of(x: Tensor, layers: Sequence[nn.Module], head_dim: int) -> tuple[Tensor, ...]:
    """What each layer gives for `x`, (B, L, D), in heads: (B, L, D / head_dim, head_dim) each.

    One matrix product if all are linear layers of one size that nothing is attached to.
    """
    fuse = not torch.compiler.is_compiling() and not torch.is_autocast_enabled(x.device.type)
    if fuse and all(_is_bare(layer) for layer in layers):
        joined = _Linears.apply(x, *(layer.weight for layer in layers), *(layer.bias for layer in layers))
        return joined.unflatten(-1, (len(layers), -1, head_dim)).unbind(-3)
    return tuple(layer(x).unflatten(-1, (-1, head_dim)) for layer in layers)


class _ModulatedNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-6)
        factor = 1 + scale
        ctx.save_for_backward(x, mean, rstd, factor)
        return torch.addcmul(shift, normed, factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, mean, rstd, factor = ctx.saved_tensors
        shape = x.shape[-1:]
        to_x = to_shift = to_scale = None
        if ctx.needs_input_grad[0]:
            to_x = torch.ops.aten.native_layer_norm_backward(
                grad * factor, x, shape, mean, rstd, None, None, [True, False, False]
            )[0]
        if ctx.needs_input_grad[1]:
            to_shift = grad.sum(1, keepdim=True)
        if ctx.needs_input_grad[2]:
            normed = torch.native_layer_norm(x, shape, None, None, 1e-6)[0]
            to_scale = (grad * normed).sum(1, keepdim=True)
        return to_x, to_shift, to_scale


class _BesideGELU(Function):
    """Written to where it belongs, without a tensor between."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, x: Tensor) -> Tensor:
        ctx.width = left.shape[-1]
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None)
        return _beside_gelu(left, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        (x,) = ctx.saved_tensors
        to_left = grad[..., : ctx.width] if ctx.needs_input_grad[0] else None
        if x is None:
            return to_left, None
        return to_left, torch.ops.aten.gelu_backward(grad[..., ctx.width :].to(x.dtype), x, approximate="tanh")


class _Gated(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
        ctx.save_for_backward(gate, update if ctx.needs_input_grad[1] else None)
        return torch.addcmul(x, gate, update)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        gate, update = ctx.saved_tensors
        to_gate = None if update is None else (grad * update).sum(1, keepdim=True)
        return grad, to_gate, grad * gate if ctx.needs_input_grad[2] else None


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        rstd = torch.rsqrt(norm.square() / x.shape[-1] + eps)
        ctx.save_for_backward(x, rstd, weight)
        return (x * rstd * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, rstd, weight = ctx.saved_tensors
        normed = x * rstd
        product = grad * normed
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            mean = (product @ weight.to(product.dtype) / x.shape[-1]).unsqueeze(-1)
            to_x = ((grad * weight - normed * mean) * rstd).to(x.dtype)
        if ctx.needs_input_grad[1]:
            to_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        return to_x, to_weight, None


class _Linears(Function):
    """Linear layers side by side: their weights are joined for the product and not kept joined."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        ctx.save_for_backward(x if any(ctx.needs_input_grad[1:]) else None, *weights)
        return F.linear(x, torch.cat(weights), torch.cat(biases))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, *weights = ctx.saved_tensors
        to_x: Tensor | None = None
        to_parameters: list[Tensor | None] = [None] * (2 * len(weights))
        rows = grad.flatten(0, -2)
        if ctx.needs_input_grad[0]:
            to_x = (rows @ torch.cat(weights)).unflatten(0, grad.shape[:-1])
        if x is not None:
            sizes = [len(weight) for weight in weights]
            to_parameters = [*(rows.T @ x.flatten(0, -2)).split(sizes), *rows.sum(0).split(sizes)]
        return to_x, *to_parameters


def _is_bare(layer: nn.Module) -> bool:
    """Whether the layer is a plain weight and bias: no hook, no wrapper, nothing quantised or sharded."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.bias is not None
        and "forward" not in vars(layer)
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
    )
