"""What the objectives need of the model before the first write, and answers that it writes for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..data.collator import ForgetRetainCollator
from ..data.formatting import Encoded
from ..data.ngrams import AnswerNgrams
from ..data.rendering import ChatOptions
from ..data.second_answers import instructions, usable_answers
from ..data.splits import Splits
from ..objectives import ForgetObjective, RetainObjective
from ..objectives.base import SecondAnswers
from ..scoring.generation import sample_answers
from .references import (
    reference_hidden_states,
    reference_margin,
    reference_token_log_probs,
    reference_top_tokens,
)


# How often the model is asked for second answers, and by how much warmer each time, where it repeats its own.
ATTEMPTS = 4
WARMER = 1.5


def objective_references(
    model: nn.Module,
    forget: ForgetObjective,
    retain: RetainObjective | None,
    splits: Splits,
    collator: ForgetRetainCollator,
    batch_size: int,
    disable: bool,
) -> dict[str, Tensor]:
    """
    Compute what the objectives declare that they need.

    Args:
        model (`nn.Module`):
            A causal language model, in evaluation mode.
        forget ([`ForgetObjective`]):
            The forget objective.
        retain ([`RetainObjective`], *optional*):
            The retain objective.
        splits ([`Splits`]):
            The encoded sets, with second answers if the objective needs them.
        collator ([`ForgetRetainCollator`]):
            Pads the batches.
        batch_size (`int`):
            Rows per forward pass.
        disable (`bool`):
            Whether to show no progress bars.

    Returns:
        `dict[str, torch.Tensor]`: Tensors of [`References`].
    """
    common: dict[str, Any] = {"collator": collator, "batch_size": batch_size, "disable": disable}
    tensors: dict[str, Tensor] = {}
    if forget.needs_reference:
        for name, examples in (("forget", splits.views), ("second", splits.second)):
            if examples:
                tensors[f"{name}_log_probs"] = reference_token_log_probs(
                    model, examples, **common, desc=f"Reference of the {name} set"
                )
    for name, k, examples in _distributions(forget, retain, splits):
        ids, tensors[f"{name}_top_log_probs"] = reference_top_tokens(
            model, examples, **common, k=k, desc=f"Reference of the {name} set"
        )
        if ids is not None:
            tensors[f"{name}_top_ids"] = ids
    if forget.needs_reference_norms:
        desc = "Hidden states of the forget set"
        states = reference_hidden_states(model, splits.views, **common, layer=forget.layer, desc=desc)
        tensors["forget_norms"] = torch.cat([batch.norm(dim=-1) for batch in states])
    if retain is not None and retain.needs_hidden_states:
        desc = "Hidden states of the retain set"
        states = reference_hidden_states(model, splits.retain, **common, layer=retain.layer, desc=desc)
        tensors["retain_hidden_states"] = torch.cat([*states])
    if forget.needs_ignorance:
        tensors["forget_ignorance"] = _ignorance(model, forget, splits, **common)
    if forget.needs_holdout_margin:
        tensors["holdout_margin"] = reference_margin(
            model, splits.holdout, **common, desc="Margins of the holdout set"
        )
    return tensors


def _ignorance(model: nn.Module, forget: ForgetObjective, splits: Splits, **common: Any) -> Tensor:
    """What the retain set's answers predict of each token of the forget set, with a mean that is the objective's."""
    ngrams = AnswerNgrams(splits.retain)
    log_probs = torch.tensor([value for view in splits.views for value in ngrams.log_probs(view)])
    level = forget.level
    if level is None and splits.holdout:
        holdout = reference_token_log_probs(model, splits.holdout, **common, desc="Level of the holdout set")
        level = float(holdout.mean())
    return log_probs if level is None else log_probs * (level / log_probs.mean())


def _distributions(
    forget: ForgetObjective, retain: RetainObjective | None, splits: Splits
) -> Iterator[tuple[str, int | None, list[Encoded]]]:
    """The sets whose next-token distributions the objectives compare with, and how many tokens of them."""
    if forget.needs_distribution:
        yield "forget", forget.k, splits.views
    if forget.needs_second_distribution:
        yield "second", forget.k, [second.get("teacher", second) for second in splits.second]
    if retain is not None and retain.needs_reference:
        yield "retain", retain.k, splits.retain


def written_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    objective: SecondAnswers,
    splits: Splits,
    seed: int,
    batch_size: int,
    options: ChatOptions,
) -> list[list[str]]:
    """
    Let the model write second answers to the forget set's prompts.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        objective ([`SecondAnswers`]):
            Says what the model is asked, and how many answers it writes.
        splits ([`Splits`]):
            The forget set.
        seed (`int`):
            Seed of the draws.
        batch_size (`int`):
            Rows per batch.
        options ([`ChatOptions`]):
            Arguments of the chat template, and a system prompt.

    Returns:
        `list[list[str]]`: The answers to each row, the same on all processes.

    Raises:
        `ValueError`: If a prompt leaves no room for an answer, or if nothing of what was written can be used.
    """
    prompts = instructions(splits, objective.instruction)
    answers: list[list[str]] = [[] for _ in prompts]
    for attempt in range(ATTEMPTS):
        missing = [row for row, found in enumerate(answers) if not found]
        if not missing:
            break
        # A model that knows an answer by heart gives it again and again.
        written = sample_answers(
            model,
            tokenizer,
            [prompts[row] for row in missing],
            objective.num_answers,
            objective.temperature * WARMER**attempt,
            seed + attempt,
            objective.max_new_tokens,
            batch_size,
            desc="Second answers",
            options=options,
        )
        for row, texts in zip(missing, written, strict=True):
            answers[row] = usable_answers(splits, row, texts, objective.may_repeat)
    missing = [row for row, found in enumerate(answers) if not found]
    if missing:
        raise ValueError(
            f"The model wrote no second answer to forget[{missing[0]}] that differs from its own, nor to "
            f"{len(missing) - 1} other rows. Raise the options `num_answers` or `temperature` of the "
            '`forget_objective`, or set `answers` to "refusals" or to a column.'
        )
    return answers
