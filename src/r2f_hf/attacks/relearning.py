"""Relearning: a little fine-tuning, after which the rest of the forget set should still be gone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from ..data.collator import ForgetRetainCollator
from ..data.formatting import Encoded
from .base import UNATTACKED, Attack, Target, Values, at_step, items_of, needs_all_weights, restored


# Part of the forget rows that the attacker has. What comes back is measured on the others.
SHARE = 0.1
STEPS = 20
BATCH_SIZE = 4
# What comes back is measured at this many steps of a fine-tuning, the last one among them.
POINTS = 5


class Setting(NamedTuple):
    """One way to fine-tune. `rows` is `"share"`, `"all"` (one epoch) or `"retain"`."""

    rows: str
    learning_rate: float
    lora: bool = False


SETTINGS = {
    "10% of the rows, rate 2e-5": Setting("share", 2e-5),
    "10% of the rows, rate 1e-4": Setting("share", 1e-4),
    "10% of the rows, LoRA, rate 1e-3": Setting("share", 1e-3, lora=True),
    "retain rows, rate 1e-4": Setting("retain", 1e-4),
    # As in OpenUnlearning (arXiv 2506.12618).
    "one epoch over all rows, rate 2e-5": Setting("all", 2e-5),
}


def share_of_rows(examples: Sequence[Encoded], seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """The examples of the rows that the attacker has, and those of the others."""
    items = items_of(examples) or list(range(len(examples)))
    rows = sorted(set(items))
    known = set(random.Random(seed).sample(rows, max(1, round(SHARE * len(rows)))))
    pairs = list(zip(items, examples, strict=True))
    return [each for item, each in pairs if item in known], [each for item, each in pairs if item not in known]


def finetune(
    model: nn.Module,
    batches: Sequence[Sequence[Encoded]],
    learning_rate: float,
    padding: int,
    seed: int,
    measure: Callable[[], list[float]],
) -> dict[int, list[float]]:
    """
    Fine-tune a model with AdamW at a constant rate, and measure it by step, at [`POINTS`] of them.

    On several processes each takes every batch, so that all have the same weights. The attacks are small.
    """
    measured = {}
    points = {-(-len(batches) * point // POINTS) for point in range(1, POINTS + 1)}
    collator = ForgetRetainCollator(padding)
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=learning_rate, weight_decay=0.0
    )
    model.train()
    # The generators of the caller go on as if nothing had been drawn.
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        for step, batch in enumerate(batches, 1):
            inputs = {name: value.to(device) for name, value in collator(list(batch)).items()}
            columns = ("input_ids", "attention_mask", "labels")
            model(**{name: inputs[name] for name in columns}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step in points:
                model.eval()
                measured[step] = measure()
                model.train()
    model.eval()
    return measured


def batches_of(examples: Sequence[Encoded], steps: int | None, seed: int) -> list[list[Encoded]]:
    """Shuffled batches: as many as there are steps, or those of one epoch."""
    generator = random.Random(seed)
    batches: list[list[Encoded]] = []
    while steps is None or len(batches) < steps:
        order = generator.sample(list(examples), len(examples))
        batches += [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]
        if steps is None:
            return batches
    return batches[:steps]


def relearn(target: Target) -> Values:
    """Probability of the forget rows that were not fine-tuned on (of all rows after an epoch over all)."""
    share, others = share_of_rows(target.forget, target.seed)
    if not others:
        # One row is all that there is. Then nothing else can come back with it.
        others = share
    values = {UNATTACKED: target.probabilities(others), f"{UNATTACKED}: all rows": target.probabilities()}
    for name, setting in SETTINGS.items():
        examples = {"share": share, "all": target.forget, "retain": target.retain}[setting.rows]
        if not examples:
            continue
        batches = batches_of(examples, None if setting.rows == "all" else STEPS, target.seed)
        suffix = ": all rows" if setting.rows == "all" else ""
        with restored(target.model):
            model: nn.Module = target.model
            if setting.lora:
                with torch.random.fork_rng():
                    torch.manual_seed(target.seed)
                    model = get_peft_model(target.model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
            else:
                model.requires_grad_(True)
            try:
                measure = partial(target.probabilities, target.forget if suffix else others, model)
                measured = finetune(model, batches, setting.learning_rate, target.padding, target.seed, measure)
            finally:
                if isinstance(model, PeftModel):
                    model.unload()
        values[f"{name}{suffix}"] = measured[len(batches)]
        values |= {at_step(f"{name}{suffix}", step): rows for step, rows in measured.items()}
    return values


RELEARNING = Attack(
    meaning=(
        "Fine-tuning on a tenth of the forgotten rows brings back this much of the others, as does one on harmless "
        "rows, or on all."
    ),
    quantity="probability",
    run=relearn,
    does_not_fit=needs_all_weights,
)
