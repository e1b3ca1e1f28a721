"""Answers that a model generates, batched by length and distributed over processes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.collator import check_embedded, num_embeddings, pad_token_id
from ..data.formatting import encode_prompt, end_of_answer
from ..data.rendering import ChatOptions
from ..gradients.seeds import named_seed
from .completions import context_length, over_processes


Settings = dict[str, Any]

# Where an answer ends that goes on with a question of its own, as models without a chat template may do.
NEXT_TURN = re.compile(r"\n\s*Question:")
SENTENCE_END = re.compile(r"[.!?。！？…][\"'”’)]*(?=\s|$)")


@torch.no_grad()
def generate_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]],
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
        prompts (`Sequence[str | Sequence[int]]`):
            The questions, or token ids that stand before the answers as they are.
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

    def greedy(batch: list[int]) -> Settings:
        return {"do_sample": False}

    texts = _generate(model, tokenizer, prompts, greedy, max_new_tokens, batch_size, desc, options)
    return [text for (text,) in texts]


@torch.no_grad()
def sample_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]],
    samples: int,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    desc: str | None = None,
    options: ChatOptions | None = None,
    top_k: int = 0,
) -> list[list[str]]:
    """
    Draw several answers to each prompt from the model's distribution.

    The draws depend on the seed and the batch, and not on the number of processes.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model. It is used on its own device and in its own mode (training or evaluation).
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str | Sequence[int]]`):
            The prompts, or token ids that stand before the answers as they are.
        samples (`int`):
            Answers per prompt.
        temperature (`float`, *optional*, defaults to `1.0`):
            Above 1 the answers vary more, below 1 less.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest answer, in tokens.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per batch. Each has all of its samples there.
        desc (`str`, *optional*):
            Title of the progress bar.
        options ([`ChatOptions`], *optional*):
            Arguments of the chat template, and a system prompt.
        top_k (`int`, *optional*, defaults to `0`):
            How many of the likeliest tokens are drawn from. 0 stands for all.

    Returns:
        `list[list[str]]`: The answers of each prompt, without special tokens. All processes get all answers.

    Raises:
        `ValueError`: If a prompt leaves no room for `max_new_tokens` more tokens in the model's context.
    """

    def draw(batch: list[int]) -> Settings:
        torch.manual_seed(named_seed(seed, batch[0], "answers", "sampling"))
        # The model's own `generation_config` may cut off unlikely tokens: it is not used.
        return {
            "do_sample": True,
            "num_return_sequences": samples,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": 1.0,
        }

    with torch.random.fork_rng():
        return _generate(model, tokenizer, prompts, draw, max_new_tokens, batch_size, desc, options)


def whole_answer(tokenizer: PreTrainedTokenizerBase, text: str, max_new_tokens: int) -> str:
    """
    Leave out what is no answer in a generated text: a further question, and a sentence that was cut off.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        text (`str`):
            What a model generated.
        max_new_tokens (`int`):
            How long the text could get, in tokens.

    Returns:
        `str`: The answer; empty if it has no whole sentence.
    """
    text = NEXT_TURN.split(text)[0].strip()
    if len(tokenizer(text, add_special_tokens=False)["input_ids"]) < max_new_tokens - 1:
        return text
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def _generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: Callable[[list[int]], Settings],
    max_new_tokens: int,
    batch_size: int,
    desc: str | None,
    options: ChatOptions | None,
) -> list[list[str]]:
    """The answers to each prompt, with settings of `generate` for each batch."""
    encoded = [
        encode_prompt(tokenizer, prompt, options, f"Prompt {index} of {desc or 'those to answer'}")
        if isinstance(prompt, str)
        else list(prompt)
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

    # Not in inference mode: FSDP keeps what it allocates in its first forward pass, and training writes to it later.
    def generate(batch: list[int]) -> list[list[str]]:
        width = max(len(encoded[index]) for index in batch)
        # Pad on the left, so that every answer starts right after its prompt.
        ids = torch.tensor([[padding] * (width - len(encoded[index])) + encoded[index] for index in batch])
        lengths = torch.tensor([len(encoded[index]) for index in batch])
        mask = (torch.arange(width) >= width - lengths[:, None]).long()
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            pad_token_id=padding,
            eos_token_id=sorted(ends) or None,
            **settings(batch),
        )
        texts = [text.strip() for text in tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)]
        each = len(texts) // len(batch)
        return [texts[start : start + each] for start in range(0, len(texts), each)]

    # Longest first: if a batch does not fit in memory, the first one shows it.
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    return over_processes(generate, order, batch_size, desc)
