"""Answers that a model generates greedily, batched by length and distributed over processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.collator import check_embedded, num_embeddings, pad_token_id
from ..data.formatting import encode_prompt, end_of_answer
from ..data.rendering import ChatOptions
from .completions import context_length, over_processes


@torch.inference_mode()
def generate_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    batch_size: int = 16,
    desc: str | None = None,
    options: ChatOptions | None = None,
) -> list[str]:
    """
    Generate a model's answers with greedy decoding.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model. It is used on its own device and in its own mode (training or evaluation).
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            The prompts.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per batch. Prompts of similar length share a batch.
        desc (`str`, *optional*):
            Title of the progress bar.
        options ([`ChatOptions`], *optional*):
            Arguments of the chat template, and a system prompt.

    Returns:
        `list[str]`: The answers in the order of the prompts, without special tokens. All processes get all answers.

    Raises:
        `ValueError`: If a prompt leaves no room for `max_new_tokens` more tokens in the model's context, or has a
            token without an embedding.
    """
    encoded = [
        encode_prompt(tokenizer, prompt, options, f"Prompt {index} of {desc or 'those to answer'}")
        for index, prompt in enumerate(prompts)
    ]
    context, size = context_length(model), num_embeddings(model)
    for index, ids in enumerate(encoded):
        check_embedded(ids, size, f"Prompt {index} of {desc or 'those to answer'}")
        if len(ids) + max_new_tokens > context:
            raise ValueError(
                f"Prompt {index} of {desc or 'those to answer'} has {len(ids)} tokens, which leaves no room for "
                f"`max_new_tokens={max_new_tokens}`: the model reads at most {context}. Lower `max_new_tokens`, or "
                "shorten the prompt."
            )
    padding = pad_token_id(tokenizer, model)
    ends = {end for end in (tokenizer.eos_token_id, end_of_answer(tokenizer, options)) if end is not None}

    def generate(batch: list[int]) -> list[str]:
        width = max(len(encoded[index]) for index in batch)
        # Pad on the left, so that every answer starts right after its prompt.
        ids = torch.tensor([[padding] * (width - len(encoded[index])) + encoded[index] for index in batch])
        lengths = torch.tensor([len(encoded[index]) for index in batch])
        mask = (torch.arange(width) >= width - lengths[:, None]).long()
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=padding,
            eos_token_id=sorted(ends) or None,
        )
        return [text.strip() for text in tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)]

    # Longest first: if a batch does not fit in memory, the first one shows it.
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    return over_processes(generate, order, batch_size, desc)
