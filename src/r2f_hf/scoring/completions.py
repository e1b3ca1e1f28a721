"""Log-probabilities of completions: prompts read once, rows batched by length, batches shared out over processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
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

from ..data.collator import ForgetRetainCollator, pad_token_id
from ..data.formatting import IGNORE_INDEX, encode_example
from .log_probs import completion_logits, forward_parameters, label_log_probs


# What models call the keys and values that they read on from, the newer name first.
CACHE_NAMES = ("cache", "past_key_values")


def context_length(model: nn.Module) -> int:
    """
    The longest text that a model reads, in tokens. Recurrent ones, and those with ALiBi, name no limit.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model.
    """
    return getattr(model.config.get_text_config(), "max_position_embeddings", sys.maxsize)


def score_completions(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    batch_size: int = 16,
    desc: str | None = None,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """
    Mean log-probability per token of each completion after its prompt: the logarithm of `P(a|q)^(1/|a|)`.

    The token that ends an answer counts as a part of the completion, as in training.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model; it is used as it is, on its device and in its mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            The prompts. What several rows have in common is read once.
        completions (`Sequence[str]`):
            The completions, one a prompt.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows in a forward pass. Rows of one prompt, or of similar length, share one.
        desc (`str`, *optional*):
            Title of the progress bar.
        names (`Sequence[str]`, *optional*):
            What an error calls the rows. Defaults to their numbers.

    Returns:
        `np.ndarray` of shape `(len(prompts),)`: fp64, natural logarithm.

    Raises:
        `ValueError`: If a row is longer than the model's context, or has nothing to score.
    """
    examples = [encode_example(tokenizer, *pair) for pair in zip(prompts, completions, strict=True)]
    context = context_length(model)
    for index, example in enumerate(examples):
        name = f"Row {index}" if names is None else names[index]
        if all(label == IGNORE_INDEX for label in example["labels"][1:]):
            raise ValueError(f"{name} has no token to score: its answer is empty.")
        if len(example["input_ids"]) > context:
            raise ValueError(
                f"{name} has a question and an answer of {len(example['input_ids'])} tokens together, the model reads "
                f"at most {context}."
            )
    log_probs, tokens = score_examples(model, examples, pad_token_id(tokenizer), batch_size, desc)
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
    Log-probability of each example's labelled tokens, summed.

    Args:
        model (`nn.Module`):
            The model; it is used as it is, on its device and in its mode.
        examples (`Sequence[dict]`):
            Encoded examples: `input_ids` and `labels`, whose tokens without a label come first.
        padding (`int`):
            Id to pad with.
        batch_size (`int`):
            Rows in a forward pass.
        desc (`str`, *optional*):
            Title of the progress bar.
        disable (`bool`, *optional*, defaults to `False`):
            Whether to show none.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The sums (fp64, natural logarithm) and the numbers of labelled tokens, each of
        shape `(len(examples),)`.
    """
    device = next(model.parameters()).device
    # The first token of a text without a prompt has nothing before it that could predict it.
    starts = [max(1, example["labels"].count(IGNORE_INDEX)) for example in examples]
    prompts = [tuple(example["input_ids"][:start]) for example, start in zip(examples, starts, strict=True)]
    completions = [torch.tensor(row["input_ids"][start:]) for row, start in zip(examples, starts, strict=True)]
    lengths = [len(example["input_ids"]) for example in examples]
    # Longest first: a batch that does not fit in memory shows at once.
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

    # One way for all batches: where weights are sharded, all processes have to call the model equally often.
    several = any(len(prompt) > 1 for prompt in prompts)  # plain texts share at most a first token
    share = several and len(set(prompts)) < len(prompts) and can_continue(model)
    if share:
        # A prompt's rows side by side, where its longest row belongs.
        place: dict[tuple[int, ...], int] = {}
        for rank, index in enumerate(order):
            place.setdefault(prompts[index], rank)
        order.sort(key=lambda index: place[prompts[index]])
    sums = over_processes(score_prompts if share else score_rows, order, batch_size, desc, disable)
    return np.array(sums), np.array([len(completion) for completion in completions])


