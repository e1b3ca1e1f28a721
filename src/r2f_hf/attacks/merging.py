"""Merging back: between the unlearned model and the one from before, and beyond."""

from __future__ import annotations

from ..distributed import gathered, whole_
from .base import UNATTACKED, Attack, Target, Values, needs_all_weights, needs_original, restored


# Part of the way from the model to the original. More than 1 goes beyond it: task arithmetic with the difference.
PARTS = (0.25, 0.5, 1.5)


def merge(target: Target) -> Values:
    """Probability of the forget rows under a mixture with the weights from before unlearning."""
    assert target.original is not None
    values = {UNATTACKED: target.probabilities()}
    original = target.original.state_dict()
    for part in PARTS:
        with restored(target.model):
            # Tied weights have several names and are one tensor: it must not be moved twice.
            moved: set[int] = set()
            for name, weight in target.model.state_dict(keep_vars=True).items():
                if weight.is_floating_point() and id(weight) not in moved:
                    with whole_(weight) as whole:
                        whole.lerp_(gathered(original[name]).to(whole), part)
                    moved.add(id(weight))
            values[f"{part:.0%} of the way back"] = target.probabilities()
    return values


def does_not_fit(target: Target) -> str | None:
    """Why the two models cannot be merged, or `None`."""
    reason = needs_original(target) or needs_all_weights(target)
    if reason or target.original is None:
        return reason
    shapes, others = (
        {name: weight.shape for name, weight in model.state_dict().items()}
        for model in (target.model, target.original)
    )
    return None if shapes == others else "the original model has weights of other names or shapes"


MERGING = Attack(
    meaning="Averaging the weights with those from before unlearning, or going beyond them, brings back this much.",
    quantity="probability",
    run=merge,
    does_not_fit=does_not_fit,
)
