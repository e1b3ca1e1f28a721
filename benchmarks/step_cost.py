"""
What a step costs, in time and memory: R2F, LoRA and full AdamW, exact-gradient SGD, and the floor below them all.

    python benchmarks/step_cost.py [--quick] [--model llama-8b] [--dtype bfloat16]

The contenders take the same batches of random tokens in turns, in one process; their ratios are medians over rounds,
with a 95% bootstrap interval. (On a GPU they take them one after the other.) Peak memory is measured in a process
each, on Linux, or by a GPU's allocator. On a CPU the model is SmolLM2-135M, in fp32 and, where the CPU computes in it,
bf16; on a GPU, in bf16, SmolLM2-135M and the shapes of Llama-3.2-1B and of Llama-3.1-8B with random weights.

- `floor`: forward, and backward through activations alone: no method with gradients can do without.
- `r2f`: the default decoder at rank 16, on all linear layers but the head; its probes are read, decoded, measured,
  rescaled, protected, written, followed and drawn anew.
- `lora`: LoRA of the same rank on the same layers, AdamW.
- `full`: all weights, AdamW.
- `exact`: SGD on the same layers with the exact gradient, each weight's applied and released as soon as it is there
  (as LOMO does).

Writes outputs/step_cost.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.progress import track
from scipy.stats import bootstrap
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from r2f_hf import R2FConfig, R2FStep
from r2f_hf.models.wrapping import wrap
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.precision import computes_bf16
from shared.pypi_models import smollm2_folder


RANK = 16
# Rounds that are not counted.
WARM_UP = 2
CONTENDERS = ("floor", "r2f", "lora", "full", "exact")
# Of Llama-3.2-1B and Llama-3.1-8B.
SHAPES = {
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}


def load(model: str, dtype: str, device: str, layers: int | None = None) -> PreTrainedModel:
    """A model by name, or its first layers."""
    if model == "smollm2":
        loaded = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=dtype)
        if layers is not None:
            del loaded.model.layers[layers:]
        return loaded.to(device)
    tied = model == "llama-1b"
    config = LlamaConfig(vocab_size=128256, num_key_value_heads=8, tie_word_embeddings=tied, **SHAPES[model])
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def linear_weights(model: PreTrainedModel) -> list[nn.Parameter]:
    """Weights of all linear layers but the head: what R2F writes."""
    head = model.get_output_embeddings()
    return [module.weight for module in model.modules() if isinstance(module, nn.Linear) and module is not head]


class Contender:
    """
    A model and a way to take a step on it.

    Args:
        name (`str`):
            One of [`CONTENDERS`].
        model ([`~transformers.PreTrainedModel`]):
            The model; changed in place.
    """

    def __init__(self, name: str, model: PreTrainedModel):
        self.name, self.model, self.optimizer = name, model.train(), None
        self.r2f: R2FStep | None = None
        if name == "floor":
            model.requires_grad_(False)
            model.enable_input_require_grads()
        elif name == "exact":
            model.requires_grad_(False)
            for weight in linear_weights(model):
                weight.requires_grad_(True)
                weight.register_post_accumulate_grad_hook(release)
        elif name == "full":
            self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
        elif name == "lora":
            config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
            self.model = get_peft_model(model, config)
            self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-6)
        else:
            args = R2FConfig(tempfile.gettempdir(), rank=RANK, use_cpu=model.device.type == "cpu", report_to="none")
            self.model = wrap(model, args)
            self.r2f = R2FStep(self.model)
            # As what is to be kept, any text does: the sketches have as many columns.
            ids = torch.randint(model.config.vocab_size, (4, 64), device=model.device)
            with self.r2f.protecting():
                self.model(input_ids=ids)
            self.r2f.begin()

    def forward(self, batch: Tensor) -> Tensor:
        return self.model(input_ids=batch, labels=batch).loss

    def update(self) -> None:
        if self.r2f is not None:
            self.r2f.step(lr=1e-3)
        elif self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def step(self, batch: Tensor) -> dict[str, float]:
        """Take a step. Returns the seconds of its parts."""
        times = [now(batch)]
        loss = self.forward(batch)
        times.append(now(batch))
        loss.backward()
        times.append(now(batch))
        self.update()
        times.append(now(batch))
        return dict(zip(("forward", "backward", "update"), np.diff(times).tolist(), strict=True))


@torch.no_grad()
def release(weight: nn.Parameter) -> None:
    """Apply a gradient and let go of it."""
    weight.sub_(weight.grad, alpha=1e-6)
    weight.grad = None


def release_memory() -> None:
    """Let go of a model that nothing refers to any more."""
    gc.collect()
    torch.cuda.empty_cache()


def now(batch: Tensor) -> float:
    """Seconds, once the device has done what it was told."""
    if batch.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def draw_batch(model: PreTrainedModel, options: argparse.Namespace, seed: int) -> Tensor:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    size = (options.batch_size, options.tokens)
    return torch.randint(model.config.vocab_size, size, generator=generator).to(model.device)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median, and its 95% bootstrap interval."""
    if values.std() < 1e-12:
        return (float(np.median(values)),) * 3
    found = bootstrap((values,), np.median, method="percentile", rng=0).confidence_interval
    return float(np.median(values)), float(found.low), float(found.high)


