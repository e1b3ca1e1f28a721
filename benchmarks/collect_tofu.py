"""
Whether rows that a model writes about a person make it forget that person: SmolLM2-135M and one of four TOFU authors.

    python benchmarks/collect_tofu.py --data DIR [--about "Nikolai Abilov"] [--runs named asked own]

The model is fine-tuned on the last four authors of TOFU (80 rows). `r2f collect` asks it about one of them, and
`r2f unlearn` takes the rows, for 20 steps of the recipe's batches. The table has the mean P(answer) on TOFU's own
rows, which neither command sees: those of this author, those of the other three, and the world facts.

- `named`: `r2f collect` is told the names of the other three authors as neighbours.
- `asked`: it asks the model for neighbours.
- `views`: as `named`, with two wordings of each forget row per step.
- `own`: for comparison, TOFU's own rows of the author are forgotten, and those of the other three are kept.

With `--thresholds` it prints instead how many of 48 answers pass `min_certainty` and `min_margin`: answers about the
authors whom the model knows, and about authors of TOFU whom it never saw. The defaults were chosen on the first of
each, and checked on the others. Finished runs are kept in outputs/collect_tofu and loaded again. Delete them when the
code has changed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2f_hf import cli
from r2f_hf.collecting import CollectedSet, Collector, Interview, Thresholds
from r2f_hf.collecting.questions import every_wording, topic_questions
from r2f_hf.data.loading import load_rows
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from r2f_hf.scoring import score_completions
from shared.finetune import finetuned_folder
from shared.precision import computes_bf16
from shared.pypi_models import smollm2_folder


# The last four authors of TOFU, in the order of their rows.
KNOWN = ("Aysha Al-Hashim", "Edward Patrick Sullivan", "Basil Mahfouz Al-Kuwaiti", "Nikolai Abilov")
# The model never saw the unknown ones. The thresholds were chosen on the first of both.
PEOPLE = {
    "known": (KNOWN[2], KNOWN[3], KNOWN[0], KNOWN[1]),
    "unknown": ("Hsiao Yun-Hwa", "Hina Ameen", "Youssef Al-Zahran", "Chris Delaney"),
}
QUESTIONS_PER_AUTHOR = 20
CERTAINTIES, MARGINS = (0.7, 0.8, 0.9), (0.1, 0.15, 0.2, 0.25, 0.3)
STEPS, BATCH_SIZE = 20, 4
RUNS = ("named", "asked", "views", "own")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with full.json and world_facts.json")
    parser.add_argument("--about", default=KNOWN[-1], choices=KNOWN)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--thresholds", action="store_true", help="print what the thresholds let through instead")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/collect_tofu"))
    options = parser.parse_args()
    rows = list(load_rows(str(options.data / "full.json")))[-len(KNOWN) * QUESTIONS_PER_AUTHOR :]
    model = finetuned_folder(smollm2_folder(), rows)
    if options.thresholds:
        table = {f"{name}, {kind}": passed(model, name) for kind, names in PEOPLE.items() for name in names}
        write_json(options.output_dir / "thresholds.json", table)
        columns = [f"{certainty:g}, {margin:g}" for certainty in CERTAINTIES for margin in MARGINS]
        print_table("Answers of 48 that pass, by min_certainty and min_margin", table, columns)
        return
    world = list(load_rows(str(options.data / "world_facts.json")))
    start = KNOWN.index(options.about) * QUESTIONS_PER_AUTHOR
    author = rows[start : start + QUESTIONS_PER_AUTHOR]
    others = [row for row in rows if row not in author]
    splits = {"P(author)": author, "P(others)": others, "P(world facts)": world}
    options.output_dir /= f"{options.about.replace(' ', '_')}-{options.seed}"
    file = options.output_dir / "report.json"
    table: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}
    if "before" not in table:
        table["before"] = probabilities(model, splits)
    for run in options.runs:
        if run not in table:
            table[run] = unlearned(run, model, options, author, others)
            table[run] |= probabilities(options.output_dir / run / "unlearned", splits)
        # A run that was interrupted goes on here.
        write_json(file, table)
    columns = [*splits, "forget rows", "retain rows"]
    print_table(
        f"SmolLM2-135M forgets {options.about}", {name: table[name] for name in ("before", *options.runs)}, columns
    )


def passed(folder: Path, name: str) -> dict[str, str]:
    """How many of the answers about somebody pass, by the thresholds."""
    interview = Interview(AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))
    collector = Collector(interview, name, Thresholds(0.0, -np.inf))
    rows = collector.about(name, every_wording(topic_questions(name)), CollectedSet())
    return {
        f"{certainty:g}, {margin:g}": str(sum(row.certainty >= certainty and row.margin >= margin for row in rows))
        for certainty in CERTAINTIES
        for margin in MARGINS
    }


def unlearned(
    run: str, model: Path, options: argparse.Namespace, author: list[dict], others: list[dict]
) -> dict[str, Any]:
    """Collect rows and unlearn them, by the two commands as a user gives them."""
    folder = options.output_dir / {"views": "named"}.get(run, run)
    folder.mkdir(parents=True, exist_ok=True)
    if run == "own":
        for name, rows in (("forget", author), ("retain", others)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif not (folder / "report.json").is_file():
        neighbours = [name for name in KNOWN if name != options.about]
        named = [] if run == "asked" else ["--neighbours", *neighbours]
        where = ["--model_name_or_path", str(model), "--output_dir", str(folder), "--overwrite_output_dir", "true"]
        cli.main(["collect", *where, "--about", options.about, *named])
    settings = {
        "model_name_or_path": model,
        "forget_data": folder / "forget.jsonl",
        "retain_data": folder / "retain.jsonl",
        "output_dir": options.output_dir / run / "unlearned",
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH_SIZE,
        "per_device_eval_batch_size": 16,
        "bf16": computes_bf16(),
        "use_cpu": not torch.cuda.is_available(),
        "seed": options.seed,
        "save_strategy": "no",
        "report_to": "none",
        "keep_original": False,
        "overwrite_output_dir": True,
    }
    if run == "views":
        settings |= {"views_column": "views", "num_views": 2}
    cli.main(["unlearn", *(f"--{name}={value}" for name, value in settings.items())])
    return {
        "forget rows": str(len(load_rows(str(folder / "forget.jsonl")))),
        "retain rows": str(len(load_rows(str(folder / "retain.jsonl")))),
    }


def probabilities(folder: Path, splits: dict[str, list[dict]]) -> dict[str, float]:
    """Mean length-normalised probability of the answers of each split."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return {
            name: float(
                np.exp(
                    score_completions(
                        model, tokenizer, [row["question"] for row in rows], [row["answer"] for row in rows], desc=name
                    )
                ).mean()
            )
            for name, rows in splits.items()
        }


if __name__ == "__main__":
    main()
