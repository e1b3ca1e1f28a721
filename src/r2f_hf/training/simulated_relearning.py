"""A step of fine-tuning on forget rows before each step, so that a run forgets what fine-tuning would bring back."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from ..data.collator import ForgetRetainCollator
from ..data.formatting import IGNORE_INDEX, Encoded
from ..probes import LoraProbe


def relearned_rows(views: Sequence[Sequence[Encoded]], count: int, seed: int, step: int) -> list[Encoded]:
    """
    The forget rows that a step of fine-tuning takes. They do not depend on how many processes there are.

    Args:
        views (`Sequence[Sequence[dict]]`):
            For each forget row its encoded views.
        count (`int`):
            How many rows, if there are that many.
        seed (`int`):
            Seed of the run.
        step (`int`):
            Number of the step.

    Returns:
        `list[dict]`: One view of each row that was drawn.
    """
    generator = random.Random(f"simulated relearning {seed} {step}")
    return [generator.choice(row) for row in generator.sample(list(views), min(count, len(views)))]


def backward_all(
    model: torch.nn.Module,
    rows: Sequence[Encoded],
    size: int,
    probes: Sequence[LoraProbe],
    collator: ForgetRetainCollator,
    accelerator: Accelerator,
) -> None:
    """
    Leave in the probes the gradients of the cross-entropy of rows, summed over the tokens of all rows.

    Each process takes its share of the rows. On several processes, all of them have to call this.

    Args:
        model (`nn.Module`):
            The model with its probes, not in DDP's wrapper. The processes share the rows out by themselves.
        rows (`Sequence[dict]`):
            Encoded rows, the same on all processes.
        size (`int`):
            Most rows that a process takes at once.
        probes (`Sequence[LoraProbe]`):
            The probes.
        collator ([`ForgetRetainCollator`]):
            Makes the batches.
        accelerator ([`~accelerate.Accelerator`]):
            Knows the processes.
    """
    own = rows[accelerator.process_index :: accelerator.num_processes]
    # All processes go through the model equally often. One without rows takes a row that does not count.
    most = -(-len(rows) // accelerator.num_processes)
    for start in range(0, most, size):
        some = own[start : start + size]
        batch = {name: each.to(accelerator.device) for name, each in collator(list(some or rows[:1])).items()}
        tokens = (batch["labels"][:, 1:] != IGNORE_INDEX).sum() * bool(some)
        with accelerator.autocast():
            loss = model(**batch, use_cache=False).loss
        (loss * tokens).backward()
    pairs = [parameter for probe in probes for parameter in (probe.A, probe.B)]
    if accelerator.num_processes > 1:
        summed = accelerator.reduce(torch.cat([parameter.grad.flatten() for parameter in pairs]), "sum")
        for parameter, grad in zip(pairs, summed.split([parameter.numel() for parameter in pairs]), strict=True):
            parameter.grad.copy_(grad.view_as(parameter))
