"""Log-probabilities of completions: each prompt is read once, and batches are distributed over processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..data.collator import ForgetRetainCollator, check_embedded, num_embeddings, pad_token_id
from ..data.formatting import IGNORE_INDEX, answer_start, encode_example
from ..data.rendering import ChatOptions
from .log_probs import completion_logits, forward_parameters, label_log_probs


# The names that models use for the argument that holds cached keys and values. The newer name comes first.
CACHE_NAMES = ("cache", "past_key_values")

# Those who measure how long each part takes.
_CLOCKS: list[dict[str, float]] = []


def context_length(model: nn.Module) -> int:
    """
    Find the length of the longest text that a model reads.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.

    Returns:
        `int`: In tokens. `sys.maxsize` if the configuration names no limit, as with recurrent models and with ALiBi.
    """
    return getattr(model.config.get_text_config(), "max_position_embeddings", sys.maxsize)


def check_examples(model: nn.Module, examples: Sequence[dict[str, Any]], names: Sequence[str] | None = None) -> None:
    """
    Refuse examples that a model cannot score.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
        examples (`Sequence[dict]`):
            Encoded examples with `input_ids` and `labels`.
        names (`Sequence[str]`, *optional*):
            Names of the rows for error messages. Defaults to their numbers.

    Raises:
        `ValueError`: If a row is longer than the model's context, has nothing to score, or has a token that the model
            has no embedding for.
    """
    names = [f"Row {index}" for index in range(len(examples))] if names is None else names
    context, size = context_length(model), num_embeddings(model)
    for name, example in zip(names, examples, strict=True):
        check_embedded(example["input_ids"], size, name)
        if all(label == IGNORE_INDEX for label in example["labels"][1:]):
            raise ValueError(f"{name} has no token to score: its answer is empty. Fill it in or leave the row out.")
        if len(example["input_ids"]) > context:
            raise ValueError(
                f"{name} has a question and an answer of {len(example['input_ids'])} tokens together, but the model "
                f"reads at most {context}. Shorten the row or leave it out."
            )


def score_completions(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    batch_size: int = 16,
    desc: str | None = None,
    names: Sequence[str] | None = None,
    options: ChatOptions | None = None,
) -> np.ndarray:
    """
    Compute the mean log-probability per token of each completion after its prompt: `1/|a| · log P(a|q)`.

    The token that ends an answer counts as part of the completion, as in training.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model. It is used on its own device and in its own mode (training or evaluation).
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            The prompts, one per row. A prompt that rows of one batch share is read once.
        completions (`Sequence[str]`):
            The completions, one per row.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass. Rows with the same prompt, or of similar length, share a pass.
        desc (`str`, *optional*):
            Title of the progress bar.
        names (`Sequence[str]`, *optional*):
            Names of the rows for error messages. Defaults to their numbers.
        options ([`ChatOptions`], *optional*):
            Arguments of the chat template, and a system prompt.

    Returns:
        `np.ndarray` of shape `(len(prompts),)`: fp64, natural logarithm.

    Raises:
        `ValueError`: If a row is longer than the model's context, has nothing to score, or has a token without an
            embedding.
    """
    names = [f"Row {index}" for index in range(len(prompts))] if names is None else names
    examples = [
        encode_example(tokenizer, prompt, completion, options=options, name=name)
        for prompt, completion, name in zip(prompts, completions, names, strict=True)
    ]
    check_examples(model, examples, names)
    log_probs, tokens = score_examples(model, examples, pad_token_id(tokenizer, model), batch_size, desc)
    return log_probs / tokens


@torch.no_grad()
def score_examples(
    model: nn.Module,
    examples: Sequence[dict[str, Any]],
    padding: int,
    batch_size: int,
    desc: str | None = None,
    disable: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Compute the log-probability of each example's labelled tokens, summed over the example.

    Args:
        model (`nn.Module`):
            The model. It is used on its own device and in its own mode (training or evaluation).
        examples (`Sequence[dict]`):
            Encoded examples with `input_ids` and `labels`. Labels are -100 where nothing is scored.
        padding (`int`):
            Id to pad with.
        batch_size (`int`):
            Rows per forward pass.
        desc (`str`, *optional*):
            Title of the progress bar.
        disable (`bool`, *optional*, defaults to `False`):
            Whether to show no progress bar.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The sums (fp64, natural logarithm) and the numbers of labelled tokens (int64),
        each of shape `(len(examples),)`.
    """
    device = next(model.parameters()).device
    # Nothing before the first token could predict it. In a text without a prompt the completion starts at the second.
    starts = [max(1, answer_start(example)) for example in examples]
    prompts = [tuple(example["input_ids"][:start]) for example, start in zip(examples, starts, strict=True)]
    completions = [torch.tensor(row["input_ids"][start:]) for row, start in zip(examples, starts, strict=True)]
    lengths = [len(example["input_ids"]) for example in examples]
    # Longest first: if a batch does not fit in memory, the first one shows it.
    order = sorted(range(len(examples)), key=lambda index: -lengths[index])
    collator = ForgetRetainCollator(padding)

    def score_rows(batch: list[int]) -> list[float]:
        inputs = {name: values.to(device) for name, values in collator([examples[i] for i in batch]).items()}
        logits, labels = completion_logits(model, inputs)
        return label_log_probs(logits, labels)[0].tolist()

    def score_prompts(batch: list[int]) -> list[float]:
        return prompted_log_probs(
            model, [prompts[i] for i in batch], [completions[i] for i in batch], padding, device
        ).tolist()

    # The choice is made once for all batches: if weights are sharded, all processes have to call the model equally
    # often. Plain texts share at most their first token, which needs no pass of its own.
    have_prompts = any(len(prompt) > 1 for prompt in prompts)
    # A conversation also has tokens without a label between its answers, and is read whole.
    one_answer = all(
        IGNORE_INDEX not in example["labels"][start:] for example, start in zip(examples, starts, strict=True)
    )
    share_prompts = have_prompts and one_answer and len(set(prompts)) < len(prompts) and can_continue(model)
    if share_prompts:
        # Put the rows of a prompt next to each other, at the place of its longest row.
        place: dict[tuple[int, ...], int] = {}
        for rank, index in enumerate(order):
            place.setdefault(prompts[index], rank)
        order.sort(key=lambda index: place[prompts[index]])
    sums = over_processes(score_prompts if share_prompts else score_rows, order, batch_size, desc, disable)
    tokens = [sum(label != IGNORE_INDEX for label in example["labels"][1:]) for example in examples]
    return np.array(sums), np.array(tokens)


