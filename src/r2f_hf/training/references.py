"""
What the model was like before the first write, computed once: its predictions and the inputs of its modules.

The losses (NPO, TNPO, KL) and the stopping rule compare with the predictions. The updates protect the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.collator import ForgetRetainCollator
from ..data.formatting import IGNORE_INDEX, Encoded
from ..data.splits import num_labels
from ..objectives.retain import top_log_probs
from ..scoring.completions import score_examples
from ..scoring.log_probs import completion_logits, token_log_probs
from ..updates import RetainedInputs, all_results, watch_inputs


# At most this many retain examples are read for the modules' inputs. They are spread over the retain set.
INPUT_EXAMPLES = 96

# Examples of one batch are cut to its shortest. A longer example joins only if at least this part of it is left.
INPUT_CUT = 0.9


class References:
    """
    What the model said before unlearning, looked up by row. The tensors stay on the CPU.

    Args:
        tensors (`dict[str, torch.Tensor]`):
            The references by name. Those that no objective or rule needs are absent.

            - `forget_log_probs` of shape `(tokens,)`: log-probability of each labelled token of the forget examples;
            - `retain_top_ids` and `retain_top_log_probs` of shape `(tokens, k)`: the most likely tokens at each
              labelled token of the retain examples, and their log-probabilities;
            - `holdout_log_probs` and `retain_log_probs` of shape `(rows,)`: log-probabilities of the completions that
              the stopping rule compares with, summed over their tokens.
        forget (`Sequence[dict]`):
            The encoded forget examples: all views of all rows.
        retain (`Sequence[dict]`):
            The encoded retain examples.
    """

    def __init__(self, tensors: dict[str, Tensor], forget: Sequence[Encoded] = (), retain: Sequence[Encoded] = ()):
        self.tensors = tensors
        # The tensors hold the tokens of all examples one after the other: cut them into one piece per example.
        examples = {"forget_log_probs": forget, "retain_top_ids": retain, "retain_top_log_probs": retain}
        self._rows = {
            name: tensors[name].split([num_labels(example) for example in examples[name]])
            for name in examples.keys() & tensors.keys()
        }

    def of_rows(self, name: str, rows: Tensor) -> Tensor | None:
        """
        Look up the references of a batch's rows.

        Args:
            name (`str`):
                `"forget_log_probs"`, `"retain_top_ids"` or `"retain_top_log_probs"`: the tensors that have an entry
                per labelled token.
            rows (`torch.Tensor` of shape `(rows,)`):
                Numbers of the examples: `row` of a batch of [`ForgetRetainCollator`].

        Returns:
            `torch.Tensor` of shape `(tokens, ...)`, *optional*: The entries of all labelled tokens, row by row, on the
            device of `rows`. `None` if there is no such tensor.
        """
        if name not in self._rows:
            return None
        # The empty piece in front gives the right dtype and shape if there are no rows.
        pieces = [self.tensors[name][:0], *(self._rows[name][row] for row in rows.tolist())]
        return torch.cat(pieces).to(rows.device)


def check_references(tensors: Mapping[str, Tensor]) -> None:
    """
    Refuse a model that gives no numbers to begin with.

    Args:
        tensors (`Mapping[str, torch.Tensor]`):
            What it said before unlearning.

    Raises:
        `ValueError`: Before any weight has changed.
    """
    spoilt = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if spoilt:
        raise ValueError(
            f"What the model makes of the rows is NaN or infinite before the first step ({spoilt[0]}), so that there "
            "is nothing to forget and no gradient. Its weights or its activations are too large: load it in another "
            "`dtype` (bf16 or fp32), and leave `fp16` out."
        )


def reference_log_probs(
    model: nn.Module, examples: Sequence[Encoded], collator: ForgetRetainCollator, batch_size: int, **tqdm_kwargs: Any
) -> Tensor:
    """
    Compute the log-probability of each example's completion, summed over its tokens.

    Args:
        model (`nn.Module`):
            A causal language model, in evaluation mode.
        examples (`Sequence[dict]`):
            Encoded examples.
        collator ([`ForgetRetainCollator`]):
            Knows the id to pad with.
        batch_size (`int`):
            Rows per forward pass.
        tqdm_kwargs (*optional*):
            `desc` and `disable` of the progress bar.

    Returns:
        `torch.Tensor` of shape `(len(examples),)`: Natural logarithms, fp32, on the CPU.
    """
    log_probs, _ = score_examples(model, examples, collator.pad_token_id, batch_size, **tqdm_kwargs)
    return torch.from_numpy(log_probs).float()


@torch.no_grad()
def reference_token_log_probs(
    model: nn.Module, examples: Sequence[Encoded], collator: ForgetRetainCollator, batch_size: int, **tqdm_kwargs: Any
) -> Tensor:
    """
    Compute the log-probability of each token of each example's completion.

    Args:
        model (`nn.Module`):
            A causal language model, in evaluation mode.
        examples (`Sequence[dict]`):
            Encoded examples.
        collator ([`ForgetRetainCollator`]):
            Pads the batches.
        batch_size (`int`):
            Rows per forward pass.
        tqdm_kwargs (*optional*):
            Arguments of the progress bar.

    Returns:
        `torch.Tensor` of shape `(tokens,)`: Natural logarithms, fp32, on the CPU. The examples follow one another in
        the order given.
    """
    # Rows of similar length need little padding. The result is put back into the order given.
    order = sorted(range(len(examples)), key=lambda index: len(examples[index]["input_ids"]))
    by_length: list[Tensor] = []
    for batch in _batches(model, [examples[index] for index in order], collator, batch_size, **tqdm_kwargs):
        log_probs, rows = token_log_probs(*completion_logits(model, batch))
        counts = torch.bincount(rows, minlength=len(batch["labels"]))
        by_length += log_probs.cpu().split(counts.tolist())
    return torch.cat([piece for _, piece in sorted(zip(order, by_length, strict=True), key=lambda pair: pair[0])])


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
    Find the most likely tokens at the position of each token of each example's completion, for the KL objective.

    Args:
        model (`nn.Module`):
            A causal language model, in evaluation mode.
        examples (`Sequence[dict]`):
            Encoded examples.
        collator ([`ForgetRetainCollator`]):
            Pads the batches.
        batch_size (`int`):
            Rows per forward pass.
        k (`int`):
            Tokens to keep per position.
        tqdm_kwargs (*optional*):
            Arguments of the progress bar.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Ids (int64) and log-probabilities (natural logarithms, fp32) of shape
        `(tokens, k)` on the CPU. The examples follow one another in the order given.
    """
    top_tokens = []
    for batch in _batches(model, examples, collator, batch_size, **tqdm_kwargs):
        logits, labels = completion_logits(model, batch)
        # Position `t` predicts label `t + 1`.
        ids, log_probs = top_log_probs(logits[:, :-1][labels[:, 1:] != IGNORE_INDEX], k)
        top_tokens.append((ids.cpu(), log_probs.cpu()))
    all_ids, all_log_probs = zip(*top_tokens, strict=True)
    return torch.cat(all_ids), torch.cat(all_log_probs)


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
    Find the inputs that the modules get from examples.

    At most [`INPUT_EXAMPLES`] examples are read, the same ones on every process.

    Batches are not padded: padding would be an input too, and routed experts cannot tell it from text. Rows of similar
    length share a batch instead, and are cut to the shortest of them (see [`INPUT_CUT`]).

    Args:
        model (`nn.Module`):
            A causal language model, in evaluation mode.
        modules (`Mapping[str, nn.Module]`):
            Linear layers of the model by name, or PEFT's layers around them.
        examples (`Sequence[dict]`):
            Encoded examples.
        collator ([`ForgetRetainCollator`]):
            Makes the batches.
        batch_size (`int`):
            Most rows per forward pass.
        seed (`int`):
            Seed of the sketches. Every process must have the same.
        tqdm_kwargs (*optional*):
            Arguments of the progress bar.

    Returns:
        `dict[str, RetainedInputs]`: The inputs by module name, on the devices of the modules.
    """
    # Every n-th example, with n rounded up.
    sample = sorted(examples[:: -(-len(examples) // INPUT_EXAMPLES)], key=lambda example: len(example["input_ids"]))
    head = extract_model_from_parallel(model, keep_torch_compile=False).get_output_embeddings()
    batches: list[list[Encoded]] = []
    for row in sample:
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
                # Nothing reads the logits then. With labels only in the last column, few of them are computed.
                batch["labels"][:, :-1] = IGNORE_INDEX
            completion_logits(model, batch)
    return all_results(sketches)


def _batches(
    model: nn.Module, examples: Sequence[Encoded], collator: ForgetRetainCollator, batch_size: int, **tqdm_kwargs: Any
):
    """Padded batches of the examples, on the model's device, with a progress bar."""
    device = next(model.parameters()).device
    for start in tqdm(range(0, len(examples), batch_size), **tqdm_kwargs):
        batch = collator(list(examples[start : start + batch_size]))
        yield {key: value.to(device) for key, value in batch.items()}
