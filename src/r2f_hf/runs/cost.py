"""What a run costs: seconds, memory, and energy where the machine tells."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch


POWERCAP = Path("/sys/class/powercap")


@contextmanager
def measured_cost() -> Iterator[dict[str, Any]]:
    """
    Measure what the block costs this process.

    Yields:
        `dict`: Empty until the block ends. Then it holds

        - `seconds` (`float`);
        - `peak_memory_bytes` (`int`): on a GPU what PyTorch had allocated there at most, otherwise the largest memory
          of the process since it began;
        - `device` (`str`): what it ran on;
        - `energy_joules` (`dict[str, float]`), if the machine tells: `gpu` and `cpu`. The counters are those of the
          whole device, whoever else uses it.
    """
    cost: dict[str, Any] = {}
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    began, before = time.perf_counter(), energy()
    try:
        yield cost
    finally:
        after = energy()
        cost["seconds"] = time.perf_counter() - began
        cost["peak_memory_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else peak_memory()
        cost["device"] = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, {os.cpu_count()} cores"
        # A counter that has begun anew in between says nothing.
        used = {name: after[name] - before[name] for name in after if name in before}
        used = {name: joules for name, joules in used.items() if joules > 0}
        if used:
            cost["energy_joules"] = used


def peak_memory() -> int:
    """The largest memory of this process, in bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def energy() -> dict[str, float]:
    """The counters of the machine, in joules: of the current GPU (NVML) and of the CPUs (RAPL)."""
    counters = {}
    if torch.cuda.is_available() and find_spec("pynvml") is not None:
        import pynvml

        try:
            pynvml.nvmlInit()
            device = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
            counters["gpu"] = pynvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3
        except pynvml.NVMLError:
            # Older GPUs, and parts of one, have no counter.
            pass
    try:
        packages = [int(file.read_text()) for file in POWERCAP.glob("intel-rapl:?/energy_uj")]
    except OSError:
        # Most systems let only the administrator read them.
        packages = []
    if packages:
        counters["cpu"] = sum(packages) / 1e6
    return counters
