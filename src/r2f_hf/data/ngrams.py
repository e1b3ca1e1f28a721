"""What an answer looks like to someone who has read only the retain set: n-grams of its answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from .formatting import IGNORE_INDEX, Encoded


# Weights of the estimates from no, one, two and three tokens before. Those without data share theirs out.
WEIGHTS = (0.05, 0.15, 0.3, 0.5)

# The class of tokens that stand in the prompt, whatever they are: who does not know can copy them.
COPIED = -1
START = -2
# Most that is believed of any token, and least.
MOST, LEAST = 0.98, 1e-3


class AnswerNgrams:
    """
    An n-gram model of answers, interpolated over the orders 1 to 4.

    Args:
        examples (`Sequence[dict]`):
            Encoded examples. Only labelled tokens count.
    """

    def __init__(self, examples: Sequence[Encoded]):
        self._counts: list[Counter[tuple[int, ...]]] = [Counter() for _ in WEIGHTS]
        self._contexts: list[Counter[tuple[int, ...]]] = [Counter() for _ in WEIGHTS]
        for example in examples:
            classes = _classes(example)
            for end in range(len(WEIGHTS) - 1, len(classes)):
                for order, (counts, contexts) in enumerate(zip(self._counts, self._contexts, strict=True)):
                    context = tuple(classes[end - order : end])
                    contexts[context] += 1
                    counts[(*context, classes[end])] += 1

    def log_probs(self, example: Encoded) -> list[float]:
        """
        Log-probability of each token that a model has to predict.

        Args:
            example (`dict`):
                An encoded example.

        Returns:
            `list[float]`: Natural logarithms, from log 0.001 to log 0.98, one per labelled token.
        """
        classes, found = _classes(example), []
        for end in range(len(WEIGHTS) - 1, len(classes)):
            if classes[end] == COPIED:
                found.append(math.log(MOST))
                continue
            total = weight = 0.0
            for order, share in enumerate(WEIGHTS):
                context = tuple(classes[end - order : end])
                seen = self._contexts[order][context]
                if seen:
                    total += share * self._counts[order][(*context, classes[end])] / seen
                    weight += share
            found.append(math.log(min(max(total / weight if weight else 0.0, LEAST), MOST)))
        return found


def _classes(example: Encoded) -> list[int]:
    """The labelled tokens behind three that mark the start. What the prompt has too is one class."""
    prompt = {
        token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label == IGNORE_INDEX
    }
    # Nothing predicts the first token, whether or not it is labelled.
    tokens = [label for label in example["labels"][1:] if label != IGNORE_INDEX]
    return [START] * (len(WEIGHTS) - 1) + [COPIED if token in prompt else token for token in tokens]
