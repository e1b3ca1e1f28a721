"""
Updates to the weights and to an adapter, compared: SmolLM2-135M forgets TOFU authors either way.

    python benchmarks/adapter_target.py --data DIR [--ranks 0 16 64 256] [--seed 0]

The model, the data, the losses, the batches, the step budget and the stopping rule are those of tofu_smollm2.py. The
runs differ only in what takes the updates: an adapter of some rank or, at rank 0, the weights themselves.

Probabilities are those of the answers, length-normalised. `discarded` is the part of a step's squared norm that the
adapter's rank cut off, as a mean over steps. `adapter_mb` is the size of the adapter on the disk, in MB.

Writes outputs/adapter_target.json.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2f_hf import R2FConfig, R2FTrainer
from r2f_hf.cli.recipes import parse_recipe
from r2f_hf.cli.unlearn import UnlearnArguments
from r2f_hf.models.loading import QuantisedModelArguments
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from r2f_hf.scoring.completions import score_completions
from shared.finetune import finetuned_folder
from shared.precision import computes_bf16
from shared.pypi_models import smollm2_folder
from tofu_smollm2 import RECIPE, load_data


COLUMNS = (
    "forget_probability",
    "forget_paraphrase_probability",
    "retain_probability",
    "discarded",
    "fidelity",
    "adapter_mb",
    "steps",
    "seconds",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with TOFU's JSON-lines files")
    parser.add_argument("--forget", default="forget01", choices=("forget01", "forget05", "forget10"))
    parser.add_argument("--authors", type=int, default=20, help="authors that the model is fine-tuned on")
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[0, 16, 64, 256], help="ranks of the adapter; 0 stands for the weights"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/adapter_target.json"))
    options = parser.parse_args()

    data = load_data(options.data, options.forget, options.authors)
    base = smollm2_folder()
    before = finetuned_folder(base, data["train"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flags = ["--config", str(RECIPE), "--bf16", str(computes_bf16()), *(["--use_cpu"] if device == "cpu" else [])]
    _, recipe, _ = parse_recipe("unlearn", (UnlearnArguments, R2FConfig, QuantisedModelArguments), flags)
    forget, retain = (data["splits"][name] for name in ("forget", "retain"))
    scored = {
        "forget": ([row["question"] for row in forget], forget),
        "forget_paraphrase": ([row["paraphrased_question"] for row in forget], forget),
        "retain": ([row["question"] for row in retain], retain),
    }

    def load() -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(before).to(device)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        model.eval()
        probabilities = {}
        for name, (questions, rows) in scored.items():
            with torch.autocast(device, dtype=torch.bfloat16, enabled=recipe.bf16):
                log_probs = score_completions(model, tokenizer, questions, [row["answer"] for row in rows], 16)
            probabilities[f"{name}_probability"] = float(np.exp(log_probs).mean())
        return probabilities

    def unlearn(rank: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as scratch:
            args = replace(recipe, output_dir=scratch, seed=options.seed, disable_tqdm=True, logging_steps=1)
            if rank:
                args = replace(args, update_target="adapter", adapter_rank=rank)
            rows = {f"{name}_dataset": data[name] for name in ("forget", "retain", "holdout")}
            trainer = R2FTrainer(load(), args, processing_class=tokenizer, **rows)
            training = trainer.train().metrics
        result = evaluate(trainer.model)
        key = "r2f/discarded_energy"
        logs = [entry[key] for entry in trainer.state.log_history if key in entry]
        adapter = [] if rank == 0 else trainer.target.state(trainer.model).values()
        result |= {"steps": trainer.state.global_step, "seconds": training["train_runtime"]}
        result |= {"discarded": fmean(logs) if logs else 0.0, "fidelity": training["fidelity"]}
        return result | {"adapter_mb": sum(tensor.numel() * tensor.element_size() for tensor in adapter) / 1e6}

    rows = {"before": evaluate(load())}
    for rank in track(options.ranks, "Unlearning"):
        rows[f"adapter of rank {rank}" if rank else "weights"] = unlearn(rank)
        write_json(options.output, rows)
    print_table(f"SmolLM2-135M forgets TOFU {options.forget}, seed {options.seed}", rows, COLUMNS)
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
