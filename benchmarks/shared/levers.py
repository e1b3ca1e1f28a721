"""Changes of R2F that the package does not have, as trainers, for `levers.py`."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r2f_hf import R2FTrainer
from r2f_hf.gradients import LowRankGradient
from r2f_hf.objectives import ForgetInputs
from r2f_hf.objectives.forget.ignorance import Ignorance
from r2f_hf.scoring import score_examples
from r2f_hf.updates.retained_inputs import DAMPING
from r2f_hf.updates.rule import UpdateRule


class GatedIgnorance(Ignorance):
    """
    A gate on the tokens (as in GateRA, arXiv 2511.17582, but not learned): each counts by its surprise.

    The surprise is that of someone who has read only the retain set. Weights have a mean of 1.
    """

    def __call__(self, inputs: ForgetInputs) -> Tensor:
        gates = 1 - inputs.ignorant_log_probs.exp()
        return super().__call__(inputs) * gates / gates.mean()


class HardestViews(R2FTrainer):
    """Before each step all views are scored, and each row is taken in those that leak most (arXiv 2511.09907)."""

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        plain = self.accelerator.unwrap_model(model).eval()
        views = [view for row in self.splits.forget for view in row]
        sums, tokens = score_examples(plain, views, self.data_collator.pad_token_id, 64, disable=True)
        leaks = iter(sums / tokens)
        ranked = [sorted(row, key=lambda view: -next(leaks)) for row in self.splits.forget]
        # The loader has drawn this step's batch by now: it is the next one that this is for.
        self.train_dataset.forget = [row[: self.args.num_views] for row in ranked]
        return super().training_step(model, *args, **kwargs)


class BothSides(R2FTrainer):
    """
    Protects the retain set's outputs, as `protect_retain` does its inputs: both Kronecker sides of its curvature.

    The output side is the mean of `g gᵀ`, where `g` is the gradient at a module's output, with labels that the model
    itself draws (Martens and Grosse 2015, arXiv 1503.05671; both sides as in arXiv 2511.18039, and in K-FADE, arXiv
    2602.10568).
    """

    curvature: dict[str, tuple[Tensor, Tensor]] | None = None

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        if self.curvature is None:
            self.curvature = self._measure(self.accelerator.unwrap_model(model))
            step = self.r2f_callback.step
            for rule, group in zip(step.rules, step.groups, strict=True):
                sides = [self.curvature[probe.name] for probe in group.probes]
                Q, damped = (torch.stack(side) for side in zip(*sides, strict=True))
                rule.protect = partial(self._protect, rule, Q, damped[..., None])
        return super().training_step(model, *args, **kwargs)

    @staticmethod
    def _protect(rule: UpdateRule, Q: Tensor, damped: Tensor, gradient: LowRankGradient) -> LowRankGradient:
        inside = UpdateRule.protect(rule, gradient)
        return LowRankGradient(U=inside.U - Q @ (damped * (Q.mT @ inside.U)), V=inside.V)

    def _measure(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """By module the directions of its output gradients, and how much of an update each takes away."""
        modules, squares = self.r2f_callback.step.modules, defaultdict(float)

        def add(name: str, module: nn.Module, before: Any, after: tuple[Tensor]) -> None:
            gradients = after[0].flatten(end_dim=-2).float()
            squares[name] += gradients.mT @ gradients

        hooks = [probe.layer.register_full_backward_hook(partial(add, name)) for name, probe in modules.items()]
        generator = torch.Generator().manual_seed(self.args.seed)
        for start in range(0, len(self.splits.retain), 32):
            batch = self.data_collator(list(self.splits.retain[start : start + 32]))
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            logits = logits[:, :-1][batch["labels"][:, 1:] != -100].float()
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
            F.cross_entropy(logits, drawn, reduction="sum").backward()
        for hook in hooks:
            hook.remove()
        for probe in modules.values():
            probe.A.grad = probe.B.grad = None
        found = {}
        for name, square in squares.items():
            values, Q = torch.linalg.eigh(square.double() / square.double().trace() * len(square))
            values = values.clamp_min(0)
            found[name] = (Q.float(), (values / (values + DAMPING)).float())
        return found


class SketchesApart(R2FTrainer):
    """
    Forget and retain sketches are taken apart, and where they conflict the retain part is kept whole.

    If a step along the forget gradient would raise the retain loss, the forget sketch loses what it has along the
    retain sketch, module by module.
    """

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        modules, weights = self.r2f_callback.step.modules, (self.args.forget_weight, self.args.retain_weight)
        parts = []
        for self.args.forget_weight, self.args.retain_weight in ((weights[0], 0.0), (0.0, weights[1])):
            loss = super().training_step(model, dict(inputs), *args, **kwargs)
            parts.append({name: (probe.A.grad, probe.B.grad) for name, probe in modules.items()})
            for probe in modules.values():
                probe.A.grad = probe.B.grad = None
        self.args.forget_weight, self.args.retain_weight = weights
        for name, probe in modules.items():
            forget, retain = (part[name] for part in parts)
            along = sum((f * r).sum() for f, r in zip(forget, retain, strict=True))
            squares = sum(r.square().sum() for r in retain).clamp_min(1e-30)
            conflict = (along / squares).clamp_max(0)
            probe.A.grad, probe.B.grad = (f + (1 - conflict) * r for f, r in zip(forget, retain, strict=True))
        return loss


class Undo(R2FTrainer):
    """
    Noise and self-distillation after the run (UNDO, arXiv 2506.06278): the weights are moved towards noise, and then
    learn the unlearned model's predictions on the retain set.
    """

    noise, steps, rate = 0.2, 60, 1e-3

    def train(self, *args: Any, **kwargs: Any) -> Any:
        done = super().train(*args, **kwargs)
        teacher, student = copy.deepcopy(self.model).eval(), self.model.train()
        probes = {id(weight) for probe in self.r2f_callback.step.modules.values() for weight in (probe.A, probe.B)}
        weights = [weight for weight in student.parameters() if id(weight) not in probes]
        generator = torch.Generator().manual_seed(self.args.seed)
        with torch.no_grad():
            for weight in weights:
                if weight.dim() > 1:
                    drawn = torch.randn(weight.shape, generator=generator) * weight.std()
                    weight.lerp_(drawn, self.noise)
        for weight in weights:
            weight.requires_grad_(True)
        optimizer = torch.optim.AdamW(weights, lr=self.rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, self.steps)
        retain, rows = list(self.splits.retain), random.Random(self.args.seed)
        for _ in range(self.steps):
            batch = self.data_collator(rows.sample(retain, min(32, len(retain))))
            kept = batch["labels"][:, 1:] != -100
            read = {name: batch[name] for name in ("input_ids", "attention_mask")}
            with torch.no_grad():
                wanted = teacher(**read).logits[:, :-1][kept].log_softmax(-1)
            found = student(**read).logits[:, :-1][kept].log_softmax(-1)
            F.kl_div(found, wanted, log_target=True, reduction="batchmean").backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        student.eval()
        return done


LEVERS: dict[str, type[R2FTrainer]] = {
    "views": HardestViews,
    "both sides": BothSides,
    "apart": SketchesApart,
    "undo": Undo,
}
