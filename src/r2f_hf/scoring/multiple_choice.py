"""Log-likelihoods of the choices of multiple-choice questions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.collator import pad_token_id
from ..data.formatting import IGNORE_INDEX, Encoded
from .completions import check_examples, score_examples


def score_choices(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    choices: Sequence[Sequence[str]],
    batch_size: int = 16,
    desc: str | None = None,
    add_bos: bool = True,
) -> list[list[float]]:
    """
    Compute the log-likelihood of each choice after its prompt, as lm-evaluation-harness does it.

    Prompt and choice are tokenized together, with a space between them, and the choice is not closed by any token.

    Args:
        model (`nn.Module`):
            The model. It is used on its own device and in its own mode (training or evaluation).
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            The whole text before the choices, without a space at its end. No template is used.
        choices (`Sequence[Sequence[str]]`):
            The choices of each row.
        batch_size (`int`, *optional*, defaults to `16`):
            Choices per forward pass. Those of one row share the reading of the prompt.
        desc (`str`, *optional*):
            Title of the progress bar.
        add_bos (`bool`, *optional*, defaults to `True`):
            Whether the special tokens that the tokenizer puts in front of a text stand there.

    Returns:
        `list[list[float]]`: For each row, and each choice, the sum over the choice's tokens (natural logarithm). All
        processes get all rows.

    Raises:
        `ValueError`: If a prompt or a choice is empty, or if a row is longer than the model's context.
    """
    examples, names = [], []
    for row, (prompt, texts) in enumerate(zip(prompts, choices, strict=True)):
        for number, choice in enumerate(texts):
            name = f"Row {row}, choice {number}"
            if not choice.strip() or not prompt.strip():
                raise ValueError(f"{name} has an empty prompt or choice. Fill it in, or leave the row out.")
            examples.append(_encode_choice(tokenizer, prompt, choice, add_bos))
            names.append(name)
    check_examples(model, examples, names)
    sums, _ = score_examples(model, examples, pad_token_id(tokenizer, model), batch_size, desc)
    flat = iter(sums.tolist())
    return [[next(flat) for _ in texts] for texts in choices]


def _encode_choice(tokenizer: PreTrainedTokenizerBase, prompt: str, choice: str, add_bos: bool) -> Encoded:
    given, whole = (
        tokenizer(text, add_special_tokens=add_bos)["input_ids"] for text in (prompt, f"{prompt} {choice}")
    )
    # Some tokenizers also close a text.
    if add_bos and whole[-1] == given[-1] == tokenizer.eos_token_id:
        given, whole = given[:-1], whole[:-1]
    return {"input_ids": whole, "labels": [IGNORE_INDEX] * len(given) + whole[len(given) :]}
