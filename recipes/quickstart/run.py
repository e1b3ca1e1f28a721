"""The quickstart: builds a small world and its models, makes one model forget, and reports on what was forgotten."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from transformers import set_seed

from prepare import prepare
from r2f_hf import cli
from r2f_hf.runs.files import write_json


RECIPES = Path(__file__).parent.parent
COLUMNS = (
    "forget_probability",
    "forget_paraphrase_probability",
    "forget_extraction_strength",
    "truth_ratio",
    "forget_quality",
    "mia_loss_auc",
    "privleak_loss",
    "retain_probability",
    "model_utility",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the world, the models and the unlearning")
    parser.add_argument("--forget_people", type=int, default=4, help="how many of the twenty people to forget")
    parser.add_argument("--recipe", default="lasting", choices=("quickstart", "lasting"), help="how to forget")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"))
    args = parser.parse_args()
    folder = args.output_dir

    set_seed(args.seed)
    prepare(folder, args.seed, args.forget_people)
    data = {split: f"--{split}_data={folder / 'data' / split}.jsonl" for split in ("forget", "retain")}
    models = {
        role: f"--{role}={folder / name}"
        for role, name in (
            ("model_name_or_path", "unlearned"),
            ("original_model", "before"),
            ("gold_model", "gold"),
        )
    }
    # With it the run decides by itself when to stop. The other recipe takes all its steps.
    holdout = [f"--holdout_data={folder / 'data' / 'holdout.jsonl'}"] if args.recipe == "lasting" else []
    # What a shell would call, one command after the other.
    r2f(
        *("unlearn", "--config", RECIPES / args.recipe / "unlearn.yaml", "--seed", args.seed),
        *("--model_name_or_path", folder / "before", "--output_dir", folder / "unlearned"),
        *(*data.values(), *holdout, "--overwrite_output_dir"),
    )
    r2f(
        *("evaluate", "--data", folder / "data" / "tofu", *models.values(), "--output_dir", folder / "evaluation"),
        *("--batch_size", 64, "--max_new_tokens", 32),
    )
    r2f(
        *("attack", "--attacks", "relearning,quantisation", *models.values(), *data.values()),
        *("--output_dir", folder / "attacks", "--batch_size", 64, "--seed", args.seed),
    )
    write_json(folder / "report.json", table(folder))
    r2f("report", folder, "--out", folder / "report.html")


def r2f(*argv: object) -> None:
    """Run an `r2f` command."""
    cli.main([str(argument) for argument in argv])


def table(folder: Path) -> dict[str, dict[str, float]]:
    """The main metrics before, after and of gold, for the benchmarks that read them."""
    report = json.loads((folder / "evaluation" / "report.json").read_text())
    run = json.loads((folder / "unlearned" / "train_results.json").read_text())
    models = {"before": report["compared"]["original"], "after": report["metrics"], "gold": report["compared"]["gold"]}
    rows = {row: {column: metrics[column] for column in COLUMNS} for row, metrics in models.items()}
    rows["after"] |= {"fidelity": run["fidelity"], "steps": run["steps"], "seconds": run["train_runtime"]}
    return rows


if __name__ == "__main__":
    main()
