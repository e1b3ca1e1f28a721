"""Reversed guidance: whoever holds the models from before and after can ask what the difference says."""

from __future__ import annotations

import torch

from ..data.collator import ForgetRetainCollator
from ..scoring import completion_logits, label_log_probs
from ..scoring.completions import over_processes
from .base import Attack, Target, Values, needs_original, row_probabilities


# How far the logits go from those of the model after, through those of the model before, and beyond.
STRENGTHS = (0.5, 1.0, 2.0)


@torch.no_grad()
def guide(target: Target) -> Values:
    """
    Probability of the forget rows under the logits `before + w * (before - after)` (arXiv 2505.24379).

    The model before alone is `no attack`: it is what such an attacker holds anyway.
    """
    assert target.original is not None
    original, model, examples = target.original, target.model, target.forget
    collator = ForgetRetainCollator(target.padding)

    def score(batch: list[int]) -> list[list[float]]:
        inputs = {name: value.to(model.device) for name, value in collator([examples[i] for i in batch]).items()}
        (before, labels), (after, _) = completion_logits(original, inputs), completion_logits(model, inputs)
        before, after = before.float(), after.float()
        scores = [
            label_log_probs(torch.lerp(after, before, 1 + strength), labels)[0].tolist()
            for strength in (0.0, *STRENGTHS)
        ]
        return [list(each) for each in zip(*scores, strict=True)]

    order = sorted(range(len(examples)), key=lambda index: -len(examples[index]["input_ids"]))
    log_probs = torch.tensor(over_processes(score, order, target.batch_size, disable=True), dtype=torch.float64)
    tokens = torch.tensor([sum(label >= 0 for label in example["labels"][1:]) for example in examples])
    names = ("no attack", *(f"strength {strength:g}" for strength in STRENGTHS))
    return {
        name: row_probabilities(column.numpy(), tokens.numpy(), examples)
        for name, column in zip(names, log_probs.T, strict=True)
    }


def does_not_fit(target: Target) -> str | None:
    """Why the two models cannot be combined, or `None`."""
    reason = needs_original(target)
    if reason or target.original is None:
        return reason
    sizes = [model.get_output_embeddings().weight.shape[0] for model in (target.model, target.original)]
    return None if sizes[0] == sizes[1] else "the original model has a vocabulary of another size"


REVERSED_GUIDANCE = Attack(
    meaning=(
        "Whoever holds both models, before and after, gets this much by following what the model after avoids; "
        "`no attack` is the model before by itself."
    ),
    quantity="probability",
    run=guide,
    does_not_fit=does_not_fit,
    has_comeback=False,
)
