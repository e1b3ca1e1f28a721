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
from ..data.splits import num_labels
from ..objectives.retain import top_log_probs
from ..scoring.completions import score_examples
from ..scoring.log_probs import completion_logits, token_log_probs
from ..updates import RetainedInputs, all_results, watch_inputs


# Examples whose inputs are looked at, spread over the retain set.
INPUT_EXAMPLES = 96

# Of the longest in a batch this part is read at least.
INPUT_CUT = 0.9


class References:
    """
    What the model said before unlearning, looked up by row. It is kept on the CPU.

    Args:
        tensors (`dict[str, torch.Tensor]`):
            By name: `forget_log_probs` of each labelled token; `retain_top_ids` and `retain_top_log_probs`, the most
            likely tokens at each; `holdout_log_probs` and `retain_log_probs`, summed over each row that the stopping
            rule looks at. Those that are not needed are not there.
        forget (`Sequence[dict]`):
            The encoded forget examples, all views of all rows.
        retain (`Sequence[dict]`):
            The encoded retain examples.
    """

    def __init__(self, tensors: dict[str, Tensor], forget: Sequence[Encoded] = (), retain: Sequence[Encoded] = ()):
        self.tensors = tensors
        examples = {"forget_log_probs": forget, "retain_top_ids": retain, "retain_top_log_probs": retain}
        self._rows = {
            name: tensors[name].split([num_labels(example) for example in examples[name]])
            for name in examples.keys() & tensors.keys()
        }

    def of_rows(self, name: str, rows: Tensor) -> Tensor | None:
        """
        What is known of a batch's rows.

        Args:
            name (`str`):
                Which of the tensors that have an entry per labelled token.
            rows (`torch.Tensor` of shape `(rows,)`):
                Numbers of the examples, `row` in a batch.

        Returns:
            `torch.Tensor` of shape `(tokens, ...)`, *optional*: Row by row, on the device of `rows`.
        """
        if name not in self._rows:
            return None
        found = [self.tensors[name][:0], *(self._rows[name][row] for row in rows.tolist())]
        return torch.cat(found).to(rows.device)


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
    model: nn.Module,
    examples: Sequence[Encoded],
    collator: ForgetRetainCollator,
    batch_size: int,
    k: int,
    **tqdm_kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """
    The most likely tokens in place of each token of each example's completion, for the KL objective.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Ids (int64) and log-probabilities (fp32) of shape `(tokens, k)` on the
        CPU, the examples one after the other.
    """
    found = []
    for batch in _batches(model, examples, collator, batch_size, **tqdm_kwargs):
        logits, labels = completion_logits(model, batch)
        found.append([each.cpu() for each in top_log_probs(logits[:, :-1][labels[:, 1:] != IGNORE_INDEX], k)])
    ids, log_probs = zip(*found, strict=True)
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
