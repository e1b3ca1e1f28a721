"""
The default learning rate on models and forget sets of several sizes, with nothing tuned to any of them.

    python benchmarks/default_rate.py --data DIR [--settings smollm2-1 gemma-2] [--seeds 0 1 2]

SmolLM2-135M and Gemma 3 270M, fine-tuned on the last twenty authors of TOFU, forget the last one, two or ten of them,
by recipes/tofu/unlearn.yaml without its stopping rule: 40 steps, which are eight, four and less than one passes over
the forget set. What is asked for is a forget quality of .05 with P(retain) and utility at 95% of what they were (see
time_to_forget.py). The quickstart's table is that of quickstart_seeds.py. Finished runs are kept in
outputs/default_rate and read back, so that the command goes on where it was interrupted (delete them when the code has
changed). Writes outputs/default_rate.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pypi_models import gemma3_folder, smollm2_folder
from r2f_hf.report import print_table, write_json
from time_to_forget import FORGOTTEN, KEPT_METRICS, Benchmark, add_arguments
from tofu_smollm2 import QUESTIONS_PER_AUTHOR, load_data


BASES = {"smollm2": smollm2_folder, "gemma": gemma3_folder}
# The smallest of TOFU's forget sets that has so many authors.
FORGET = {1: "forget01", 2: "forget01", 10: "forget05"}
SETTINGS = [f"{base}-{authors}" for base in BASES for authors in FORGET]


def few_authors(folder: Path, authors: int) -> dict[str, Any]:
    """As [`load_data`] of twenty authors, of whom so many are to be forgotten."""
    data = load_data(folder, FORGET[authors], 20)
    count = authors * QUESTIONS_PER_AUTHOR
    train = data["train"]
    splits = data["splits"] | {"forget": data["splits"]["forget"][-count:]}
    return data | {"forget": train[-count:], "retain": train[:-count], "splits": splits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--output", type=Path, default=Path("outputs/default_rate.json"))
    options = parser.parse_args()

    rows = {}
    for setting in options.settings:
        base, authors = setting.split("-")
        data = few_authors(options.data, int(authors))
        # Checked at the end alone: what the steps make of it, not the best moment on the way.
        benchmark = Benchmark(BASES[base](), data, options, passes=None, every=None)
        for seed in options.seeds:
            found = benchmark.run("r2f", benchmark.recipe.learning_rate, seed)
            rows[f"{setting}, seed {seed}"] = {
                "met": found["forget_quality"] >= FORGOTTEN and found["kept"],
                **{name: found[name] for name in ("forget_quality", "forget_probability", "truth_ratio")},
                **{f"{name}, kept": found[name] / benchmark.before[name] for name in KEPT_METRICS},
            }
    write_json(options.output, rows)
    print_table("The default learning rate", rows, list(next(iter(rows.values()))))
    print(f"{sum(row['met'] for row in rows.values())} of {len(rows)} met. The report is {options.output}.")


if __name__ == "__main__":
    main()
