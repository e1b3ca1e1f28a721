"""
What a step costs, in time and memory: R2F, LoRA, full AdamW, exact-gradient SGD, and the least that all of them need.

    python benchmarks/step_cost.py [--quick] [--model llama-8b] [--dtype bfloat16]

The contenders take steps on the same batches of random tokens, in turns and in one process. Their ratios are medians
over rounds, with a 95% bootstrap interval. (On a GPU each contender takes all its steps in a row.) On a CPU peak
memory is measured in one process per contender, which needs Linux. On a GPU the allocator measures it.

On a CPU the model is SmolLM2-135M, in fp32 and, if the CPU computes in it, in bf16. On a GPU the models are, in bf16,
SmolLM2-135M and random weights of the shapes of Llama-3.2-1B and Llama-3.1-8B.

- `floor`: the forward pass, and the backward pass through activations only. Every method with gradients needs these.
- `r2f`: the default decoder at rank 16, on all linear layers but the head, with all parts of a step (see `R2FStep`).
- `lora`: LoRA of the same rank on the same layers, with AdamW.
- `full`: all weights, with AdamW.
- `exact`: SGD on the same layers with the exact gradient. The gradient of each weight is applied and released as soon
  as it is there, as LOMO does.

Writes outputs/step_cost.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from rich.progress import track

from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.contenders import CONTENDERS, RANK, SHAPES, Contender, draw_batch, load, release_memory
from shared.intervals import interval
from shared.peak_memory import measure_alone
from shared.precision import computes_bf16


# Rounds that are not counted.
WARM_UP = 2


def measure_time(model: str, dtype: str, options: argparse.Namespace, names: tuple[str, ...], rounds: int) -> dict:
    """Seconds of each contender's steps and of their parts, as arrays of shape `(rounds,)`."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    # A GPU has room for one contender at a time, and is equally fast for each of them.
    for group in [names] if options.device == "cpu" else [[name] for name in names]:
        contenders = [Contender(name, load(model, dtype, options.device)) for name in group]
        for number in track(range(rounds + WARM_UP), f"{model} {dtype}: {', '.join(group)}"):
            # The order changes in each round, so that it makes no difference who comes after whom.
            for contender in np.random.default_rng(number).permutation(np.array(contenders, dtype=object)):
                parts = contender.step(draw_batch(contender.model, options.batch_size, options.tokens, number))
                if number >= WARM_UP:
                    for part, took in parts.items():
                        seconds[contender.name].setdefault(part, []).append(took)
        del contenders, contender
        release_memory()
    return {
        name: {part: np.array(took) for part, took in parts.items()} | {"step": sum(map(np.array, parts.values()))}
        for name, parts in seconds.items()
    }


def split_update(model: str, dtype: str, options: argparse.Namespace) -> dict[str, float]:
    """The share of each part in the time of R2F's own work, by the part's name in the profiler."""
    contender = Contender("r2f", load(model, dtype, options.device))
    batches = [
        draw_batch(contender.model, options.batch_size, options.tokens, number) for number in range(WARM_UP + 3)
    ]
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        # The profiler's own ranges end before a GPU has finished the work that was started in them.
        begin = contender.now()
        yield
        seconds[name] = seconds.get(name, 0.0) + contender.now() - begin

    with patch("r2f_hf.step.record_function", timed):
        for number, batch in enumerate(batches):
            if number == WARM_UP:
                seconds.clear()
            contender.step(batch)
    total = sum(seconds.values())
    return {name.removeprefix("r2f/"): took / total for name, took in seconds.items()}


