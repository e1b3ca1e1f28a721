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
# The shapes of Llama-3.2-1B and Llama-3.1-8B.
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
    """The weights that R2F writes: those of all linear layers but the head."""
    head = model.get_output_embeddings()
    return [module.weight for module in model.modules() if isinstance(module, nn.Linear) and module is not head]


class Contender:
    """
    A model, and a way to take steps on it.

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
            # Any text will do as the retain set: the sketches of its inputs have the same number of columns.
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
        """Take a step. Returns the seconds of its forward pass, its backward pass and its update."""
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
    """Apply a gradient, and release it."""
    weight.sub_(weight.grad, alpha=1e-6)
    weight.grad = None


def release_memory() -> None:
    """Free the memory of models that nothing refers to any more."""
    gc.collect()
    torch.cuda.empty_cache()


def now(batch: Tensor) -> float:
    """The time in seconds, after the device has finished its work."""
    if batch.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def draw_batch(model: PreTrainedModel, options: argparse.Namespace, seed: int) -> Tensor:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    size = (options.batch_size, options.tokens)
    return torch.randint(model.config.vocab_size, size, generator=generator).to(model.device)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median, and the ends of its 95% bootstrap interval."""
    if values.std() < 1e-12:
        return (float(np.median(values)),) * 3
    ends = bootstrap((values,), np.median, method="percentile", rng=0).confidence_interval
    return float(np.median(values)), float(ends.low), float(ends.high)


def measure_time(model: str, dtype: str, options: argparse.Namespace, names: tuple[str, ...], rounds: int) -> dict:
    """Seconds of each contender's steps and of their parts, as arrays of shape `(rounds,)`."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    # A GPU has room for one contender at a time, and is equally fast for each of them.
    for group in [names] if options.device == "cpu" else [[name] for name in names]:
        contenders = [Contender(name, load(model, dtype, options.device)) for name in group]
        for number in track(range(rounds + WARM_UP), f"{model} {dtype}: {', '.join(group)}"):
            # The order changes in each round, so that it makes no difference who comes after whom.
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
    """The share of each part in the time of R2F's own work, by the part's name in the profiler."""
    contender = Contender("r2f", load(model, dtype, options.device))
    batches = [draw_batch(contender.model, options, number) for number in range(WARM_UP + 3)]
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        # The profiler's own ranges end before a GPU has finished the work that was started in them.
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
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure_memory(name: str, model: str, dtype: str, options: argparse.Namespace) -> dict[str, int]:
    """Peak memory of three steps beyond the loaded weights, and its parts, in bytes. To be called in a new process."""
    loaded = load(model, dtype, options.device)
    batch = draw_batch(loaded, options, 0)
    with torch.no_grad():
        # The first forward pass allocates memory that stays, such as the threads' own. It belongs to no method.
        loaded(input_ids=batch[:1, :8])
    weights = list(loaded.parameters())
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        # This resets the peak, `VmHWM`.
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    contender = Contender(name, loaded)
    gradients = 0
    for number in range(3):
        batch = draw_batch(loaded, options, number)
        contender.forward(batch).backward()
        current = [p.grad for p in contender.model.parameters() if p.grad is not None]
        gradients = max(gradients, size(current))
        del current
        contender.update()
    peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else resident("VmHWM")
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


def memory_in_a_process(name: str, model: str, dtype: str, options: argparse.Namespace) -> dict[str, int]:
    """[`measure_memory`], on a CPU in a process of its own. A GPU's allocator counts the same bytes in any process."""
    if options.device == "cuda":
        memory = measure_memory(name, model, dtype, options)
        release_memory()
        return memory
    flags = ["--memory_of", name, "--model", model, "--dtype", dtype, "--device", options.device]
    flags += ["--batch_size", str(options.batch_size), "--tokens", str(options.tokens)]
    # With these settings freed memory goes back at once, so that the peak is that of the memory in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, *flags]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


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
    step = float(np.median(r2f["step"]))
    parts = {part: float(np.median(r2f[part])) / step for part in ("forward", "backward")}
    figures["breakdown"] = parts | {part: share * figures["overhead_fraction"] for part, share in shares.items()}
    memory = {
        name: [memory_in_a_process(name, model, dtype, options) for _ in range(options.repeats)]
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
        batch = draw_batch(contender.model, options, 0)[:2, :16]
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
    parser.add_argument("--memory_of", choices=CONTENDERS, help="print only this contender's memory, as JSON")
    parser.add_argument("--model", choices=("smollm2", *SHAPES), help="only this model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="only this precision")
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