def prompted_log_probs(
    model: nn.Module, prompts: Sequence[tuple[int, ...]], completions: Sequence[Tensor], padding: int, device: Any
) -> Tensor:
    """
    Log-probability of each completion after its prompt, summed; each different prompt passes through the model once.

    Args:
        model (`nn.Module`):
            A model that [`can_continue`].
        prompts (`Sequence[tuple[int, ...]]`):
            Token ids, at least one a row.
        completions (`Sequence[torch.Tensor]`):
            Token ids, int64, at least one a row.
        padding (`int`):
            Id to pad with.
        device (`torch.device`):
            Where to compute.

    Returns:
        `torch.Tensor` of shape `(len(prompts),)`: fp32.
    """
    different = list(dict.fromkeys(prompts))
    row_of = {prompt: row for row, prompt in enumerate(different)}
    rows = torch.tensor([row_of[prompt] for prompt in prompts], device=device)
    width = max(len(prompt) for prompt in different)
    # On the left, so that every completion starts right after its prompt.
    ids = torch.tensor([[padding] * (width - len(prompt)) + list(prompt) for prompt in different], device=device)
    lengths = torch.tensor([len(prompt) for prompt in different], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache = DynamicCache(config=model.config)
    name = next(name for name in CACHE_NAMES if name in forward_parameters(model))
    read = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1, **{name: cache}
    )
    first = read.logits[:, -1].float().log_softmax(-1)
    # On the CPU, which layers on any device take.
    cache.batch_select_indices(rows.cpu())

    labels = pad_sequence(list(completions), batch_first=True, padding_value=IGNORE_INDEX).to(device)
    # The last token predicts nothing; a completion of one token still has its place in the batch.
    given = labels[:, : max(1, labels.shape[1] - 1)]
    # Padding repeats the last position: counting on through it could leave the model's table of positions.
    following = (given != IGNORE_INDEX).long().cumsum(1) - 1
    logits = model(
        input_ids=given.masked_fill(given == IGNORE_INDEX, padding),
        attention_mask=torch.cat([mask[rows], (given != IGNORE_INDEX).long()], dim=1),
        position_ids=lengths[rows, None] + following.clamp_min(0),
        use_cache=True,
        **{name: cache},
    ).logits
    return label_log_probs(logits, labels)[0] + first[rows, labels[:, 0]]


def can_continue(model: nn.Module) -> bool:
    """Whether a model reads on from keys and values that several rows share, whatever the rows' padding."""
    if isinstance(model, PeftModel):
        # Virtual tokens stand in front of each of the two passes.
        if model.active_peft_config.is_prompt_learning:
            return False
        model = model.get_base_model()
    # Checkpointed in training mode, layers drop the cache; a recurrent state takes padding in; some rotary embeddings
    # change with the length of what is read. (The model's own property has another name in each version.)
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if (model.training and checkpointed) or model._is_stateful:
        return False
    rope = str(getattr(model.config, "rope_parameters", None))
    if "dynamic" in rope or "longrope" in rope:
        return False
    known = forward_parameters(model)
    layers = {type(layer) for layer in DynamicCache(config=model.config).layers}
    # Without explicit positions padding would shift them.
    return (
        {"position_ids", "logits_to_keep"} <= known
        and bool(known & set(CACHE_NAMES))
        and layers <= {DynamicLayer, DynamicSlidingWindowLayer}
    )


def over_processes(
    function: Callable[[list[int]], list[Any]],
    order: Sequence[int],
    batch_size: int,
    desc: str | None = None,
    disable: bool = False,
) -> list[Any]:
    """
    Apply a function to batches of rows, the batches shared out over processes.

    Args:
        function (`Callable[[list[int]], list]`):
            From the indices of a batch to a result a row.
        order (`Sequence[int]`):
            The rows' indices, those that should share a batch side by side.
        batch_size (`int`):
            Rows in a batch.
        desc (`str`, *optional*):
            Title of the progress bar.
        disable (`bool`, *optional*, defaults to `False`):
            Whether to show none.

    Returns:
        `list`: The results by index, the same on every process.
    """
    state = PartialState()
    batches = [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    # As many calls on every process, for models whose weights are sharded; what is computed twice is the same twice.
    batches += batches[:1] * (-len(batches) % state.num_processes)
    mine = batches[state.process_index :: state.num_processes]
    found = []
    for batch in tqdm(mine, desc=desc, disable=disable or not state.is_main_process, leave=False):
        found += zip(batch, function(batch), strict=True)
    results = dict(gather_object(found))
    return [results[index] for index in range(len(order))]
