"""
The audit of SmolLM2-135M on TOFU: R2F, LoRA and the exact gradient, judged by the suite and by all attacks.

    python benchmarks/audit_smollm2.py --data DIR [--forget forget01] [--authors 20] [--runs r2f lora exact]

The model is fine-tuned on the last `--authors` authors of TOFU, and gold on all of them but the forget set's. Every
run has the losses, batches and steps of recipes/tofu, without its stopping rule: all take the same steps. Only
`lasting`, which has to be asked for, has the objective and the options of recipes/lasting: it takes more steps, and
stops by itself. LoRA's rate is the best of the sweep of benchmarks/tofu_smollm2.py.

The first table has the metrics of the TOFU suite, with unlearning depth and truth stability, and the second one what
each attack gets. `comeback` is of the answers that the attack did not use: 0 is gold's level, and 1 is as if nothing
had been forgotten.

Models, statistics and attacks are kept in the output folder, and the command goes on where it was interrupted. Delete
the folder when the code has changed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lasting import R2F_RUNS
from r2f_hf import R2FConfig
from r2f_hf.attacks import UNATTACKED, Target, chosen_attacks, compare, run_attacks
from r2f_hf.cli.recipes import parse_recipe
from r2f_hf.cli.unlearn import UnlearnArguments
from r2f_hf.data.formatting import encode_example
from r2f_hf.evaluation import run_depth, run_suite
from r2f_hf.evaluation.depth import summarise_depth
from r2f_hf.evaluation.suites import SUITES
from r2f_hf.models.loading import QuantisedModelArguments
from r2f_hf.report import print_table
from r2f_hf.runs.files import read_kept, write_json
from shared.finetune import finetuned_folder
from shared.peers import RUNS
from shared.precision import computes_bf16
from shared.pypi_models import smollm2_folder
from tofu_smollm2 import RECIPE, load_data


RATES = {"lora": 4e-3, "exact": 0.6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with TOFU's JSON-lines files")
    parser.add_argument("--forget", default="forget01", choices=("forget01", "forget05", "forget10"))
    parser.add_argument("--authors", type=int, default=20, help="authors that the model is fine-tuned on")
    parser.add_argument("--runs", nargs="+", default=["r2f", "lora", "exact"], choices=[*RUNS, "lasting"])
    parser.add_argument("--attacks", nargs="+", default=["all"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/audit_smollm2"))
    options = parser.parse_args()
    names = chosen_attacks(options.attacks)
    data = load_data(options.data, options.forget, options.authors)
    base = smollm2_folder()
    tokenizer = AutoTokenizer.from_pretrained(base)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flags = ["--config", str(RECIPE), "--bf16", str(computes_bf16()), *(["--use_cpu"] if device == "cpu" else [])]
    _, recipe, _ = parse_recipe("unlearn", (UnlearnArguments, R2FConfig, QuantisedModelArguments), flags)
    folders = {
        "before": finetuned_folder(base, data["train"]),
        "gold": finetuned_folder(base, data["retain"]),
    }
    for run in options.runs:
        folders[run] = options.output_dir / run / "model"
        if not (folders[run] / "config.json").is_file():
            unlearn(run, folders, data, replace(recipe, seed=options.seed), tokenizer, device)

    def load(name: str) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(folders[name]).to(device).eval()

    def encode(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            encode_example(tokenizer, row["question"], row["answer"]) | {"item": index}
            for index, row in enumerate(rows)
        ]

    suite: dict[str, dict[str, float]] = {}
    attacked: dict[str, Any] = {}
    seconds: dict[str, dict[str, float]] = {}
    original = load("before")
    target = Target(
        original,
        tokenizer,
        encode(data["splits"]["forget"]),
        encode(data["splits"]["retain"]),
        rows={name: data["splits"][name] for name in ("forget", "retain")},
        original=original,
        seed=options.seed,
    )
    gold = gold_depth = None
    for name in ("gold", "before", *options.runs):
        folder, model = options.output_dir / name, load(name)
        _, found = run_suite("tofu", model, tokenizer, data["splits"], folder / "suite", gradnorm=True)
        depth = run_depth("tofu", model, tokenizer, data["splits"], folder / "suite", original)
        if name == "gold":
            gold, gold_depth = found, depth
        suite[name] = SUITES["tofu"].summarise(found, gold) | summarise_depth(depth, gold_depth)
        attacked[name] = run_attacks(names, replace(target, model=model), folder / "attacks")
        seconds[name] = {
            "suite": sum(sum(statistics["seconds"].values()) for statistics in found.values()),
            "depth": sum(depth["seconds"].values()),
            "attacks": sum(read_kept(folder / "attacks" / f"{attack}.json").get("seconds", nan) for attack in names),
        }
    comparisons = {
        run: compare({"unlearned": attacked[run], "original": attacked["before"], "gold": attacked["gold"]})
        for run in options.runs
    }
    suite = {name: suite[name] for name in folders}
    report = {"suite": suite, "attacks": comparisons, "seconds": seconds, "authors": options.authors}
    write_json(options.output_dir / "report.json", report)
    print_table(f"TOFU {options.forget}, {options.authors} authors", suite, list(next(iter(suite.values()))))
    table = {}
    for attack, variants in next(iter(comparisons.values())).items():
        for variant, line in variants.items():
            if attack == "logit_lens" and variant.startswith("layer"):
                continue
            row = {"before": line["original"], "gold": line["gold"]}
            for run in options.runs:
                ours = comparisons[run][attack][variant]
                row |= {run: ours["unlearned"]}
                if "comeback" in ours and not variant.startswith(UNATTACKED):
                    row |= {f"{run} comeback": ours["comeback"]}
            table[f"{attack}: {variant}"] = row
    columns = ["before", "gold", *options.runs, *(f"{run} comeback" for run in options.runs)]
    print_table("What the attacks get", table, columns)
    print_table("Seconds, when they were computed", seconds, ["suite", "depth", "attacks"])


def unlearn(
    run: str, folders: dict[str, Path], data: dict[str, Any], recipe: R2FConfig, tokenizer: Any, device: str
) -> None:
    """Make a model forget, and save it as a plain model."""
    settings: dict[str, Any] = {"output_dir": str(folders[run].parent / "run")}
    settings |= {"learning_rate": RATES[run]} if run in RATES else {}
    settings |= R2F_RUNS["r2f-ignorance"] if run == "lasting" else {}
    # Without a holdout set nothing stops the run.
    sets = ("forget", "retain", "holdout") if run == "lasting" else ("forget", "retain")
    rows = {f"{name}_dataset": data[name] for name in sets}
    model = AutoModelForCausalLM.from_pretrained(folders["before"]).to(device)
    trainer = RUNS["r2f" if run == "lasting" else run](
        model, replace(recipe, **settings), processing_class=tokenizer, **rows
    )
    trainer.train()
    model = trainer.model
    if run != "exact":
        model = model.merge_and_unload() if run == "lora" else model.unload()
    model.save_pretrained(folders[run])
    tokenizer.save_pretrained(folders[run])
    (folders[run] / "steps.json").write_text(json.dumps({"steps": trainer.state.global_step}))


if __name__ == "__main__":
    main()
