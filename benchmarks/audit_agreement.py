"""Compares our metrics and training losses with the values that other projects' own code gives on the same inputs.

Usage: python benchmarks/audit_agreement.py tests/reference

Prints a line per entry: ours and theirs at the number that is furthest off, the difference, the tolerance, and whether
all of the entry's numbers agree. Ends with 1 if one does not. A difference of two losses may be off by the
rounding of fp32, which is said.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch

from shared.agreement import Reference, counted_leaves, difference, rounding, why_not
from shared.loss_agreement import LossReference, is_loss, why_no_loss


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with expected.json, its inputs and its models")
    parser.add_argument("--only", default="", help="compare only entries whose names contain this")
    arguments = parser.parse_args()
    if not (arguments.folder / "expected.json").is_file():
        parser.error(f"{arguments.folder} has no expected.json. Give the folder of the reference values.")
    torch.set_num_threads(1)
    reference = Reference(arguments.folder)
    losses = LossReference(reference)
    left_out: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    numbers = 0
    print(f"{'entry':64} {'numbers':>7} {'ours':>14} {'theirs':>14} {'difference':>10} {'tolerance':>10} verdict")
    for name, each in reference.entries.items():
        if arguments.only not in name:
            continue
        loss = is_loss(name)
        reason = why_no_loss(name) if loss else why_not(name)
        if reason is not None:
            left_out[reason] += 1
            continue
        theirs = counted_leaves(each["value"])
        ours = counted_leaves((losses if loss else reference).ours(name))
        compared = {path: (ours[path], theirs[path]) for path in theirs if path in ours}
        gaps = {path: difference(*pair, each["rtol"], each["atol"]) for path, pair in compared.items()}
        worst = max(gaps, key=lambda path: gaps[path][0] / gaps[path][1])
        missing = len(theirs) - len(compared)
        same = set(ours) <= set(theirs)
        if same and all(gap <= tolerance for gap, tolerance in gaps.values()):
            verdict = "agree"
        elif same and all(gap <= max(tolerance, rounding(name)) for gap, tolerance in gaps.values()):
            verdict = "agree as far as fp32 goes"
        else:
            verdict = "DISAGREE"
        verdicts[verdict] += 1
        verdict += f", {missing} numbers not compared" if missing else ""
        numbers += len(compared)
        gap, tolerance = gaps[worst]
        print(
            f"{name:64} {len(compared):7} {compared[worst][0]:14.8g} {compared[worst][1]:14.8g} {gap:10.2g} "
            f"{tolerance:10.2g} {verdict}"
        )
    print()
    for verdict, count in verdicts.most_common():
        print(f"{count} entries {verdict}")
    print(f"{numbers} numbers were compared.")
    print(f"{sum(left_out.values())} entries are not applicable:")
    for reason, count in left_out.most_common():
        print(f"  {count:4} {reason}")
    return int(verdicts["DISAGREE"] > 0)


if __name__ == "__main__":
    sys.exit(main())
