"""
What the model said before the first write, and what it was given to say it from: needed by NPO, KL, the stopping rule
and the updates, and computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.collator import ForgetRetainCollator
from ..data.dataset import Encoded
from ..data.formatting import IGNORE_INDEX
from ..objectives.retain import top_log_probs
from ..scoring.completions import score_examples
from ..scoring.log_probs import completion_logits, token_log_probs
from ..updates import RetainedInputs, all_results, watch_inputs


# Examples whose inputs are looked at, spread over the retain set.
INPUT_EXAMPLES = 96

# Of the longest in a batch this part is read at least.
INPUT_CUT = 0.9


def reference_log_probs(
    model: nn.Module, examples: Sequence[Encoded], collator: ForgetRetainCollator, batch_size: int, **tqdm_kwargs: Any
) -> Tensor:
    """
    Log-probability of each example's completion, summed over its tokens.

    Returns:
        `torch.Tensor` of shape `(len(examples),)`: fp32, on the CPU.
    """
    log_probs, _ = score_examples(model, examples, collator.pad_token_id, batch_size, **tqdm_kwargs)
    return torch.from_numpy(log_probs).float()


@torch.no_grad()
def reference_token_log_probs(
    model: nn.Module, examples: Sequence[Encoded], collator: ForgetRetainCollator, batch_size: int, **tqdm_kwargs: Any
) -> Tensor:
    """
    Log-probability of each token of each example's completion.

    Returns:
        `torch.Tensor` of shape `(tokens,)`: fp32, on the CPU, the examples one after the other.
    """
    # Rows of like length need little padding.
    order = sorted(range(len(examples)), key=lambda index: len(examples[index]["input_ids"]))
    found: list[Tensor] = []
    for batch in _batches(model, [examples[index] for index in order], collator, batch_size, **tqdm_kwargs):
        log_probs, rows = token_log_probs(*completion_logits(model, batch))
        counts = torch.bincount(rows, minlength=len(batch["labels"]))
        found += log_probs.cpu().split(counts.tolist())
    return torch.cat([piece for _, piece in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])])


@torch.no_grad()
def reference_top_tokens(
    model: nn.Module, examples: Sequence[Encoded], collator: ForgetRetainCollator, batch_size: int, **tqdm_kwargs: Any
) -> tuple[Tensor, Tensor]:
    """
    The most likely next tokens at every position of every example, for the KL objective.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Ids (int64) and log-probabilities (fp32) of shape `(tokens, k)` on the
        CPU, the examples one after the other.
    """
    ids, log_probs = [], []
    for batch in _batches(model, examples, collator, batch_size, **tqdm_kwargs):
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        batch_ids, batch_log_probs = top_log_probs(output.logits)
        mask = batch["attention_mask"].bool()
        ids.append(batch_ids[mask].cpu())
        log_probs.append(batch_log_probs[mask].cpu())
    return torch.cat(ids), torch.cat(log_probs)


@torch.no_grad()
def reference_inputs(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    examples: Sequence[Encoded],
    collator: ForgetRetainCollator,
    batch_size: int,
    seed: int,
    **tqdm_kwargs: Any,
) -> dict[str, RetainedInputs]:
    """
    What examples put into the modules: of at most [`INPUT_EXAMPLES`], on every process the same.

    Rows of like length are cut to the shortest of a batch: padding would be an input too, and in routed experts
    nothing tells it from text.

    Returns:
        `dict[str, RetainedInputs]`: By the modules' names, on their devices.
    """
    few = sorted(examples[:: -(-len(examples) // INPUT_EXAMPLES)], key=lambda example: len(example["input_ids"]))
    head = extract_model_from_parallel(model, keep_torch_compile=False).get_output_embeddings()
    batches: list[list[Encoded]] = []
    for row in few:
        full = not batches or len(batches[-1]) == batch_size
        if full or len(batches[-1][0]["input_ids"]) < INPUT_CUT * len(row["input_ids"]):
            batches.append([])
        batches[-1].append(row)
    with watch_inputs(modules, seed) as sketches:
        for rows in tqdm(batches, **tqdm_kwargs):
            shortest = len(rows[0]["input_ids"])
            cut = [{name: row[name][:shortest] for name in ("input_ids", "labels")} for row in rows]
            batch = {name: values.to(next(model.parameters()).device) for name, values in collator(cut).items()}
            if head not in modules.values():
                # Logits serve nothing.
                batch["labels"][:, :-1] = IGNORE_INDEX
            completion_logits(model, batch)
    return all_results(sketches)


def _batches(
    model: nn.Module, examples: Sequence[Encoded], collator: ForgetRetainCollator, batch_size: int, **tqdm_kwargs: Any
):
    device = next(model.parameters()).device
    for start in tqdm(range(0, len(examples), batch_size), **tqdm_kwargs):
        batch = collator(list(examples[start : start + batch_size]))
        yield {key: value.to(device) for key, value in batch.items()}
