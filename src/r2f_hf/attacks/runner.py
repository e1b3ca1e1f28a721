"""Runs attacks on a model, and sets the results next to those of other models."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from .. import metrics
from ..data.formatting import Encoded
from ..data.rows import content_hash
from ..runs.files import read_kept, write_json
from ..runs.weights import weights_hash
from .base import AT_STEP, UNATTACKED, Target, Values, items_of, mean
from .registry import ATTACKS
from .relearning import SHARE


# Rises when an attack computes other values than before, so that older files are not reused.
VALUES = 1
# Original and gold have to differ by this much before a comeback means anything.
LEAST_DIFFERENCE = 0.05
# A mean is called uncertain if it may be this far from the truth.
UNCERTAIN = 0.1

Line = dict[str, float]


def run_attacks(names: Sequence[str], target: Target, output_dir: str | Path | None = None) -> dict[str, Values]:
    """
    Attack a model. On several processes, all of them have to call it.

    Args:
        names (`Sequence[str]`):
            Names from [`ATTACKS`] that fit the target.
        target ([`Target`]):
            The model and the rows.
        output_dir (`str` or `Path`, *optional*):
            Folder for the values of each row, with one file per attack. A later run with the same weights, rows and
            settings reads them instead of attacking again. The files hold the seconds that the attack took, and no
            text of the rows.

    Returns:
        `dict[str, dict[str, list[float]]]`: The values of each row, by attack and variant.
    """
    known = [weights_hash(target.model.state_dict())]
    if target.original is not None:
        known.append(weights_hash(target.original.state_dict()))
    tokenizer = target.tokenizer
    known += [list(target.forget), list(target.retain), target.rows or {}, [tokenizer.chat_template, target.options]]
    known += [target.max_new_tokens, target.seed]
    results = {}
    state = PartialState()
    for name in tqdm(names, desc="attacks", disable=not state.is_main_process, leave=False):
        key = content_hash([VALUES, name, *known])
        file = None if output_dir is None else Path(output_dir) / f"{name}.json"
        stored = read_kept(file)
        # Processes on another machine may not see the file, and all have to attack or none.
        (stored,) = broadcast_object_list([stored])
        if stored.get("key") != key:
            start = time.perf_counter()
            stored = {"key": key, "values": ATTACKS[name].run(target), "seconds": time.perf_counter() - start}
            if file is not None and state.is_main_process:
                write_json(file, stored)
        results[name] = stored["values"]
    return results


def compare(results: Mapping[str, Mapping[str, Values]]) -> dict[str, dict[str, Line]]:
    """
    Set the results of several models side by side.

    Args:
        results (`Mapping[str, Mapping[str, dict]]`):
            [`run_attacks`] of the models `unlearned` and, if they are there, `original` and `gold`.

    Returns:
        `dict[str, dict[str, dict[str, float]]]`: By attack and variant a line of means over rows.

        - `unlearned`, `original`, `gold`: the attack's quantity;
        - `comeback`: (unlearned - gold) / (original - gold), all after the attack. 0 is gold's level, and 1 is as if
          nothing had been forgotten. It is absent if original and gold hardly differ,
          and where the attacker holds the original anyway;
        - `relearning_ratio`, `quantisation_ratio`: R and Q of arXiv 2506.12618, for the attacks of these names.
    """
    report: dict[str, dict[str, Line]] = {}
    for attack, values in results["unlearned"].items():
        report[attack] = {}
        for variant, rows in values.items():
            if AT_STEP in variant:
                continue
            line: Line = {"unlearned": mean(rows)}
            # A model with fewer layers has fewer of the logit lens's lines.
            others = {
                role: results[role][attack][variant]
                for role in ("original", "gold")
                if role in results and variant in results[role][attack]
            }
            line |= {role: mean(theirs) for role, theirs in others.items()}
            known = len(others) == 2 and line["original"] - line["gold"] >= LEAST_DIFFERENCE
            if known and ATTACKS[attack].has_comeback:
                line["comeback"] = (line["unlearned"] - line["gold"]) / (line["original"] - line["gold"])
            line |= _ratios(attack, variant, results)
            report[attack][variant] = line
    return report


def curves(results: Mapping[str, Mapping[str, Values]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """
    Follow what comes back from step to step, in the attacks that take steps.

    Args:
        results (`Mapping[str, Mapping[str, dict]]`):
            As in [`compare`]. Values that an older version has kept have no steps, and so no curve.

    Returns:
        `dict[str, dict[str, dict[str, list[float]]]]`: By attack and variant `steps`, which begin with 0 (no attack),
        and the means over rows at these steps of `unlearned`, `original` and `gold`.
    """
    report: dict[str, dict[str, dict[str, list[float]]]] = {}
    for attack, values in results["unlearned"].items():
        for name in values:
            variant, marked, step = name.rpartition(AT_STEP)
            if not marked:
                continue
            curve = report.setdefault(attack, {}).setdefault(variant, {"steps": [0]})
            curve["steps"].append(int(step))
            for role, others in results.items():
                if name in others.get(attack, {}):
                    start = mean(_before(others[attack], variant))
                    curve.setdefault(role, [start]).append(mean(others[attack][name]))
    return report


def remark_on_rows(examples: Sequence[Encoded], names: Sequence[str]) -> list[str]:
    """
    Say which results rest on few rows.

    Args:
        examples (`Sequence[dict]`):
            The forget rows, encoded.
        names (`Sequence[str]`):
            Names of the attacks.

    Returns:
        `list[str]`
    """
    rows = len(set(items_of(examples) or range(len(examples))))
    notes = []
    # The widest 95% interval of a mean of numbers from 0 to 1.
    if (half := 0.98 / np.sqrt(rows)) > UNCERTAIN:
        counted = "1 forget row" if rows == 1 else f"{rows} forget rows"
        notes.append(f"{counted}. A mean over so few is uncertain by up to {min(half, 1):.2f} (95%).")
    if "relearning" in names and rows == 1:
        notes.append(
            "relearning: the one row is both fine-tuned on and measured. So nothing is known about rows that the "
            "attacker does not have."
        )
    elif "relearning" in names and rows < 1 / SHARE:
        notes.append(f"relearning: a tenth of {rows} rows is less than one. The attacker has one row.")
    return notes


def _ratios(attack: str, variant: str, results: Mapping[str, Mapping[str, Values]]) -> Line:
    """The ratio that the field reports of an attack."""
    if variant.startswith(UNATTACKED):
        return {}
    ours, before = results["unlearned"][attack][variant], _before(results["unlearned"][attack], variant)
    if attack == "quantisation" and max(map(mean, (ours, before))) > 0:
        ratio = metrics.load("quantisation_ratio").compute(predictions=ours, before=before)
        return {"quantisation_ratio": ratio["quantisation_ratio"]}
    if attack == "relearning" and "gold" in results:
        gold, gold_before = results["gold"][attack][variant], _before(results["gold"][attack], variant)
        if mean(gold) > mean(gold_before):
            ratio = metrics.load("relearning_ratio").compute(
                predictions=ours, before=before, gold=gold, gold_before=gold_before
            )
            return {"relearning_ratio": ratio["relearning_ratio"]}
    return {}


def _before(values: Values, variant: str) -> list[float]:
    """What a variant is compared with: the rows without the attack."""
    _, colon, rows = variant.partition(": ")
    return values[f"{UNATTACKED}{colon}{rows}"]
