"""
From how many tokens per step on R2F is the cheaper one.

    python benchmarks/crossover.py [--quick] [--model smollm2|llama-1b|llama-8b] [--device cpu|cuda]

The contenders of `shared/contenders.py` take steps of 256 to 16,384 random tokens each (to 2,048 with `--quick`), in
rows of `--length` tokens:

- `floor`: the forward pass, and the backward pass through activations only. Every method with gradients needs these.
- `r2f`: the default decoder at rank 16, on all linear layers but the head, with all parts of a step.
- `lora`: LoRA of the same rank on the same layers, with AdamW.
- `full`: all weights, with AdamW.
- `exact`: SGD on the same layers with the exact gradient, applied and released layer by layer.

Steps of more than `--micro_tokens` tokens are divided into micro-batches. Then `exact` has to keep dense gradients
until the last of them, as `full` does.

The contenders and the numbers of tokens take turns, round by round and in one process. (Those of `llama-8b` do not fit
on one device together, so each takes all of its steps in a row.) Ratios are medians over rounds with a 95% bootstrap
interval. For each contender a line `fixed + slope * tokens` is fitted to the medians of undivided steps. Its interval
comes from resampled rounds.

Peak memory, beyond the weights, is that of a process that takes three steps. The bytes per step that the processes of
a run would have to add up (all of them) and to send (each of eight, in a ring) are computed from the shapes, which
`tests/benchmarks/test_network.py` checks against what real processes send.

`--clock processor` counts the seconds of the processor, not those on the wall. Take it together with `--threads 1`
where others use the machine too.

Writes outputs/crossover.json, and the picture (`--picture docs/crossover.svg`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.contenders import CONTENDERS, RANK, SHAPES, Contender, draw_batch, load, release_memory
from shared.crossover_picture import draw
from shared.intervals import interval
from shared.lines import Line, crossing, ends, fit, resampled_fits
from shared.network import Shapes, gradients, sent
from shared.peak_memory import measure_alone


TOKENS = (256, 512, 1024, 2048, 4096, 8192, 16384)
QUICK_TOKENS = TOKENS[:4]
# Rounds that are not counted. In the first steps R2F's probes have no subspaces yet.
WARM_UP = 1
# The largest micro-batches, in tokens.
MICRO_TOKENS = {"cpu": 2048, "cuda": 16384, "llama-8b": 4096}
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
# Processes of a run, for the bytes that each of them sends.
PROCESSES = 8

# By contender and tokens, the seconds of each round.
Seconds = dict[str, dict[int, np.ndarray]]


def micro_batches(tokens: int, options: argparse.Namespace) -> int:
    """Into how many parts a step is divided."""
    return -(-tokens // options.micro_tokens)


def measure_times(options: argparse.Namespace) -> dict[str, Seconds]:
    """Seconds of whole steps (`"step"`) and of what comes after the backward pass (`"update"`)."""
    parts: dict[str, dict[str, dict[int, list[float]]]] = {"step": {}, "update": {}}
    groups = [[name] for name in CONTENDERS] if options.model == "llama-8b" else [list(CONTENDERS)]
    for group in groups:
        contenders = [
            Contender(name, load(options.model, options.dtype, options.device), CLOCKS[options.clock])
            for name in group
        ]
        for number in track(range(options.rounds + WARM_UP), ", ".join(group)):
            # The order changes in each round, so that it makes no difference what comes after what.
            turns = [(contender, tokens) for contender in contenders for tokens in options.tokens]
            for turn in np.random.default_rng(number).permutation(len(turns)):
                contender, tokens = turns[turn]
                batch = draw_batch(contender.model, tokens // options.length, options.length, number)
                took = contender.step(batch, micro_batches(tokens, options))
                if number >= WARM_UP:
                    for part, seconds in (("step", sum(took.values())), ("update", took["update"])):
                        parts[part].setdefault(contender.name, {}).setdefault(tokens, []).append(seconds)
        del contenders, contender, turns
        release_memory()
    return {
        part: {name: {tokens: np.array(by_name[name][tokens]) for tokens in options.tokens} for name in CONTENDERS}
        for part, by_name in parts.items()
    }


def compare(seconds: Mapping[str, Mapping[int, np.ndarray]], whole: list[int]) -> dict[str, Any]:
    """
    Lines, ratios and crossings.

    Args:
        seconds (`Mapping[str, Mapping[int, np.ndarray]]`):
            Seconds of whole steps.
        whole (`list[int]`):
            The numbers of tokens whose steps are undivided.

    Returns:
        `dict[str, Any]`: `lines`, `ratios` of R2F's step to each, `slopes` of R2F as parts of each, and `crossings`.
    """
    undivided = {name: {tokens: times[tokens] for tokens in whole} for name, times in seconds.items()}
    lines = {
        name: fit({tokens: float(np.median(times)) for tokens, times in of.items()}) for name, of in undivided.items()
    }
    resampled = resampled_fits(undivided)
    found: dict[str, Any] = {"lines": {}, "ratios": {}, "slopes": {}, "crossings": {}}
    for name, line in lines.items():
        sides = {side: [getattr(each, side) for each in resampled[name]] for side in Line._fields}
        found["lines"][name] = {side: [getattr(line, side), *ends(np.array(sides[side]))] for side in sides}
        if name == "r2f":
            continue
        ratios = {tokens: interval(seconds["r2f"][tokens] / times) for tokens, times in seconds[name].items()}
        found["ratios"][name] = ratios
        pairs = list(zip(resampled["r2f"], resampled[name], strict=True))
        slopes = np.array([slope_ratio(*pair) for pair in pairs])
        found["slopes"][name] = [known(value) for value in (slope_ratio(lines["r2f"], line), *ends(slopes))]
        crossings = np.array([crossing(*pair) for pair in pairs])
        cheaper = [tokens for tokens in ratios if all(ratios[more][0] <= 1 for more in ratios if more >= tokens)]
        found["crossings"][name] = {
            "of the lines": [known(tokens) for tokens in (crossing(lines["r2f"], line), *ends(crossings))],
            "measured from": min(cheaper, default=None),
        }
    return found


def slope_ratio(one: Line, other: Line) -> float:
    """The first line's slope as a part of the other's."""
    return one.slope / other.slope if other.slope else np.inf


def known(value: float) -> float | None:
    """The value, and `None` if it is infinite, which JSON does not know."""
    return value if np.isfinite(value) else None


def network(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Bytes per step by contender: of gradients, and sent by each of several processes."""
    # Only the shapes are needed.
    shapes = Shapes.of(load(options.model, options.dtype, "cpu" if options.model == "smollm2" else "meta"))
    return {
        name: {"gradients": gradients(name, shapes, RANK)}
        | {f"sent, {sharding.upper()}": sent(name, shapes, RANK, PROCESSES, sharding) for sharding in ("ddp", "fsdp2")}
        for name in CONTENDERS
    }


