"""
Where the time of an R2F step goes: its parts, and the operations that cost most.

    python benchmarks/profile_step.py [--model smollm2] [--dtype float32] [--trace FILE]

`--trace` writes a file for chrome://tracing or Perfetto.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from r2f_hf.report import print_table
from shared.contenders import SHAPES, Contender, draw_batch, load


PARTS = [
    f"r2f/{part}" for part in ("read", "decode", "measure", "rescale", "protect", "write", "update_subspaces", "draw")
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", choices=("smollm2", *SHAPES))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch_size", type=int, default=16, help="rows per batch")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per row")
    parser.add_argument("--trace", type=Path, help="file for the trace")
    options = parser.parse_args()

    contender = Contender("r2f", load(options.model, options.dtype, options.device))
    # The first steps warm up: their probes have no subspaces yet.
    for number in range(3):
        seconds = contender.step(draw_batch(contender.model, options.batch_size, options.tokens, number))
    with torch.profiler.profile() as profile:
        contender.step(draw_batch(contender.model, options.batch_size, options.tokens, 3))
    if options.trace is not None:
        profile.export_chrome_trace(str(options.trace))
    print_table("Seconds, without the profiler", {"step": seconds}, list(seconds))
    averages = profile.key_averages()
    key = "self_device_time_total" if options.device == "cuda" else "self_cpu_time_total"
    parts = {event.key: event.cpu_time_total / 1e3 for event in averages if event.key in PARTS}
    print_table("Milliseconds, under the profiler", {"step": parts}, [part for part in PARTS if part in parts])
    print(averages.table(sort_by=key, row_limit=15))


if __name__ == "__main__":
    main()