def measure_time(model: str, dtype: str, options: argparse.Namespace, names: tuple[str, ...], rounds: int) -> dict:
    """Seconds of every contender's steps and of their parts: arrays of shape `(rounds,)`."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    # A GPU has room for one at a time, and is as fast for the one as for the other.
    for group in [names] if options.device == "cpu" else [[name] for name in names]:
        contenders = [Contender(name, load(model, dtype, options.device)) for name in group]
        for number in track(range(rounds + WARM_UP), f"{model} {dtype}: {', '.join(group)}"):
            # In another order each time: who comes after whom should make no difference.
            for contender in np.random.default_rng(number).permutation(np.array(contenders, dtype=object)):
                parts = contender.step(draw_batch(contender.model, options, number))
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
    """How the time of R2F's own work is divided, by the names that it has in the profiler; parts of 1."""
    contender = Contender("r2f", load(model, dtype, options.device))
    batches = [draw_batch(contender.model, options, number) for number in range(WARM_UP + 3)]
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        # The profiler's own ranges end before a GPU has done what was begun in them.
        begin = now(batches[0])
        yield
        seconds[name] = seconds.get(name, 0.0) + now(batches[0]) - begin

    with patch("r2f_hf.step.record_function", timed):
        for number, batch in enumerate(batches):
            if number == WARM_UP:
                seconds.clear()
            contender.step(batch)
    del contender
    release_memory()
    total = sum(seconds.values())
    return {name.removeprefix("r2f/"): took / total for name, took in seconds.items()}