def compare(model: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures for one model in one precision."""
    seconds = measure_time(model, dtype, options, CONTENDERS, options.rounds)
    figures: dict[str, Any] = {"seconds": {name: float(np.median(parts["step"])) for name, parts in seconds.items()}}
    r2f = seconds["r2f"]
    ratios = {f"ratio_{name}": r2f["step"] / seconds[name]["step"] for name in CONTENDERS if name != "r2f"}
    ratios["overhead_fraction"] = r2f["update"] / r2f["step"]
    for key, values in ratios.items():
        figures[key], figures[f"{key}_low"], figures[f"{key}_high"] = interval(values)
    shares = split_update(model, dtype, options)
    release_memory()
    step = float(np.median(r2f["step"]))
    parts = {part: float(np.median(r2f[part])) / step for part in ("forward", "backward")}
    figures["breakdown"] = parts | {part: share * figures["overhead_fraction"] for part, share in shares.items()}
    size = options.batch_size, options.tokens
    memory = {
        name: [measure_alone(name, model, dtype, options.device, *size) for _ in range(options.repeats)]
        for name in track(CONTENDERS, "memory")
    }
    figures["memory"] = {
        name: {key: int(np.median([m[key] for m in ms])) for key in ms[0]} for name, ms in memory.items()
    }
    for name in CONTENDERS:
        if name != "r2f":
            values = np.array([a["peak"] / b["peak"] for a in memory["r2f"] for b in memory[name]])
            key = f"memory_vs_{name}"
            figures[key], figures[f"{key}_low"], figures[f"{key}_high"] = (
                float(np.median(values)),
                float(values.min()),
                float(values.max()),
            )
    return figures


def linearity(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of R2F's own work on the first layers of SmolLM2-135M, by number of layers, early and late in a run."""
    growth = {}
    for layers in (6, 12, 24, 30):
        contender = Contender("r2f", load("smollm2", "float32", options.device, layers))
        batch = draw_batch(contender.model, 2, 16, 0)
        times = [contender.step(batch) for _ in range(options.steps)]
        updates = np.array([parts["update"] for parts in times[2:]])
        first, last = updates[: len(updates) // 3], updates[-len(updates) // 3 :]
        growth[f"{layers} layers"] = {
            "seconds": float(np.median(updates)),
            "per layer": float(np.median(updates)) / layers,
            "last third / first third": float(np.median(last) / np.median(first)),
        }
    return growth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and rows, with one model in one precision")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch_size", type=int, help="rows per batch; 16 by default, 8 with --quick")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per row")
    parser.add_argument("--output", type=Path, default=Path("outputs/step_cost.json"))
    parser.add_argument("--model", choices=("smollm2", *SHAPES), help="only this model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="only this precision")
    options = parser.parse_args()
    options.batch_size = options.batch_size or (8 if options.quick else 16)
    options.rounds, options.repeats, options.steps = (5, 1, 14) if options.quick else (15, 3, 32)
    if options.device == "cuda":
        options.repeats = 1

    if options.device == "cpu":
        settings = [(options.model or "smollm2", dtype) for dtype in ("float32", "bfloat16")[: 1 + computes_bf16()]]
    else:
        settings = [("smollm2", "bfloat16"), ("llama-1b", "bfloat16"), ("llama-8b", "bfloat16")]
    asked = (options.model, options.dtype)
    settings = [
        setting
        for setting in settings
        if all(wanted in (None, value) for wanted, value in zip(asked, setting, strict=True))
    ]
    if not settings:
        parser.error(f"{' '.join(filter(None, asked))} is not measured on this {options.device}.")
    settings = settings[:1] if options.quick else settings
    compared = {f"{model} {dtype}": compare(model, dtype, options) for model, dtype in settings}
    first = next(iter(compared.values()))
    report = {key: value for key, value in first.items() if isinstance(value, float)}
    # This is only of SmolLM2 in fp32.
    asked_for = options.model in (None, "smollm2") and options.dtype in (None, "float32")
    growth = linearity(options) if asked_for else {}
    report |= {"compared": compared, "linearity": growth, "device": options.device, "torch": torch.__version__}
    report |= {"batch_size": options.batch_size, "tokens": options.tokens, "rank": RANK}
    write_json(options.output, report)

    table = {}
    for name, figures in compared.items():
        for contender, took in figures["seconds"].items():
            memory = figures["memory"][contender]
            table[f"{name} {contender}"] = {
                "seconds": took,
                "R2F's step / this": figures.get(f"ratio_{contender}", 1.0),
                **{f"{key} MB": memory[key] / 1e6 for key in ("weights", "peak", "gradients", "state", "activations")},
                "R2F's peak / this": figures.get(f"memory_vs_{contender}", 1.0),
            }
    print_table(f"{options.batch_size} rows of {options.tokens} tokens", table, list(next(iter(table.values()))))
    breakdowns = {name: figures["breakdown"] for name, figures in compared.items()}
    print_table("R2F's step, by parts", breakdowns, list(next(iter(breakdowns.values()))))
    if growth:
        print_table("R2F's own work", growth, list(next(iter(growth.values()))))
    for name, figures in compared.items():
        print(
            name,
            *(
                f"{key} {value:.3f} ({figures[f'{key}_low']:.3f}-{figures[f'{key}_high']:.3f})"
                for key, value in figures.items()
                if f"{key}_low" in figures
            ),
        )
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
