"""R2F and what it is measured against, under the same losses, forget batches, step budget and stopping rule."""

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


class EvenedSGD(torch.optim.Optimizer):
    """
    The default rule of [`R2FTrainer`] on dense gradients: rows and columns evened out, without what the retain set
    would notice where that is known (`spared`), of Frobenius norm `lr`.
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float):
        super().__init__(params, {"lr": lr})
        self.damped: dict[torch.nn.Parameter, RetainedInputs] = {}

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        for param in (param for group in self.param_groups for param in group["params"] if param.grad is not None):
            squares, state = param.grad.float().square(), self.state[param]
            rows, columns = squares.mean(1), squares.mean(0)
            state["rows"] = torch.lerp(rows, state.get("rows", rows), DECAY)
            state["columns"] = torch.lerp(columns, state.get("columns", columns), DECAY)
            update = param.grad * inverse_root(state["rows"])[:, None] * inverse_root(state["columns"])
            if param in self.damped:
                known = self.damped[param]
                Q = known.directions.to(update.dtype)
                update -= (update @ Q * known.damped) @ Q.T
            norm = update.norm().item()
            if norm > 0:
                param.sub_(update, alpha=self.param_groups[0]["lr"] / norm)


class ExactTrainer(ForgetRetainTrainer):
    """With [`EvenedSGD`], which spares what [`R2FTrainer`] spares."""

    def _compute_references(self) -> dict[str, torch.Tensor]:
        references = super()._compute_references()
        if self.args.protect_retain:
            rule = getattr(self.optimizer, "optimizer", self.optimizer)
            written = {parameter for group in rule.param_groups for parameter in group["params"]}
            linear = {name: each for name, each in self.model.named_modules() if isinstance(each, torch.nn.Linear)}
            modules = {name: each for name, each in linear.items() if each.weight in written}
            rows, size = self.splits.retain, self.args.per_device_eval_batch_size
            with self.accelerator.autocast():
                found = reference_inputs(
                    self.model, modules, rows, self.data_collator, size, self.args.seed, disable=True
                )
            rule.damped = {modules[name].weight: inputs for name, inputs in found.items()}
        return references


def not_sparing(args: R2FConfig) -> R2FConfig:
    """With AdamW, and as many retain examples as the default is where nothing is spared."""
    return replace(args, optim="adamw_torch", protect_retain=False, retain_per_forget=None)


def r2f(model: PreTrainedModel, args: R2FConfig, **data) -> ForgetRetainTrainer:
    """Recover-to-Forget."""
    return R2FTrainer(model=model, args=args, **data)


def lora(model: PreTrainedModel, args: R2FConfig, **data) -> ForgetRetainTrainer:
    """LoRA of the same rank on the same modules, with AdamW."""
    config = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=args.target_modules)
    torch.manual_seed(args.seed)
    return ForgetRetainTrainer(model=get_peft_model(model, config), args=not_sparing(args), **data)


def full(model: PreTrainedModel, args: R2FConfig, **data) -> ForgetRetainTrainer:
    """All weights, with AdamW."""
    return ForgetRetainTrainer(model=model, args=not_sparing(args), **data)


def exact(model: PreTrainedModel, args: R2FConfig, **data) -> ForgetRetainTrainer:
    """R2F's rule on R2F's modules with the exact full gradient in place of the reconstruction."""
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    model.requires_grad_(False)
    weights = [weight for weight in linear if weight is not model.get_input_embeddings().weight]
    for weight in weights:
        weight.requires_grad_(True)
    # Clipped gradients would weigh otherwise in the running moments; the probes' are too small to be clipped.
    args = replace(args, max_grad_norm=0.0)
    return ExactTrainer(model=model, args=args, optimizers=(EvenedSGD(weights, lr=args.learning_rate), None), **data)


RUNS: dict[str, Callable[..., ForgetRetainTrainer]] = {"r2f": r2f, "lora": lora, "full": full, "exact": exact}