def resident(field: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure_memory(name: str, model: str, dtype: str, options: argparse.Namespace) -> dict[str, int]:
    """Peak memory of three steps beyond the loaded weights, and what it is made of, in bytes. In a fresh process."""
    loaded = load(model, dtype, options.device)
    batch = draw_batch(loaded, options, 0)
    with torch.no_grad():
        # What the first forward pass allocates for good, such as the threads' own memory, is not a method's.
        loaded(input_ids=batch[:1, :8])
    weights = list(loaded.parameters())
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        # Resets the peak.
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    contender = Contender(name, loaded)
    gradients = 0
    for number in range(3):
        batch = draw_batch(loaded, options, number)
        contender.forward(batch).backward()
        held = [p.grad for p in contender.model.parameters() if p.grad is not None]
        gradients = max(gradients, size(held))
        del held
        contender.update()
    peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else resident("VmHWM")
    state = [] if contender.optimizer is None else contender.optimizer.state.values()
    own = {id(weight) for weight in weights}
    pairs = size(p for p in contender.model.parameters() if id(p) not in own)
    found = {
        "weights": size(weights),
        "peak": peak - before,
        "gradients": gradients,
        "state": pairs + size(t for entry in state for t in entry.values() if isinstance(t, Tensor)),
    }
    if name == "r2f":
        # A subspace has half of the pair's size. What several modules share is there once.
        shared = {id(each): each for each in contender.r2f.retained_inputs.values()}.values()
        found["state"] += pairs // 2 + size(each.directions for each in shared)
    return found | {"activations": found["peak"] - found["gradients"] - found["state"]}


def memory_in_a_process(name: str, model: str, dtype: str, options: argparse.Namespace) -> dict[str, int]:
    """[`measure_memory`], on a CPU in a process of its own. A GPU's allocator counts bytes, whatever was before."""
    if options.device == "cuda":
        found = measure_memory(name, model, dtype, options)
        release_memory()
        return found
    flags = ["--memory_of", name, "--model", model, "--dtype", dtype, "--device", options.device]
    flags += ["--batch_size", str(options.batch_size), "--tokens", str(options.tokens)]
    # Freed memory goes back at once, so that the peak is of what was in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, *flags]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(model: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model in one precision."""
    seconds = measure_time(model, dtype, options, CONTENDERS, options.rounds)
    found: dict[str, Any] = {"seconds": {name: float(np.median(parts["step"])) for name, parts in seconds.items()}}
    r2f = seconds["r2f"]
    ratios = {f"ratio_{name}": r2f["step"] / seconds[name]["step"] for name in CONTENDERS if name != "r2f"}
    ratios["overhead_fraction"] = (r2f["update"]) / r2f["step"]
    for key, values in ratios.items():
        found[key], found[f"{key}_low"], found[f"{key}_high"] = interval(values)
    own = split_update(model, dtype, options)
    step = float(np.median(r2f["step"]))
    parts = {part: float(np.median(r2f[part])) / step for part in ("forward", "backward")}
    found["breakdown"] = parts | {part: share * found["overhead_fraction"] for part, share in own.items()}
    memory = {
        name: [memory_in_a_process(name, model, dtype, options) for _ in range(options.repeats)]
        for name in track(CONTENDERS, "memory")
    }
    found["memory"] = {
        name: {key: int(np.median([m[key] for m in ms])) for key in ms[0]} for name, ms in memory.items()
    }
    for name in CONTENDERS:
        if name != "r2f":
            values = np.array([a["peak"] / b["peak"] for a in memory["r2f"] for b in memory[name]])
            key = f"memory_vs_{name}"
            found[key], found[f"{key}_low"], found[f"{key}_high"] = (
                float(np.median(values)),
                float(values.min()),
                float(values.max()),
            )
    return found


def linearity(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of R2F's own work on the first layers of SmolLM2-135M, over many steps and by the number of layers."""
    found = {}
    for layers in (6, 12, 24, 30):
        contender = Contender("r2f", load("smollm2", "float32", options.device, layers))
        batch = draw_batch(contender.model, options, 0)[:2, :16]
        times = [contender.step(batch) for _ in range(options.steps)]
        own = np.array([parts["update"] for parts in times[2:]])
        found[f"{layers} layers"] = {
            "seconds": float(np.median(own)),
            "per layer": float(np.median(own)) / layers,
            "last third / first third": float(np.median(own[-len(own) // 3 :]) / np.median(own[: len(own) // 3])),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and rows, of one model in one precision")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch_size", type=int, help="rows; 16 by default, 8 with --quick")
    parser.add_argument("--tokens", type=int, default=64, help="tokens a row")
    parser.add_argument("--output", type=Path, default=Path("outputs/step_cost.json"))
    parser.add_argument("--memory_of", choices=CONTENDERS, help="one contender's memory, in this process, as JSON")
    parser.add_argument("--model", choices=("smollm2", *SHAPES), help="one model alone")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="one precision alone")
    options = parser.parse_args()
    options.batch_size = options.batch_size or (8 if options.quick else 16)
    options.rounds, options.repeats, options.steps = (5, 1, 14) if options.quick else (15, 3, 32)
    if options.device == "cuda":
        options.repeats = 1
    if options.memory_of:
        print(json.dumps(measure_memory(options.memory_of, options.model, options.dtype, options)))
        return

    if options.device == "cpu":
        settings = [("smollm2", dtype) for dtype in ("float32", "bfloat16")[: 1 + computes_bf16()]]
    else:
        settings = [("smollm2", "bfloat16"), ("llama-1b", "bfloat16"), ("llama-8b", "bfloat16")]
    asked = (options.model, options.dtype)
    settings = [each for each in settings if all(one in (None, two) for one, two in zip(asked, each, strict=True))]
    if not settings:
        parser.error(f"Not on this {options.device}: {' '.join(filter(None, asked))}.")
    settings = settings[:1] if options.quick else settings
    compared = {f"{model} {dtype}": compare(model, dtype, options) for model, dtype in settings}
    first = next(iter(compared.values()))
    report = {key: value for key, value in first.items() if isinstance(value, float)}
    # In fp32, of SmolLM2.
    shown = options.model in (None, "smollm2") and options.dtype in (None, "float32")
    growth = linearity(options) if shown else {}
    report |= {"compared": compared, "linearity": growth, "device": options.device, "torch": torch.__version__}
    report |= {"batch_size": options.batch_size, "tokens": options.tokens, "rank": RANK}
    write_json(options.output, report)

    table = {}
    for name, found in compared.items():
        for contender, took in found["seconds"].items():
            memory = found["memory"][contender]
            table[f"{name} {contender}"] = {
                "seconds": took,
                "R2F's step / this": found.get(f"ratio_{contender}", 1.0),
                **{f"{key} MB": memory[key] / 1e6 for key in ("weights", "peak", "gradients", "state", "activations")},
                "R2F's peak / this": found.get(f"memory_vs_{contender}", 1.0),
            }
    print_table(f"{options.batch_size} rows of {options.tokens} tokens", table, list(next(iter(table.values()))))
    breakdowns = {name: found["breakdown"] for name, found in compared.items()}
    print_table("Where R2F's step goes, parts of 1", breakdowns, list(next(iter(breakdowns.values()))))
    if growth:
        print_table("R2F's own work", growth, list(next(iter(growth.values()))))
    for name, found in compared.items():
        keys = [key for key in found if f"{key}_low" in found]
        print(
            name, *(f"{key} {found[key]:.3f} ({found[f'{key}_low']:.3f}-{found[f'{key}_high']:.3f})" for key in keys)
        )
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
