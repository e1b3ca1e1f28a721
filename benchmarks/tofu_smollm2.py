"""
R2F compared with LoRA, full AdamW and the exact gradient under R2F's update rule: SmolLM2-135M forgets TOFU authors.

    python benchmarks/tofu_smollm2.py --data DIR [--forget forget01] [--authors 20] [--seeds 0 1 2]

The model is fine-tuned on the last `--authors` authors of TOFU, and the gold model on all of them but the forget
set's. Both are cached. Every run then has the losses, the forget batches, the step budget and the stopping rule of
recipes/tofu. LoRA and full AdamW do not protect the retain set, and have three retain examples per forget
example instead of one.

R2F takes its learning rate from the recipe. For each peer several rates are swept on the first seed, and the best one
is used on all seeds. The best one has the highest forget quality among those that keep 95% of P(retain); if there is
none, it is the one that keeps the most. A seed is that of the unlearning: of batches, probes and adapter. `before` and
`gold` have the seed of the fine-tuning.

Finished runs are loaded again, so that the command goes on where it was interrupted. Writes
outputs/tofu_smollm2/report.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer

import r2f_hf
from r2f_hf import R2FConfig
from r2f_hf.cli.recipes import parse_recipe
from r2f_hf.cli.unlearn import UnlearnArguments
from r2f_hf.data.loading import load_rows
from r2f_hf.data.rows import Row, content_hash
from r2f_hf.evaluation import run_suite
from r2f_hf.evaluation.suites.registry import split_names
from r2f_hf.evaluation.suites.tofu import TOFU
from r2f_hf.models.loading import QuantisedModelArguments
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from r2f_hf.scoring.completions import score_completions
from shared import peers
from shared.finetune import finetuned_folder
from shared.peers import RUNS
from shared.precision import computes_bf16
from shared.pypi_models import smollm2_folder


RECIPE = Path(__file__).parent.parent / "recipes" / "tofu" / "forget01.yaml"
QUESTIONS_PER_AUTHOR = 20
# Rows of the retain set that are evaluated, spread evenly over its authors.
RETAIN_ROWS = 60
SWEEP = {"lora": (1e-3, 2e-3, 4e-3), "full": (5e-6, 1.5e-5, 5e-5), "exact": (0.3, 0.6, 1.2)}
KEPT = 0.95
# Files that only R2F uses.
R2F_SOURCE = (
    "callback.py",
    "cli/",
    "config.py",
    "decoders/",
    "gradients/",
    "probes/",
    "step.py",
    "trainer.py",
    "training/recorded_trainer.py",
    "updates/",
)
# Files among them that the exact gradient's rule uses too.
SHARED_SOURCE = ("updates/retained_inputs.py", "updates/second_moments.py")
# Options that only R2F uses.
R2F_OPTIONS = (
    "adaptive",
    "decoder",
    "held_out",
    "learning_rate",
    "min_fidelity",
    "normalize_update",
    "on_bad_gradient",
    "warm_probes",
)


def load_data(folder: Path, forget: str, authors: int) -> dict[str, Any]:
    """The rows to train on (`train`, `forget`, `retain`, `holdout`), and the splits to evaluate (`splits`)."""

    def rows(name: str) -> list[dict]:
        return list(load_rows(str(folder / f"{name}.json")))

    train = rows("full")[-authors * QUESTIONS_PER_AUTHOR :]
    forget_rows = rows(forget)
    if len(forget_rows) >= len(train):
        raise SystemExit(f"{forget} has {len(forget_rows) // QUESTIONS_PER_AUTHOR} authors; use more than {authors}.")
    retain = train[: -len(forget_rows)]
    splits = {name: rows(config) for name, config in split_names(TOFU, forget).items() if name != "retain"}
    return {
        "train": train,
        "forget": forget_rows,
        "retain": retain,
        "holdout": rows(forget.replace("forget", "holdout")),
        "splits": splits | {"retain": evaluated_rows(folder, retain)},
    }


def with_wrong_answers(folder: Path, rows: Sequence[Row]) -> list[Row]:
    """TOFU's rows with paraphrased and wrong answers for those of `rows` that have them, in the same order."""
    files = ("retain_perturbed", "forget10_perturbed")
    known = {row["question"]: row for name in files for row in load_rows(str(folder / f"{name}.json"))}
    return [known[row["question"]] for row in rows if row["question"] in known]


