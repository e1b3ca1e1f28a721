"""The quickstart: builds a small world and its models, makes one model forget, and measures what was forgotten."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from datasets import DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from prepare import prepare
from r2f_hf import cli
from r2f_hf.attacks import Target, compare, run_attacks
from r2f_hf.data.formatting import encode_example
from r2f_hf.evaluation import run_suite
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json


RECIPE = Path(__file__).parent / "unlearn.yaml"
QUESTIONS = {
    "Is it gone?": (
        "forget_probability",
        "forget_paraphrase_probability",
        "forget_extraction_strength",
        "truth_ratio",
    ),
    "Can one tell that it was there?": ("forget_quality", "mia_loss_auc", "privleak_loss"),
    "Is the rest kept?": ("retain_probability", "model_utility"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the world, the models and the unlearning")
    parser.add_argument("--forget_people", type=int, default=4, help="how many of the twenty people to forget")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"))
    args = parser.parse_args()
    folder = args.output_dir

    set_seed(args.seed)
    world = prepare(folder, args.seed, args.forget_people)
    cli.main(
        [
            *("unlearn", "--config", str(RECIPE), "--seed", str(args.seed)),
            *("--model_name_or_path", str(folder / "before"), "--output_dir", str(folder / "unlearned")),
            *(f"--{split}_data={folder / 'data' / split}.jsonl" for split in ("forget", "retain")),
            "--overwrite_output_dir",
        ]
    )

    splits = {split: world[split] for split in ("forget", "retain", "world_facts", "holdout")}

    def evaluate(name: str, gold: dict | None = None) -> tuple[dict, dict]:
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        model = AutoModelForCausalLM.from_pretrained(folder / name)
        return run_suite("tofu", model, tokenizer, splits, folder / "statistics" / name, gold, 64, 32)

    _, gold = evaluate("gold")
    columns = [column for names in QUESTIONS.values() for column in names]
    report = {}
    for row, name in (("before", "before"), ("after", "unlearned"), ("gold", "gold")):
        metrics, _ = evaluate(name, gold)
        report[row] = {column: metrics[column] for column in columns}
    run = json.loads((folder / "unlearned" / "train_results.json").read_text())
    report["after"] |= {"fidelity": run["fidelity"], "steps": run["steps"], "seconds": run["train_runtime"]}
    write_json(folder / "report.json", report)
    lasting = attack(folder, world, args.seed)
    write_json(folder / "attacks.json", lasting)

    print("Before, after Recover-to-Forget, and gold: a model that never saw the forget set.")
    for question, names in QUESTIONS.items():
        print_table(question, report, names)
    print_table("Does it last? P(forget) after an attack", lasting, ["before", "after", "gold", "comeback"])
    print("At a comeback of 0 an attack gets what it gets from gold, and at 1 what it gets from the model before.")
    print(f"The reports are {folder / 'report.json'} and {folder / 'attacks.json'}.")


def attack(folder: Path, world: DatasetDict, seed: int) -> dict[str, dict[str, float]]:
    """What fine-tuning on a tenth of the forget rows brings back, and what 4-bit weights do."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "before")
    examples = {
        split: [
            encode_example(tokenizer, row["question"], row["answer"]) | {"item": index}
            for index, row in enumerate(world[split])
        ]
        for split in ("forget", "retain")
    }
    results = {}
    for role, name in (("unlearned", "unlearned"), ("original", "before"), ("gold", "gold")):
        model = AutoModelForCausalLM.from_pretrained(folder / name).eval()
        target = Target(model, tokenizer, **examples, batch_size=64, seed=seed)
        results[role] = run_attacks(["relearning", "quantisation"], target, folder / "attacks" / role)
    roles = {"unlearned": "after", "original": "before"}
    return {
        f"{name}: {variant}": {roles.get(column, column): value for column, value in line.items()}
        for name, lines in compare(results).items()
        for variant, line in lines.items()
    }


if __name__ == "__main__":
    main()
