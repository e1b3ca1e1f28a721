"""R2F and its peers: trainers with the same losses, forget batches, step budget and stopping rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from r2f_hf import R2FConfig, R2FTrainer
from r2f_hf.training.forget_retain_trainer import ForgetRetainTrainer
from r2f_hf.training.references import reference_inputs
from r2f_hf.updates import RetainedInputs
from r2f_hf.updates.second_moments import DECAY, inverse_root


class DenseRule(torch.optim.Optimizer):
    """
    The default update rule of [`R2FTrainer`], for dense gradients.

    Rows and columns are rescaled by their running mean squares. For the weights in `protected`, the part that the
    retain set would notice is taken away. The update of each weight has the Frobenius norm `lr`.

    Args:
        params (`list[torch.nn.Parameter]`):
            The weights, each of shape `(out_features, in_features)`.
        lr (`float`):
            Frobenius norm of the step in each weight.

    Attributes:
        protected (`dict[torch.nn.Parameter, RetainedInputs]`):
            By weight the inputs that its module has on the retain set.
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float):
        super().__init__(params, {"lr": lr})
        self.protected: dict[torch.nn.Parameter, RetainedInputs] = {}

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        for param in (param for group in self.param_groups for param in group["params"] if param.grad is not None):
            squares, state = param.grad.float().square(), self.state[param]
            rows, columns = squares.mean(1), squares.mean(0)
            state["rows"] = torch.lerp(rows, state.get("rows", rows), DECAY)
            state["columns"] = torch.lerp(columns, state.get("columns", columns), DECAY)
            update = param.grad * inverse_root(state["rows"])[:, None] * inverse_root(state["columns"])
            if param in self.protected:
                inputs = self.protected[param]
                Q = inputs.directions.to(update.dtype)
                update -= (update @ Q * inputs.damped) @ Q.T
            norm = update.norm().item()
            if norm > 0:
                param.sub_(update, alpha=self.param_groups[0]["lr"] / norm)


class ExactTrainer(ForgetRetainTrainer):
    """A trainer with [`DenseRule`], which protects the same inputs as [`R2FTrainer`]."""

    def _compute_references(self) -> dict[str, torch.Tensor]:
        references = super()._compute_references()
        if self.args.protect_retain:
            rule = getattr(self.optimizer, "optimizer", self.optimizer)
            written = {parameter for group in rule.param_groups for parameter in group["params"]}
            linear = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, torch.nn.Linear)}
            modules = {name: layer for name, layer in linear.items() if layer.weight in written}
            rows, size = self.splits.retain, self.args.per_device_eval_batch_size
            with self.accelerator.autocast():
                retained = reference_inputs(
                    self.model, modules, rows, self.data_collator, size, self.args.seed, disable=True
                )
            rule.protected = {modules[name].weight: inputs for name, inputs in retained.items()}
        return references


def without_protection(args: R2FConfig) -> R2FConfig:
    """The same configuration with AdamW, no protection, and the default number of retain examples without it."""
    return replace(args, optim="adamw_torch", protect_retain=False, retain_per_forget=None)


def r2f(model: PreTrainedModel, args: R2FConfig, **data) -> ForgetRetainTrainer:
    """Recover-to-Forget."""
    return R2FTrainer(model=model, args=args, **data)


def lora(model: PreTrainedModel, args: R2FConfig, **data) -> ForgetRetainTrainer:
    """LoRA of the same rank on the same modules, with AdamW."""
    config = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=args.target_modules)
    torch.manual_seed(args.seed)
    return ForgetRetainTrainer(model=get_peft_model(model, config), args=without_protection(args), **data)


def full(model: PreTrainedModel, args: R2FConfig, **data) -> ForgetRetainTrainer:
    """All weights, with AdamW."""
    return ForgetRetainTrainer(model=model, args=without_protection(args), **data)


def exact(model: PreTrainedModel, args: R2FConfig, **data) -> ForgetRetainTrainer:
    """R2F's rule on R2F's modules, with the exact full gradient in place of the reconstruction."""
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    model.requires_grad_(False)
    weights = [weight for weight in linear if weight is not model.get_input_embeddings().weight]
    for weight in weights:
        weight.requires_grad_(True)
    # Clipping would change the weight of a step in the running moments. The probes' gradients are too small for it.
    args = replace(args, max_grad_norm=0.0)
    return ExactTrainer(model=model, args=args, optimizers=(DenseRule(weights, lr=args.learning_rate), None), **data)


RUNS: dict[str, Callable[..., ForgetRetainTrainer]] = {"r2f": r2f, "lora": lora, "full": full, "exact": exact}
