"""
How long a step takes on many GPUs: a model, its check on a few processes, and what it predicts.

    python benchmarks/many_gpus.py              # predictions for 8 to 512 GPUs, 8B and 70B
    python benchmarks/many_gpus.py --validate 2 4   # the model against 2 and 4 processes with gloo

The model of a step on `n` GPUs that share the rows (data parallel) has two terms:

- *compute*: for each weight and token a forward pass has 2 operations, a backward pass through activations 2, and the
  weights' gradients 2 more (`full`, `exact`). They run at `--efficiency` of the GPU's peak. R2F's own work takes
  `--own` seconds, as measured on an H200 at 1B (`step_cost.py`), and it reads and writes the weights that a GPU holds.
- *network*: the bytes that `shared/network.py` counts, over the bandwidth of the slowest link of a ring: NVLink within
  8 GPUs, and each GPU's share of the network above. Latency is left out: it is the same for all contenders.

Both ends are printed: all of the network hidden behind compute (the larger term), and none of it (the sum). A second
table has the bytes of single modules.

Not in the model: stragglers, optimizer states on the host, tensor or pipeline parallelism, and activations that do not
fit. The check has `n` processes on this machine take steps of a small model, once with the gradients added up and once
without, and all-reduce a tensor alone. In each round the model predicts the former from the latter two.

Writes outputs/many_gpus.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.contenders import RANK, Contender, draw_batch
from shared.intervals import interval
from shared.network import Shapes, sent


MODELS = {
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama-70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
# Operations per weight and token.
OPERATIONS = {"floor": 4, "r2f": 4, "lora": 4, "exact": 6, "full": 6}
GPUS = (8, 64, 512)
# How the weights are shared out. Whole, a model of 70B fits on no GPU.
SHARDINGS = {"llama-8b": ("ddp", "fsdp2", "zero2", "zero3"), "llama-70b": ("fsdp2", "zero3")}
# What the check runs on: 8 million weights in 4 layers.
SMALL = {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 4, "num_attention_heads": 6}
CHECKED = ("r2f", "lora", "full")


def build(name: str) -> PreTrainedModel:
    """A model in bf16, without its numbers."""
    config = LlamaConfig(vocab_size=128256, num_key_value_heads=8, tie_word_embeddings=False, **MODELS[name])
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def compute_seconds(name: str, shapes: Shapes, gpus: int, sharding: str, options: argparse.Namespace) -> float:
    """Seconds that a GPU computes per step."""
    weights = shapes.weights / shapes.width
    seconds = OPERATIONS[name] * weights * options.tokens / (options.efficiency * options.peak)
    # A GPU's part of the weights, and of the optimizer's state.
    held = 1 if sharding in ("ddp", "zero2") else 1 / gpus
    optimized = 1 if sharding == "ddp" else 1 / gpus
    if name in ("r2f", "lora"):
        # The pairs' own products: a forward pass for LoRA only, and two gradients for both.
        products = 2 if name == "r2f" else 4
        numbers = sum(out + into for out, into in shapes.linear)
        seconds += products * 2 * RANK * numbers * options.tokens / (options.efficiency * options.peak)
    if name == "r2f":
        seconds += options.own + 2 * held * shapes.dense() / options.memory
    if name == "full":
        # AdamW reads a weight, its gradient and two averages, and writes three of them.
        seconds += 7 * optimized * shapes.weights / options.memory
    return seconds


def predict(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The table of predictions."""
    rows = {}
    for model in MODELS:
        shapes = Shapes.of(build(model))
        for sharding in SHARDINGS[model]:
            for gpus in GPUS:
                bandwidth = (options.nvlink if gpus <= options.node else options.network) * 1e9
                row: dict[str, Any] = {}
                ends = {}
                for name in ("r2f", "lora", "exact", "full"):
                    compute = compute_seconds(name, shapes, gpus, sharding, options)
                    network = sent(name, shapes, RANK, gpus, sharding) / bandwidth
                    ends[name] = max(compute, network), compute + network
                    row[f"{name}, s"] = f"{ends[name][0]:.2f} to {ends[name][1]:.2f}"
                    row[f"{name}, GB sent"] = sent(name, shapes, RANK, gpus, sharding) / 1e9
                for name in ("lora", "exact", "full"):
                    pairs = zip(ends["r2f"], ends[name], strict=True)
                    row[f"R2F / {name}"] = " to ".join(f"{ours / theirs:.2f}" for ours, theirs in pairs)
                rows[f"{model} {sharding.upper()} {gpus} GPUs"] = row
    return rows


