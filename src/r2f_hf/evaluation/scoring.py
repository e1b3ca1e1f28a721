"""Log-probabilities of answers under a model, batched by length and shared out over processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..data.collator import ForgetRetainCollator, pad_token_id
from ..data.formatting import encode_example
from ..objectives import label_log_probs


@torch.inference_mode()
def score_completions(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    batch_size: int = 16,
    desc: str | None = None,
) -> np.ndarray:
    """
    Mean log-probability per token of each completion after its prompt: the logarithm of `P(a|q)^(1/|a|)`.

    The end-of-sequence token counts as a part of the completion, as in training.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model; it is used as it is, on its device and in its mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        prompts (`Sequence[str]`):
            The prompts.
        completions (`Sequence[str]`):
            The completions, one a prompt.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows in a forward pass. Rows of similar length share one.
        desc (`str`, *optional*):
            Title of the progress bar.

    Returns:
        `np.ndarray` of shape `(len(prompts),)`: fp64, natural logarithm.

    Raises:
        `ValueError`: If a row is longer than the model's context.
    """
    examples = [encode_example(tokenizer, *pair) for pair in zip(prompts, completions, strict=True)]
    context = model.config.get_text_config().max_position_embeddings
    for index, example in enumerate(examples):
        if len(example["input_ids"]) > context:
            raise ValueError(
                f"Row {index} of {desc or 'the rows to score'} has {len(example['input_ids'])} tokens, the model "
                f"reads at most {context}."
            )
    collator = ForgetRetainCollator(pad_token_id(tokenizer))

    def score(batch: list[int]) -> list[float]:
        inputs = {k: v.to(model.device) for k, v in collator([examples[index] for index in batch]).items()}
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        log_probs, tokens = label_log_probs(logits, inputs["labels"])
        return (log_probs.double() / tokens).tolist()

    return np.array(over_processes(score, [len(example["input_ids"]) for example in examples], batch_size, desc))


def over_processes(function: Any, lengths: Sequence[int], batch_size: int, desc: str | None) -> list[Any]:
    """
    Apply a function to batches of row indices, rows of similar length together, the batches shared out over processes.

    Args:
        function (`Callable[[list[int]], list]`):
            From the indices of a batch to a result a row.
        lengths (`Sequence[int]`):
            Length of each row.
        batch_size (`int`):
            Rows in a batch.
        desc (`str`, *optional*):
            Title of the progress bar.

    Returns:
        `list`: The results in the rows' order, the same on every process.
    """
    state = PartialState()
    # Longest first: a batch that does not fit in memory shows at once.
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mine = batches[state.process_index :: state.num_processes]
    found = []
    for batch in tqdm(mine, desc=desc, disable=not state.is_main_process, leave=False):
        found += zip(batch, function(batch), strict=True)
    return [result for _, result in sorted(gather_object(found), key=lambda pair: pair[0])]
