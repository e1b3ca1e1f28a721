"""Pruning: taking out the smallest weights may undo small updates."""

from __future__ import annotations

import torch

from .base import UNATTACKED, Attack, Target, Values, linear_weights, needs_plain_weights, restored


SHARES = (0.2, 0.3)


def prune(target: Target) -> Values:
    """Probability of the forget rows without the smallest weights of each linear layer."""
    values = {UNATTACKED: target.probabilities()}
    for share in SHARES:
        with restored(target.model):
            with torch.no_grad():
                for weight in linear_weights(target.model).values():
                    sizes = weight.float().abs().flatten()
                    limit = sizes.kthvalue(max(1, int(share * len(sizes)))).values
                    weight.masked_fill_(weight.float().abs() <= limit, 0)
            values[f"{share:.0%} of the weights"] = target.probabilities()
    return values


PRUNING = Attack(
    meaning="Setting the smallest weights of each layer to zero brings back this much.",
    quantity="probability",
    run=prune,
    does_not_fit=needs_plain_weights,
)