def per_module(gpus: int) -> dict[str, dict[str, float]]:
    """MB that a GPU sends per step for single modules of the 8B model."""
    return {
        f"{part}, {name}": {
            sharding: sent(name, shapes, RANK, gpus, sharding) / 1e6 for sharding in SHARDINGS["llama-8b"]
        }
        for part, shapes in Shapes.parts(build("llama-8b")).items()
        for name in ("r2f", "full")
    }


def timed(function: Any) -> float:
    """Seconds of a call that all processes begin together."""
    dist.barrier()
    begin = time.perf_counter()
    function()
    dist.barrier()
    return time.perf_counter() - begin


def check_in_a_process(folder: Path, rounds: int) -> None:
    """One process of the check: leaves the ratios of measured to predicted seconds in `folder`."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    processes = dist.get_world_size()
    contenders = {}
    for name in CHECKED:
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=1024, num_key_value_heads=2, tie_word_embeddings=True, **SMALL)
        model = AutoModelForCausalLM.from_config(config)
        shapes = Shapes.of(model)
        contender = Contender(name, model)
        contenders[name] = (
            contender,
            DistributedDataParallel(contender.model),
            sent(name, shapes, RANK, processes, "ddp"),
        )
    message = torch.zeros(2**21)
    carried = 2 * (processes - 1) / processes * message.nbytes
    ratios: dict[str, list[float]] = {name: [] for name in CHECKED}
    shares: dict[str, list[float]] = {name: [] for name in CHECKED}
    for number in range(rounds + 2):
        for name, (contender, wrapped, size) in contenders.items():

            def passes(contender: Contender = contender, wrapped: Any = wrapped, number: int = number) -> None:
                batch = draw_batch(contender.model, 4, 32, number)
                wrapped(input_ids=batch, labels=batch).loss.backward()
                contender.update()

            def alone(passes: Any = passes, wrapped: Any = wrapped) -> None:
                with wrapped.no_sync():
                    passes()

            without = timed(alone)
            network = timed(lambda: dist.all_reduce(message)) * size / carried
            measured = timed(passes)
            if number >= 2:
                ratios[name].append(measured / (without + network))
                shares[name].append(network / (without + network))
    if dist.get_rank() == 0:
        found = {name: [*interval(np.array(ratios[name])), float(np.median(shares[name]))] for name in CHECKED}
        (folder / "check.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def validate(processes: int, rounds: int) -> dict[str, dict[str, Any]]:
    """The model against real processes on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [*torchrun, __file__, "--worker", folder, "--rounds", str(rounds)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found = json.loads((Path(folder) / "check.json").read_text())
    return {
        f"{processes} processes, {name}": {
            "measured / predicted": f"{middle:.2f} ({low:.2f} to {high:.2f})",
            "network's part, predicted": share,
        }
        for name, (middle, low, high, share) in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validate", type=int, nargs="+", help="numbers of processes to check the model with")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the check")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per GPU and step")
    parser.add_argument("--peak", type=float, default=989e12, help="operations per second of a GPU, in bf16")
    parser.add_argument("--efficiency", type=float, default=0.4, help="part of the peak that is reached")
    parser.add_argument("--memory", type=float, default=3.35e12, help="bytes per second of a GPU's memory")
    parser.add_argument("--own", type=float, default=0.043, help="seconds of R2F's own work, without writing")
    parser.add_argument("--nvlink", type=float, default=360, help="GB/s per GPU and direction within a node")
    parser.add_argument("--network", type=float, default=40, help="GB/s per GPU and direction between nodes")
    parser.add_argument("--node", type=int, default=8, help="GPUs per node")
    parser.add_argument("--output", type=Path, default=Path("outputs/many_gpus.json"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        check_in_a_process(options.worker, options.rounds)
        return
    report: dict[str, Any] = {"predictions": predict(options)}
    print_table(
        f"Seconds per step of {options.tokens} tokens per GPU: network hidden, and not",
        report["predictions"],
        list(next(iter(report["predictions"].values()))),
    )
    report["modules"] = per_module(options.node)
    print_table(
        f"MB that each of {options.node} GPUs sends per step and module, llama-8b",
        report["modules"],
        SHARDINGS["llama-8b"],
    )
    checks: dict[str, Any] = {}
    for processes in options.validate or ():
        checks |= validate(processes, options.rounds)
    if checks:
        report["checks"] = checks
        print_table("The model against processes on this machine", checks, list(next(iter(checks.values()))))
    settings = {key: value for key, value in vars(options).items() if isinstance(value, (int, float))}
    write_json(options.output, report | {"settings": settings})
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