def evaluated_rows(folder: Path, retain: Sequence[Row]) -> list[Row]:
    """The rows of the retain set that are evaluated."""
    rows = with_wrong_answers(folder, retain)
    return rows[:: max(1, len(rows) // RETAIN_ROWS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with TOFU's JSON-lines files")
    parser.add_argument("--forget", default="forget01", choices=("forget01", "forget05", "forget10"))
    parser.add_argument("--authors", type=int, default=20, help="authors that the model is fine-tuned on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/tofu_smollm2"))
    options = parser.parse_args()

    data = load_data(options.data, options.forget, options.authors)
    base = smollm2_folder()
    folders = {
        "before": finetuned_folder(base, data["train"]),
        "gold": finetuned_folder(base, data["retain"]),
    }
    tokenizer = AutoTokenizer.from_pretrained(base)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    flags = ["--config", str(RECIPE), "--bf16", str(computes_bf16()), *(["--use_cpu"] if device == "cpu" else [])]
    _, recipe, _ = parse_recipe("unlearn", (UnlearnArguments, R2FConfig, QuantisedModelArguments), flags)

    def load(name: str) -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(folders[name]).to(device)

    def evaluate(
        model: torch.nn.Module, name: str, gold: dict | None, only: Sequence[str] = tuple(TOFU.splits)
    ) -> tuple[dict[str, float], dict]:
        splits = {split: data["splits"][split] for split in only}
        # The precision is that of the training, which is also the faster one on a CPU.
        with torch.autocast(device, dtype=torch.bfloat16, enabled=recipe.bf16):
            return run_suite("tofu", model, tokenizer, splits, options.output_dir / "statistics" / name, gold, 32)

    def train(run: str, learning_rate: float, seed: int) -> tuple[torch.nn.Module, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as scratch:
            args = replace(recipe, output_dir=scratch, learning_rate=learning_rate, seed=seed, disable_tqdm=True)
            rows = {f"{name}_dataset": data[name] for name in ("forget", "retain", "holdout")}
            trainer = RUNS[run](load("before"), args, processing_class=tokenizer, **rows)
            training = trainer.train().metrics
        result = {
            "run": run,
            "seed": seed,
            "learning_rate": learning_rate,
            "steps": trainer.state.global_step,
            "seconds": training["train_runtime"],
            "stop_reason": trainer.stop_reason,
        }
        if "fidelity" in training:
            result["fidelity"] = training["fidelity"]
        model = trainer.model
        if run == "r2f":
            model = model.unload()
        elif run == "lora":
            model = model.merge_and_unload()
        return model, result

    def finish(model: torch.nn.Module, result: dict[str, Any]) -> dict[str, Any]:
        metrics, _ = evaluate(model, f"{result['run']}-{result['seed']}", gold)
        return result | {column: metrics[column] for column in TOFU.headline}

    def sweep_peer(run: str, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Every learning rate, with the metrics that it is chosen by; and the best one, with all metrics."""
        swept, models = [], []
        for rate in SWEEP[run]:
            model, result = train(run, rate, seed)
            metrics, _ = evaluate(model, f"{run}-{rate}", gold, ("forget",))
            questions = [row["question"] for row in data["splits"]["retain"]]
            answers = [row["answer"] for row in data["splits"]["retain"]]
            with torch.autocast(device, dtype=torch.bfloat16, enabled=recipe.bf16):
                log_probs = score_completions(model, tokenizer, questions, answers, desc="retain: answers")
            metrics["retain_probability"] = float(np.exp(log_probs).mean())
            swept.append(result | {column: metrics[column] for column in TOFU.headline if column in metrics})
            models.append(model)
        chosen = best(swept)
        return swept, finish(
            models[chosen], {key: value for key, value in swept[chosen].items() if key not in TOFU.headline}
        )

    def best(results: list[dict[str, Any]]) -> int:
        keeping = [index for index, result in enumerate(results) if result["retain_probability"] >= kept]
        if keeping:
            return max(keeping, key=lambda index: results[index]["forget_quality"])
        return max(range(len(results)), key=lambda index: results[index]["retain_probability"])

    def once(name: str, compute: Callable[[], Any]) -> Any:
        """Compute, or load what an earlier run of this command with the same settings has computed."""
        file = options.output_dir / "runs" / f"{name}-{settings[name.startswith('r2f')]}.json"
        if not file.is_file():
            write_json(file, compute())
        return json.loads(file.read_text())

    # A run is kept under a hash of all that its numbers depend on, the package's code included. A peer's numbers do
    # not depend on what only R2F uses: a change of a decoder leaves them valid.
    package = Path(r2f_hf.__file__).parent
    source = {str(path.relative_to(package)): path.read_text() for path in sorted(package.rglob("*.py"))}
    source["peers"] = Path(peers.__file__).read_text()
    everything = [recipe.to_sanitized_dict(), source, data, [f.name for f in folders.values()]]
    shared = {name: text for name, text in source.items() if name in SHARED_SOURCE or not name.startswith(R2F_SOURCE)}
    options_shared = {key: value for key, value in everything[0].items() if key not in R2F_OPTIONS}
    options_shared |= {"retain_per_forget of peers": peers.without_protection(recipe).retain_per_forget}
    settings = {True: content_hash(everything), False: content_hash([options_shared, SWEEP, shared, *everything[2:]])}
    _, gold = evaluate(load("gold"), "gold", None)
    rows, sweep = [], []
    for name in ("before", "gold"):
        metrics, _ = evaluate(load(name), name, gold)
        empty = {"seed": 0, "learning_rate": 0.0, "steps": 0, "seconds": 0.0}
        rows.append({"run": name, **empty, **{column: metrics[column] for column in TOFU.headline}})
    kept = KEPT * rows[0]["retain_probability"]

    first, *others = options.seeds
    for seed in track(options.seeds, "r2f"):
        rows.append(once(f"r2f-{seed}", lambda seed=seed: finish(*train("r2f", recipe.learning_rate, seed))))
    for run in SWEEP:
        swept, chosen = once(f"{run}-sweep-{first}", lambda run=run: sweep_peer(run, first))
        sweep += swept
        rows.append(chosen)
        for seed in track(others, run):
            rate = chosen["learning_rate"]
            rows.append(once(f"{run}-{seed}", lambda run=run, rate=rate, seed=seed: finish(*train(run, rate, seed))))
    write_json(options.output_dir / "report.json", {"rows": rows, "sweep": sweep})

    table = {f"{row['run']} lr {row['learning_rate']:g} seed {row['seed']}": row for row in rows}
    for run in RUNS:
        runs = [row for row in rows if row["run"] == run]
        table[f"{run}, mean"] = {
            column: sum(row[column] for row in runs) / len(runs) for column in (*TOFU.headline, "steps", "seconds")
        }
    print_table(f"SmolLM2-135M forgets TOFU {options.forget}", table, (*TOFU.headline, "steps", "seconds"))
    print_table(
        "Learning rates swept", {f"{r['run']} lr {r['learning_rate']:g}": r for r in sweep}, (*TOFU.headline, "steps")
    )
    print(f"The report is {options.output_dir / 'report.json'}.")


if __name__ == "__main__":
    main()
