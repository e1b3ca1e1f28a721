"""
R2F compared with LoRA and full AdamW on a GPU: a model of Llama-3.2-1B's shape with random weights, in bf16.

    python benchmarks/gpu_smoke.py [--steps 10] [--batch_size 4]

Each run has a process of its own. Prints seconds per step (the median, without the first three steps), peak memory
beyond the weights, and R2F's fidelity. Writes outputs/gpu_smoke.json.

Without a GPU the script says so and ends. `--device cpu --layers 1 --hidden_size 64` tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from rich.progress import track
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, TrainerCallback

from r2f_hf import R2FConfig
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.faults_worker import build_data, build_tokenizer
from shared.peers import RUNS


COLUMNS = ("seconds_a_step", "ratio_to_lora", "memory_beyond_weights_gb", "weights_gb", "fidelity")


def build_model(layers: int, hidden_size: int, device: str) -> PreTrainedModel:
    """Random weights of Llama-3.2-1B's shape, or of fewer or narrower layers."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64 or 1,
        num_key_value_heads=max(1, hidden_size // 256),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=256,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


class Clock(TrainerCallback):
    """Records when each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args, **kwargs) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def measure(run: str, options: argparse.Namespace) -> dict[str, float]:
    """The figures of one run, in this process."""
    model = build_model(options.layers, options.hidden_size, options.device)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        args = R2FConfig(
            scratch,
            use_cpu=options.device == "cpu",
            bf16=True,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=None if run == "r2f" else 1e-4,
            # The runs without protection have this many by default. Here steps are compared, not recipes.
            retain_per_forget=3,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            keep_original=False,
        )
        data = build_data() | {"processing_class": build_tokenizer(), "callbacks": [clock]}
        trainer = RUNS[run](model, args, **data)
        metrics = trainer.train().metrics
    steps = [after - before for before, after in pairwise(clock.times)]
    figures = {"seconds_a_step": median(steps[2:]), "weights_gb": weights / 1e9}
    if options.device == "cuda":
        figures["memory_beyond_weights_gb"] = (torch.cuda.max_memory_allocated() - weights) / 1e9
    return figures | {name: metrics[name] for name in ("fidelity",) if name in metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--batch_size", type=int, default=4, help="forget rows per step; there are three times as many retain rows"
    )
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden_size", type=int, default=2048)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu_smoke.json"))
    parser.add_argument("--run", choices=("r2f", "lora", "full"), help="make only this run, in this process")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here: nothing was measured.")
        return
    if options.run:
        write_json(options.output, measure(options.run, options))
        return
    report = {}
    with tempfile.TemporaryDirectory() as scratch:
        for run in track(("r2f", "lora", "full"), "Running"):
            output = Path(scratch) / f"{run}.json"
            flags = [f"--{name}={getattr(options, name)}" for name in ("steps", "batch_size", "layers", "device")]
            flags += [f"--hidden_size={options.hidden_size}", f"--output={output}", f"--run={run}"]
            subprocess.run([sys.executable, __file__, *flags], check=True)
            report[run] = json.loads(output.read_text())
    for figures in report.values():
        figures["ratio_to_lora"] = figures["seconds_a_step"] / report["lora"]["seconds_a_step"]
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    write_json(options.output, {"device": device, "torch": torch.__version__, "runs": report})
    print_table(f"{options.layers} layers of {options.hidden_size} on {device}", report, COLUMNS)
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
