"""What a model says: log-probabilities of given answers, answers that it generates, and what goes on inside it."""

from .completions import (
    check_examples,
    context_length,
    item_probabilities,
    score_completions,
    score_examples,
    seconds_by_part,
)
from .generation import generate_answers, sample_answers, whole_answer
from .gradient_norms import gradient_norms
from .hidden_states import hidden_states
from .log_probs import completion_logits, completion_outputs, label_log_probs, row_sums, token_log_probs
from .multiple_choice import score_choices
from .patching import key_words, patching_falls
from .token_statistics import TokenStatistics, token_statistics


__all__ = [
    "TokenStatistics",
    "check_examples",
    "completion_logits",
    "completion_outputs",
    "context_length",
    "generate_answers",
    "gradient_norms",
    "hidden_states",
    "item_probabilities",
    "key_words",
    "label_log_probs",
    "patching_falls",
    "row_sums",
    "sample_answers",
    "score_choices",
    "score_completions",
    "score_examples",
    "seconds_by_part",
    "token_log_probs",
    "token_statistics",
    "whole_answer",
]