def item_probabilities(log_probs: np.ndarray, tokens: np.ndarray, items: Sequence[int] | None) -> np.ndarray:
    """
    Length-normalised probabilities of rows, from those of their examples: a long text is several, its windows.

    Args:
        log_probs (`np.ndarray` of shape `(examples,)`):
            Summed log-probability of each example's labelled tokens.
        tokens (`np.ndarray` of shape `(examples,)`):
            How many there are.
        items (`Sequence[int]`, *optional*):
            Which row each example is of. Without it every example is a row.

    Returns:
        `np.ndarray` of shape `(rows,)`: From 0 to 1, in the order of the rows' numbers.
    """
    if items is None:
        return np.exp(log_probs / tokens)
    _, rows = np.unique(np.asarray(items), return_inverse=True)
    return np.exp(np.bincount(rows, weights=log_probs) / np.bincount(rows, weights=tokens))


def prompted_log_probs(
    model: nn.Module, prompts: Sequence[tuple[int, ...]], completions: Sequence[Tensor], padding: int, device: Any
) -> Tensor:
    """
    Compute the log-probability of each completion after its prompt, summed over its tokens.

    The model reads each different prompt once, and keeps its keys and values. In a second pass it continues from them
    and reads the completions.

    Args:
        model (`nn.Module`):
            A model for which [`can_continue`] is true.
        prompts (`Sequence[tuple[int, ...]]`):
            Token ids, at least one per row.
        completions (`Sequence[torch.Tensor]`):
            Token ids, int64, at least one per row.
        padding (`int`):
            Id to pad with.
        device (`torch.device`):
            Where to compute.

    Returns:
        `torch.Tensor` of shape `(len(prompts),)`: fp32, natural logarithm.
    """
    different = list(dict.fromkeys(prompts))
    row_of = {prompt: row for row, prompt in enumerate(different)}
    rows = torch.tensor([row_of[prompt] for prompt in prompts], device=device)
    width = max(len(prompt) for prompt in different)
    # Pad on the left, so that every completion starts right after its prompt.
    ids = torch.tensor([[padding] * (width - len(prompt)) + list(prompt) for prompt in different], device=device)
    lengths = torch.tensor([len(prompt) for prompt in different], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache = DynamicCache(config=model.config)
    name = next(name for name in CACHE_NAMES if name in forward_parameters(model))
    prompt_pass = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1, **{name: cache}
    )
    # The last token of a prompt predicts the first token of the completion.
    first = prompt_pass.logits[:, -1].float().log_softmax(-1)
    # Repeat each prompt's keys and values for its rows. Indices on the CPU work for layers on any device.
    cache.batch_select_indices(rows.cpu())

    labels = pad_sequence(list(completions), batch_first=True, padding_value=IGNORE_INDEX).to(device)
    # The last token of the longest completion predicts nothing. At least one column stays, so that the pass has input.
    given = labels[:, : max(1, labels.shape[1] - 1)]
    # Padding repeats the last position. Counting on through it could exceed the model's table of positions.
    offsets = (given != IGNORE_INDEX).long().cumsum(1) - 1
    logits = model(
        input_ids=given.masked_fill(given == IGNORE_INDEX, padding),
        attention_mask=torch.cat([mask[rows], (given != IGNORE_INDEX).long()], dim=1),
        position_ids=lengths[rows, None] + offsets.clamp_min(0),
        use_cache=True,
        **{name: cache},
    ).logits
    return label_log_probs(logits, labels)[0] + first[rows, labels[:, 0]]


