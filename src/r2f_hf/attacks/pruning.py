"""Pruning: taking out the smallest weights may undo small updates."""

from __future__ import annotations

from ..distributed import whole_
from .base import UNATTACKED, Attack, Target, Values, linear_weights, needs_changeable_weights, restored


SHARES = (0.2, 0.3)


def prune(target: Target) -> Values:
    """Probability of the forget rows without the smallest weights of each linear layer."""
    values = {UNATTACKED: target.probabilities()}
    for share in SHARES:
        with restored(target.model):
            for weight in linear_weights(target.model).values():
                with whole_(weight) as whole:
                    sizes = whole.float().abs()
                    limit = sizes.flatten().kthvalue(max(1, int(share * sizes.numel()))).values
                    whole.masked_fill_(sizes <= limit, 0)
            values[f"{share:.0%} of the weights"] = target.probabilities()
    return values


PRUNING = Attack(
    meaning="Setting the smallest weights of each layer to zero brings back this much.",
    quantity="probability",
    run=prune,
    does_not_fit=needs_changeable_weights,
)
