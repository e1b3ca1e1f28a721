"""The peak memory of a contender's steps, beyond the weights."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from shared.contenders import Contender, draw_batch, load, release_memory


# With these settings freed memory goes back at once, so that the peak is that of the memory in use.
EAGER_FREEING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure(
    name: str, model: str, dtype: str, device: str, rows: int, length: int, micro_batches: int = 1
) -> dict[str, int]:
    """
    Peak memory of three steps beyond the loaded weights, and its parts. On a CPU, to be called in a new process.

    Args:
        name (`str`):
            The contender.
        model (`str`):
            What [`load`] loads.
        dtype (`str`):
            Precision of the weights.
        device (`str`):
            `"cpu"` or `"cuda"`.
        rows (`int`):
            Rows per step.
        length (`int`):
            Tokens per row.
        micro_batches (`int`, *optional*, defaults to `1`):
            Into how many parts the rows are divided.

    Returns:
        `dict[str, int]`: Bytes.
    """
    loaded = load(model, dtype, device)
    with torch.no_grad():
        # The first forward pass allocates memory that stays, such as the threads' own. It belongs to no method.
        loaded(input_ids=draw_batch(loaded, 1, 8, 0))
    weights = list(loaded.parameters())
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        # This resets the peak, `VmHWM`.
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    contender = Contender(name, loaded)
    gradients = 0
    for number in range(3):
        contender.passes(draw_batch(loaded, rows, length, number), micro_batches)
        current = [p.grad for p in contender.model.parameters() if p.grad is not None]
        gradients = max(gradients, size(current))
        del current
        contender.update()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    state = [] if contender.optimizer is None else contender.optimizer.state.values()
    weight_ids = {id(weight) for weight in weights}
    pairs = size(p for p in contender.model.parameters() if id(p) not in weight_ids)
    memory = {
        "weights": size(weights),
        "peak": peak - before,
        "gradients": gradients,
        "state": pairs + size(t for entry in state for t in entry.values() if isinstance(t, Tensor)),
    }
    if name == "r2f":
        # The subspaces have the pairs' size. Directions that several modules share are in memory once.
        distinct = {id(inputs): inputs for inputs in contender.r2f.retained_inputs.values()}.values()
        memory["state"] += pairs + size(inputs.directions for inputs in distinct)
    return memory | {"activations": memory["peak"] - memory["gradients"] - memory["state"]}


def measure_alone(name: str, model: str, dtype: str, device: str, *sizes: int) -> dict[str, int]:
    """[`measure`], on a CPU in a process of its own. A GPU's allocator counts the same bytes in any process."""
    if device == "cuda":
        memory = measure(name, model, dtype, device, *sizes)
        release_memory()
        return memory
    with (
        patch.dict(os.environ, EAGER_FREEING),
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process,
    ):
        return process.submit(measure, name, model, dtype, device, *sizes).result()
