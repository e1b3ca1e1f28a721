"""
What the model was like before the first write, computed once: its predictions and the inputs of its modules.

The losses and the stopping rule compare with the predictions. The updates protect the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data.collator import ForgetRetainCollator
from ..data.formatting import IGNORE_INDEX, Encoded
from ..data.splits import num_labels
from ..objectives.divergences import top_log_probs
from ..objectives.forget.margin import token_margins
from ..scoring.completions import score_examples
from ..scoring.log_probs import completion_logits, completion_outputs, token_log_probs
from ..updates import RetainedInputs, all_results, watch_inputs


# At most this many retain examples are read for the modules' inputs. They are spread over the retain set.
INPUT_EXAMPLES = 96

# Examples of one batch are cut to its shortest. A longer example joins only if at least this part of it is left.
INPUT_CUT = 0.9

# The tensors of `References` that have an entry per labelled token.
PER_TOKEN = frozenset(
    {
        "forget_log_probs",
        "forget_top_ids",
        "forget_top_log_probs",
        "forget_norms",
        "forget_ignorance",
        "second_log_probs",
        "second_top_ids",
        "second_top_log_probs",
        "retain_top_ids",
        "retain_top_log_probs",
        "retain_hidden_states",
    }
)


class References:
    """
    What the model said before unlearning, looked up by row. The tensors stay on the CPU.

    Args:
        tensors (`dict[str, torch.Tensor]`):
            The references by name. Those that no objective or rule needs are absent.

            - `forget_log_probs` of shape `(tokens,)`: log-probability of each labelled token of the forget examples;
            - `forget_top_ids` and `forget_top_log_probs` of shape `(tokens, k)`: the most likely tokens at each
              labelled token, and their log-probabilities; without ids those of the whole vocabulary;
            - `forget_norms` of shape `(tokens,)`: norm of a layer's output at each labelled token;
            - `forget_ignorance` of shape `(tokens,)`: what an objective takes as the log-probability of each labelled
              token to someone who has read only the retain set;
            - `second_log_probs`, `second_top_ids` and `second_top_log_probs`: the same for the second answers;
            - `retain_top_ids` and `retain_top_log_probs`: the same for the retain examples;
            - `retain_hidden_states` of shape `(tokens, hidden size)`: a layer's output at each labelled token;
            - `holdout_margin` of shape `()`: mean margin of the holdout set's tokens;
            - `holdout_log_probs` and `retain_log_probs` of shape `(rows,)`: log-probabilities of the completions that
              the stopping rule compares with, summed over their tokens.
        forget (`Sequence[dict]`):
            The encoded forget examples: all views of all rows.
        retain (`Sequence[dict]`):
            The encoded retain examples.
        second (`Sequence[dict]`):
            The encoded second answers.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        forget: Sequence[Encoded] = (),
        retain: Sequence[Encoded] = (),
        second: Sequence[Encoded] = (),
    ):
        self.tensors = tensors
        # The tensors hold the tokens of all examples one after the other: cut them into one piece per example.
        examples = {"forget": forget, "retain": retain, "second": second}
        self._rows = {
            name: tensors[name].split([num_labels(example) for example in examples[name.split("_")[0]]])
            for name in PER_TOKEN & tensors.keys()
        }

    def of_rows(self, name: str, rows: Tensor) -> Tensor | None:
        """
        Look up the references of a batch's rows.

        Args:
            name (`str`):
                A tensor that has an entry per labelled token, such as `"forget_log_probs"`.
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
    k: int | None,
    **tqdm_kwargs: Any,
) -> tuple[Tensor | None, Tensor]:
    """
    Find the most likely tokens at the position of each token of each example's completion.

    Args:
        model (`nn.Module`):
            A causal language model, in evaluation mode.
        examples (`Sequence[dict]`):
            Encoded examples.
        collator ([`ForgetRetainCollator`]):
            Pads the batches.
        batch_size (`int`):
            Rows per forward pass.
        k (`int`, *optional*):
            Tokens to keep per position; `None` for the whole vocabulary.
        tqdm_kwargs (*optional*):
            Arguments of the progress bar.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Ids (int64; `None` for the whole vocabulary) and log-probabilities
        (natural logarithms, fp32) of shape `(tokens, k)` on the CPU. The examples follow one another in the order
        given.
    """
    all_ids, all_log_probs = [], []
    for batch in _batches(model, examples, collator, batch_size, **tqdm_kwargs):
        logits, labels = completion_logits(model, batch)
        # Position `t` predicts label `t + 1`.
        ids, log_probs = top_log_probs(logits[:, :-1][labels[:, 1:] != IGNORE_INDEX], k)
        all_ids += [] if ids is None else [ids.cpu()]
        all_log_probs.append(log_probs.cpu())
    return torch.cat(all_ids) if all_ids else None, torch.cat(all_log_probs)


@torch.no_grad()
def reference_hidden_states(
    model: nn.Module,
    examples: Sequence[Encoded],
    collator: ForgetRetainCollator,
    batch_size: int,
    layer: int,
    **tqdm_kwargs: Any,
) -> Iterator[Tensor]:
    """
    Compute a layer's output at each token of each example's completion.

    Args:
        model (`nn.Module`):
            A causal language model, in evaluation mode.
        examples (`Sequence[dict]`):
            Encoded examples.
        collator ([`ForgetRetainCollator`]):
            Pads the batches.
        batch_size (`int`):
            Rows per forward pass.
        layer (`int`):
            The layer, counted from 1.
        tqdm_kwargs (*optional*):
            Arguments of the progress bar.

    Yields:
        `torch.Tensor` of shape `(tokens, hidden size)`: fp32, on the CPU, batch by batch in the order given.
    """
    for batch in _batches(model, examples, collator, batch_size, **tqdm_kwargs):
        _, labels, states = completion_outputs(model, batch, [layer])
        yield states[layer][:, 1:][labels[:, 1:] != IGNORE_INDEX].float().cpu()


@torch.no_grad()
def reference_margin(
    model: nn.Module, examples: Sequence[Encoded], collator: ForgetRetainCollator, batch_size: int, **tqdm_kwargs: Any
) -> Tensor:
    """
    Compute by how much the logits of the completions' tokens lie above the highest other ones, in the mean.

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
        `torch.Tensor` of shape `()`: fp32, on the CPU.
    """
    margins = []
    for batch in _batches(model, examples, collator, batch_size, **tqdm_kwargs):
        logits, labels = completion_logits(model, batch)
        positions = labels[:, 1:] != IGNORE_INDEX
        margins.append(token_margins(logits[:, :-1][positions].float(), labels[:, 1:][positions]).cpu())
    return torch.cat(margins).mean()


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