def print_tables(report: Mapping[str, Any], options: argparse.Namespace) -> None:
    """The tables of the report."""

    def spread(values: Any, unit: float = 1.0) -> str:
        middle, low, high = ("never" if value is None else f"{value / unit:.3g}" for value in values)
        return f"{middle} ({low} to {high})"

    columns = [str(tokens) for tokens in options.tokens]
    steps = {
        name: {str(tokens): value for tokens, value in medians.items()} for name, medians in report["seconds"].items()
    }
    print_table(f"Seconds per step ({options.clock} clock), by tokens", steps, columns)
    ratios = {
        f"R2F / {name}": {str(tokens): spread(value) for tokens, value in of.items()}
        for name, of in report["ratios"].items()
    }
    own = {str(tokens): spread(value) for tokens, value in report["own_work"].items()}
    print_table("R2F's step / theirs, by tokens", ratios | {"R2F's own work / its step": own}, columns)
    lines = {
        name: {"fixed, ms": spread(line["fixed"], 1e-3), "per token, µs": spread(line["slope"], 1e-6)}
        | ({"R2F's slope / this": spread(report["slopes"][name])} if name in report["slopes"] else {})
        | (
            {
                "R2F is cheaper from, by the lines": spread(report["crossings"][name]["of the lines"]),
                "by the medians": report["crossings"][name]["measured from"] or "never",
            }
            if name in report["crossings"]
            else {}
        )
        for name, line in report["lines"].items()
    }
    print_table("fixed + slope * tokens", lines, list(lines["exact"]))
    memory = {
        name: {f"{tokens} tokens, MB": figures["peak"] / 1e6 for tokens, figures in of.items()}
        for name, of in report["memory"].items()
    }
    print_table("Peak memory beyond the weights", memory, list(memory["r2f"]))
    sizes = {name: {f"{key}, MB": value / 1e6 for key, value in of.items()} for name, of in report["network"].items()}
    print_table("Bytes per step", sizes, list(sizes["r2f"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 2,048 tokens, and fewer rounds")
    parser.add_argument("--model", default="smollm2", choices=("smollm2", *SHAPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="fp32 on a CPU by default, bf16 on a GPU")
    parser.add_argument("--tokens", type=int, nargs="+", help="tokens per step")
    parser.add_argument("--length", type=int, default=64, help="tokens per row")
    parser.add_argument("--micro_tokens", type=int, help="the largest micro-batch, in tokens")
    parser.add_argument("--rounds", type=int, help="15 by default, 5 with --quick")
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--threads", type=int, help="threads that torch uses")
    parser.add_argument("--memory", type=int, nargs="*", help="tokens per step at which memory is measured")
    parser.add_argument("--output", type=Path, default=Path("outputs/crossover.json"))
    parser.add_argument("--picture", type=Path, default=Path("outputs/crossover.svg"))
    options = parser.parse_args()
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    options.tokens = sorted(options.tokens or (QUICK_TOKENS if options.quick else TOKENS))
    options.rounds = options.rounds or (5 if options.quick else 15)
    options.micro_tokens = options.micro_tokens or MICRO_TOKENS.get(options.model, MICRO_TOKENS[options.device])
    if options.memory is None:
        options.memory = sorted({512, options.tokens[-1]} & set(options.tokens))
    if options.device == "cuda" and options.clock == "processor":
        parser.error("the processor's clock does not see a GPU's work. Leave --clock out.")
    uneven = [tokens for tokens in options.tokens if tokens % options.length]
    if uneven:
        parser.error(f"{uneven[0]} tokens are no whole number of rows of {options.length}. Change --length.")
    if options.threads:
        torch.set_num_threads(options.threads)

    times = measure_times(options)
    whole = [tokens for tokens in options.tokens if micro_batches(tokens, options) == 1]
    medians = {
        name: {tokens: float(np.median(rounds)) for tokens, rounds in of.items()} for name, of in times["step"].items()
    }
    report: dict[str, Any] = compare(times["step"], whole) | {"seconds": medians}
    report["own_work"] = {
        tokens: interval(rounds / times["step"]["r2f"][tokens]) for tokens, rounds in times["update"]["r2f"].items()
    }
    report["memory"] = {
        name: {
            tokens: measure_alone(
                name,
                options.model,
                options.dtype,
                options.device,
                tokens // options.length,
                options.length,
                micro_batches(tokens, options),
            )
            for tokens in options.memory
        }
        for name in track(CONTENDERS if options.memory else (), "memory")
    } or {name: {} for name in CONTENDERS}
    report["network"] = network(options)
    report["settings"] = {
        key: getattr(options, key)
        for key in ("model", "device", "dtype", "tokens", "length", "micro_tokens", "rounds", "clock")
    } | {"rank": RANK, "torch": torch.__version__, "threads": torch.get_num_threads()}
    if options.device == "cuda":
        report["settings"]["gpu"] = torch.cuda.get_device_name()
    write_json(options.output, report)
    draw(options.picture, report, whole)
    print_tables(report, options)
    print(f"The report is {options.output}, the picture {options.picture}.")


if __name__ == "__main__":
    main()
