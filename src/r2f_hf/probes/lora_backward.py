"""The gradients of a LoRA pair without its forward pass."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor
from torch.autograd.function import FunctionCtx


class Sketching(LoraVariant):
    r"""
    A variant of LoRA whose pair adds nothing to its layer, but still gets its gradients.

    With the layer's inputs `X` and the gradients `δ` of its outputs, `G = δᵀX`. So the pair's gradients
    `dL/dB = s·G·Aᵀ` and `dL/dA = s·Bᵀ·G` do not need what the pair would have added, `s·X·Aᵀ·Bᵀ`, and this is left
    out. The forward pass is the model's own, to the bit, and so is the backward pass through the layer. The pair's
    gradients are treated as those of any parameter: the training loop accumulates, sends, unscales and clips them.

    PEFT calls it in place of the pair where `layer.lora_variant[adapter] = Sketching()` is set. Merging it changes
    nothing.

    Attributes:
        added (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
            `U` of shape `(out_features, k)` and `V` of shape `(in_features, k)`. While they are there, a forward pass
            that is trained on computes with `W + U·Vᵀ`, and so the gradients are those at this weight.
    """

    added: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs) -> None:
        pass

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        pass

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs) -> Tensor:
        if not torch.is_grad_enabled():
            return result
        added = module.lora_variant[active_adapter].added
        if added is not None:
            U, V = (factor.to(result.dtype) for factor in added)
            result = result + x.to(result.dtype) @ V @ U.T
        pair = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        return _Sketch.apply(result, x, *pair, module.scaling[active_adapter])


class _Sketch(torch.autograd.Function):
    """Passes the layer's output on unchanged, and computes the pair's gradients in the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, result: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(x, A, B)
        device = x.device.type
        # The dtype that PEFT's own forward pass would have computed in.
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else A.dtype
        ctx.scaling = scaling
        # The same memory, but not a view for autograd: a model may add to the output of its layer in place.
        return result.data

    @staticmethod
    def backward(ctx: FunctionCtx, delta: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B = ctx.saved_tensors
        X, D = (tensor.flatten(end_dim=-2).to(ctx.dtype) for tensor in (x, delta))
        left, right = B.to(ctx.dtype), A.to(ctx.dtype)
        # In fp16 a small scaling would underflow within the product. In other dtypes it costs nothing there.
        underflows = ctx.dtype == torch.float16
        alpha = 1.0 if underflows else ctx.scaling
        product_A = torch.addmm(right, (D @ left).T, X, beta=0, alpha=alpha)
        product_B = torch.addmm(left, D.T, X @ right.T, beta=0, alpha=alpha)
        grad_A, grad_B = (product.to(A.dtype) for product in (product_A, product_B))
        if underflows:
            grad_A, grad_B = grad_A * ctx.scaling, grad_B * ctx.scaling
        return delta, None, grad_A, grad_B, None
