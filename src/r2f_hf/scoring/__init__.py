"""What a model says: log-probabilities of given answers, and answers that it generates."""

from .completions import context_length, item_probabilities, score_completions, score_examples
from .generation import generate_answers
from .log_probs import completion_logits, label_log_probs, row_sums, token_log_probs


__all__ = [
    "completion_logits",
    "context_length",
    "generate_answers",
    "item_probabilities",
    "label_log_probs",
    "row_sums",
    "score_completions",
    "score_examples",
    "token_log_probs",
]
