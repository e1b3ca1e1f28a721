"""
What one question costs another: the recipe `lasting` with one option changed at a time.

    python benchmarks/trade_off.py [--options steps retain_weight] [--seeds 4 5 6]

The quickstart's model forgets four people with the options of recipes/lasting, and with other values of one of them:

- `steps`: the most steps of a run, and in proportion those before tokens that went too low are raised again;
- `simulated_relearning`: how far the simulated fine-tuning goes before each step. 0 leaves it out;
- `spectrum_damping`: how much weaker the leading directions of each gradient get. 0 leaves it out;
- `num_views`: wordings of a row in a step. With one there are half as many rows in it;
- `retain_weight`: the weight of the retain loss.

There is one table per option, with the columns of lasting.py: the median over seeds, and the range in parentheses. In
the picture each option is a line through its medians, from its lowest value to its highest: what comes back against
PrivLeak, and against what is kept.

Finished runs are kept in the output folder, and read again. Delete the folder when the code has changed. Writes
report.json, tables.md and trade_off.svg.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from lasting import R2F_RUNS, all_figures, markdown, summary
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.lasting_runs import Runs
from shared.lasting_worlds import make_world
from shared.trade_off_picture import draw


LASTING = R2F_RUNS["r2f-ignorance"]


def shortened(steps: int) -> dict[str, Any]:
    """The recipe with other most steps. Tokens are lifted after the same part of them."""
    lift_after = LASTING["forget_objective_kwargs"]["lift_after"]
    lifted = {"lift_after": round(lift_after * steps / LASTING["max_steps"])}
    return {"max_steps": steps, "forget_objective_kwargs": lifted}


# By option and value what differs from the recipe. The recipe's own value is among them.
CHANGES: dict[str, dict[float, dict[str, Any]]] = {
    "steps": {steps: shortened(steps) for steps in (20, 30, 40, 60, 90)},
    "simulated_relearning": {rate: {"simulated_relearning": rate} for rate in (0.0, 0.03, 0.06, 0.12)},
    "spectrum_damping": {power: {"spectrum_damping": power} for power in (0.0, 0.25, 0.5)},
    "num_views": {views: {"num_views": views} for views in (1, 2)},
    "retain_weight": {weight: {"retain_weight": weight} for weight in (1.0, 3.0, 6.0)},
}
COLUMNS = ("P(forget)", "forget quality", "PrivLeak", "kept", "comeback", "score", "steps", "processor seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--options", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6])
    parser.add_argument(
        "--setting", default="quickstart-4", choices=[f"quickstart-{people}" for people in (1, 2, 4, 10)]
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/trade_off"))
    parser.add_argument("--picture", type=Path, help="where the picture goes; defaults to the output folder")
    options = parser.parse_args()

    worlds = {seed: make_world(options.setting, seed, options.output_dir / "worlds") for seed in options.seeds}
    runs = {seed: Runs(world, options.output_dir / "runs", ("relearning",)) for seed, world in worlds.items()}
    made = {
        name: {
            value: [runs[seed].run("r2f", LASTING | change, seed) for seed in options.seeds]
            for value, change in CHANGES[name].items()
        }
        for name in options.options
    }
    write_json(options.output_dir / "report.json", made)
    documents = []
    for name, results in made.items():
        rows = {f"{name}={value:g}": summary(of_value, columns=COLUMNS) for value, of_value in results.items()}
        print_table(options.setting, rows, COLUMNS)
        documents += [*markdown(rows, COLUMNS), ""]
    (options.output_dir / "tables.md").write_text("\n".join(documents), encoding="utf-8")
    lines = {name: {value: medians(of_value) for value, of_value in results.items()} for name, results in made.items()}
    picture = options.picture or options.output_dir / "trade_off.svg"
    draw(picture, lines)
    print(f"The report is {options.output_dir / 'report.json'}, and the picture {picture}.")


def medians(results: list[dict[str, Any]]) -> dict[str, float]:
    """What the picture shows of the runs of one value."""
    rows = [all_figures(result) for result in results]
    found = {name: median(row[name] for row in rows) for name in ("comeback", "kept")}
    # Where gold's forget rows are told from the holdout's without fail, a seed has no PrivLeak.
    return found | {"|PrivLeak|": median(abs(row["PrivLeak"]) for row in rows if "PrivLeak" in row)}


if __name__ == "__main__":
    main()
