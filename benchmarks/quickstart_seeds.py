"""
The quickstart on several seeds: each seed has another world, other models and other probes.

    python benchmarks/quickstart_seeds.py [--seeds 0 1 2] [--recipe lasting]

Prints a table with one row per model and seed, and writes outputs/quickstart_seeds/report.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json


SCRIPT = Path(__file__).parent.parent / "recipes" / "quickstart" / "run.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="quickstart", choices=("quickstart", "lasting"))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart_seeds"))
    args = parser.parse_args()
    table = {}
    for seed in args.seeds:
        folder = args.output_dir / str(seed)
        flags = ("--recipe", args.recipe, "--seed", str(seed), "--output_dir", folder)
        subprocess.run([sys.executable, SCRIPT, *flags], check=True)
        report = json.loads((folder / "report.json").read_text())
        table |= {f"{run}, seed {seed}": metrics for run, metrics in report.items()}
    write_json(args.output_dir / "report.json", table)
    columns = list(dict.fromkeys(column for metrics in table.values() for column in metrics))
    print_table("Quickstart", table, columns)


if __name__ == "__main__":
    main()