def can_continue(model: nn.Module) -> bool:
    """
    Decide whether a model can read on from cached keys and values that several padded rows share.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model.

    Returns:
        `bool`: If it is `False`, [`score_examples`] lets the model read whole rows.
    """
    if isinstance(model, PeftModel):
        # Prompt tuning would put its virtual tokens in front of both passes.
        if model.active_peft_config.is_prompt_learning:
            return False
        model = model.get_base_model()
    # With gradient checkpointing in training mode, layers drop the cache. A recurrent state takes in the padding. (The
    # model's own property for checkpointing has another name in each version, so its modules are asked.)
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if (model.training and checkpointed) or model._is_stateful:
        return False
    # These rotary embeddings change with the length of what is read.
    rope = str(getattr(model.config, "rope_parameters", None))
    if "dynamic" in rope or "longrope" in rope:
        return False
    parameters = forward_parameters(model)
    layers = {type(layer) for layer in DynamicCache(config=model.config).layers}
    # Without explicit positions, padding on the left would shift them.
    return (
        {"position_ids", "logits_to_keep"} <= parameters
        and bool(parameters & set(CACHE_NAMES))
        and layers <= {DynamicLayer, DynamicSlidingWindowLayer}
    )


@contextmanager
def seconds_by_part() -> Iterator[dict[str, float]]:
    """
    Measure how long [`over_processes`] takes.

    Yields:
        `dict[str, float]`: Seconds by the title of the progress bar. They are filled in while the block runs.
    """
    clock: dict[str, float] = {}
    _CLOCKS.append(clock)
    try:
        yield clock
    finally:
        _CLOCKS.pop()


def over_processes(
    function: Callable[[list[int]], list[Any]],
    order: Sequence[int],
    batch_size: int,
    desc: str | None = None,
    disable: bool = False,
) -> list[Any]:
    """
    Apply a function to batches of rows. The batches are distributed over the processes.

    Args:
        function (`Callable[[list[int]], list]`):
            From the indices of a batch to a result per row.
        order (`Sequence[int]`):
            The rows' indices. Those that should share a batch are next to each other.
        batch_size (`int`):
            Rows per batch.
        desc (`str`, *optional*):
            Title of the progress bar.
        disable (`bool`, *optional*, defaults to `False`):
            Whether to show no progress bar.

    Returns:
        `list`: The results in the order of the indices, the same on every process.
    """
    state = PartialState()
    batches = [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    # If weights are sharded, every process has to call the model equally often. So the first batch may be computed
    # more than once, with the same results.
    batches += batches[:1] * (-len(batches) % state.num_processes)
    own_batches = batches[state.process_index :: state.num_processes]
    pairs, start = [], time.perf_counter()
    for batch in tqdm(own_batches, desc=desc, disable=disable or not state.is_main_process, leave=False):
        pairs += zip(batch, function(batch), strict=True)
    results = dict(gather_object(pairs))
    seconds, part = time.perf_counter() - start, desc or "rows"
    for clock in _CLOCKS:
        clock[part] = clock.get(part, 0.0) + seconds
    return [results[index] for index in range(len(order))]
