"""
What the default learning rate does on models and forget sets of several sizes, with nothing tuned to any of them.

    python benchmarks/default_rate.py --data DIR [--settings smollm2-1 quickstart-2] [--seeds 0 1 2]

SmolLM2-135M and Gemma 3 270M are fine-tuned on the last twenty authors of TOFU. They forget the last one, two or ten
of them with recipes/tofu and its stopping rule, in at most 20 steps. For one author these are four passes
over the forget set, and for two authors two passes. For ten authors a run may take the 50 steps of one pass.

The quickstart's model knows twenty invented people. It forgets one, two or ten of them with its own recipe, which has
no stopping rule. There each seed is another world and another model.

A run has met the criterion if, where it ends, forget quality is at least 0.05, and P(retain) and utility are at least
95% of what they were before. time_to_forget.py says what utility is; for the quickstart it is TOFU's own harmonic
mean. For TOFU the table also tells how the truth ratios differ from gold's, after the run and before it.

Finished runs are kept in outputs/default_rate and loaded again, so that the command goes on where it was interrupted.
Delete them when the code has changed. Writes outputs/default_rate.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.pypi_models import gemma3_folder, smollm2_folder
from time_to_forget import FORGET_METRICS, FORGOTTEN, KEPT, KEPT_METRICS, LOG_RATIO, Benchmark, add_arguments
from tofu_smollm2 import QUESTIONS_PER_AUTHOR, evaluated_rows, load_data, with_wrong_answers


QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart" / "run.py"
BASES = {"smollm2": smollm2_folder, "gemma": gemma3_folder}
AUTHORS = 20
# By the number of authors the smallest of TOFU's forget sets that has them.
FORGET = {1: "forget01", 2: "forget01", 10: "forget05"}
SETTINGS = [f"{base}-{authors}" for base in (*BASES, "quickstart") for authors in FORGET]
COLUMNS = ("steps", *FORGET_METRICS)


def few_authors(folder: Path, authors: int, first: int | None = None) -> dict[str, Any]:
    """
    As [`load_data`], for TOFU's last twenty authors. A few of them are to be forgotten.

    Args:
        folder (`Path`):
            Folder with TOFU's files.
        authors (`int`):
            How many are to be forgotten: 1, 2 or 10.
        first (`int`, *optional*):
            The first of these, from 1 to 20. By default they are the last ones.

    Returns:
        `dict`: The rows.
    """
    data = load_data(folder, FORGET[authors], AUTHORS)
    train = data["train"]
    start = ((AUTHORS - authors + 1 if first is None else first) - 1) * QUESTIONS_PER_AUTHOR
    end = start + authors * QUESTIONS_PER_AUTHOR
    forget, retain = train[start:end], train[:start] + train[end:]
    evaluated = {"forget": with_wrong_answers(folder, forget), "retain": evaluated_rows(folder, retain)}
    return data | {"forget": forget, "retain": retain, "splits": data["splits"] | evaluated}


def tofu(base: str, authors: int, options: argparse.Namespace) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Metrics before and after, for each seed."""
    # A run is checked only where the recipe ends it: that is what a user gets, and not the best moment on the way.
    benchmark = Benchmark(BASES[base](), few_authors(options.data, authors), options, passes=None, every=None)
    for seed in options.seeds:
        # Measured first, so that there are never two models in memory.
        before = benchmark.before
        yield before, benchmark.run("r2f", benchmark.recipe.learning_rate, seed)


def quickstart(people: int, options: argparse.Namespace) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Metrics before and after, for each seed."""
    for seed in options.seeds:
        folder = options.output.with_suffix("") / f"quickstart-{people}-{seed}"
        if not (folder / "report.json").is_file():
            flags = (
                "--recipe",
                "quickstart",
                "--seed",
                str(seed),
                "--forget_people",
                str(people),
                "--output_dir",
                str(folder),
            )
            subprocess.run([sys.executable, str(QUICKSTART), *flags], check=True)
        report = json.loads((folder / "report.json").read_text())
        yield tuple(report[row] | {"utility": report[row]["model_utility"]} for row in ("before", "after"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--output", type=Path, default=Path("outputs/default_rate.json"))
    options = parser.parse_args()

    rows = {}
    for setting in options.settings:
        base, authors = setting.split("-")
        runs = quickstart(int(authors), options) if base == "quickstart" else tofu(base, int(authors), options)
        for seed, (before, after) in zip(options.seeds, runs, strict=True):
            kept = {f"{name}, kept": after[name] / before[name] for name in KEPT_METRICS}
            met = after["forget_quality"] >= FORGOTTEN and min(kept.values()) >= KEPT
            rows[f"{setting}, seed {seed}"] = {
                "met": met,
                **{name: after[name] for name in COLUMNS if name in after},
                **{f"{name}, before": before[name] for name in LOG_RATIO if name in before},
                **kept,
            }
    write_json(options.output, rows)
    columns = [*COLUMNS, *(f"{name}, before" for name in LOG_RATIO), *(f"{name}, kept" for name in KEPT_METRICS)]
    print_table("The default learning rate", rows, ("met", *columns))
    print(f"{sum(row['met'] for row in rows.values())} of {len(rows)} met. The report is {options.output}.")


if __name__ == "__main__":
    main()
