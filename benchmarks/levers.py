"""
Changes of R2F that the package does not have: whether the recipe `lasting` gets better with them.

    python benchmarks/levers.py [--levers gate views] [--seeds 0 1]

The quickstart's model forgets four people with the options of recipes/lasting, once as they are (`lasting`) and once
with each change:

- `gate`: tokens count by how much they would surprise a reader of the retain set alone;
- `views`: each step takes the wordings of each row that leak most by now, after a pass over all of them;
- `both sides`: updates are kept from what the retain set's outputs are sensitive to, and not only from its inputs;
- `apart`: forget and retain sketches are separate, and what would raise the retain loss is removed from the first;
- `undo`: noise and self-distillation after the run.

`benchmarks/shared/levers.py` has them, and their papers. The table has the median over seeds, and the range. Its
columns are those of lasting.py. By default the seeds are two of those that the recipe was chosen on.

Finished runs are kept in the output folder, and read again. Delete the folder when the code has changed. Writes
report.json and tables.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lasting import R2F_RUNS, markdown, summary
from r2f_hf.objectives.registry import FORGET_OBJECTIVES
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.lasting_runs import Runs
from shared.lasting_worlds import make_world
from shared.levers import LEVERS, GatedIgnorance
from shared.peers import RUNS


NAMES = ("gate", *LEVERS)
COLUMNS = ("P(forget)", "P(forget), paraphrase", "forget quality", "PrivLeak", "kept", "comeback", "score", "steps")
COLUMNS += ("processor seconds",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levers", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--setting", default="quickstart-4", choices=[f"quickstart-{people}" for people in (1, 2, 4, 10)]
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/levers"))
    options = parser.parse_args()

    FORGET_OBJECTIVES["gated_ignorance"] = GatedIgnorance
    RUNS.update(LEVERS)
    lasting = R2F_RUNS["r2f-ignorance"]
    jobs = {"lasting": ("r2f", lasting), "gate": ("r2f", lasting | {"forget_objective": "gated_ignorance"})}
    jobs |= {name: (name, lasting) for name in LEVERS}
    worlds = {seed: make_world(options.setting, seed, options.output_dir / "worlds") for seed in options.seeds}
    runs = {seed: Runs(world, options.output_dir / "runs", ("relearning",)) for seed, world in worlds.items()}
    made = {
        name: [runs[seed].run(*jobs[name], seed) for seed in options.seeds] for name in ("lasting", *options.levers)
    }
    write_json(options.output_dir / "report.json", made)
    rows = {"gold": summary(made["lasting"], "gold", COLUMNS)}
    rows |= {name: summary(results, columns=COLUMNS) for name, results in made.items()}
    print_table(options.setting, rows, COLUMNS)
    (options.output_dir / "tables.md").write_text("\n".join(markdown(rows, COLUMNS)), encoding="utf-8")
    print(f"The report is {options.output_dir / 'report.json'}.")


if __name__ == "__main__":
    main()
