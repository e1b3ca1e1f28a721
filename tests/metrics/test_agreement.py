"""On the same inputs, the metrics give the values that other projects' own code gives (see `reference/README.md`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.agreement import Reference, counted_leaves, difference, rounding, why_not
from shared.loss_agreement import is_loss


FOLDER = Path(__file__).parents[1] / "reference"
NAMES = json.loads((FOLDER / "expected.json").read_text())["entries"]
ENTRIES = [name for name in NAMES if why_not(name) is None and not is_loss(name)]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(FOLDER)


@pytest.mark.parametrize("name", ENTRIES)
def test_the_value_is_that_of_the_other_project(name: str, reference: Reference) -> None:
    entry = reference.entries[name]
    theirs, ours = counted_leaves(entry["value"]), counted_leaves(reference.ours(name))
    # Answers that a model wrote after examples in its prompt are not among the given ones.
    uncovered = {"knowmem_f", "knowmem_r"} if name.startswith("muse_fork.verbmem_knowmem") else set()
    assert set(ours) == set(theirs) - uncovered
    for path, number in ours.items():
        gap, tolerance = difference(number, theirs[path], entry["rtol"], entry["atol"])
        assert gap <= max(tolerance, rounding(name)), f"{path}: {number} here, {theirs[path]} there"


def test_where_they_give_no_number_ours_means_something(reference: Reference) -> None:
    # A text of one token is too short for a share of it: NaN in MUSE's code.
    one, two = [[-3.0], [-2.0]], [[-1.0], [-4.0]]
    assert reference.metric("mia_min_k").compute(predictions=one, holdout=two, k=0.2)["forget"] == [3.0, 2.0]
    # Everything is remembered: no number in UDS's code.
    everything = reference.metric("memorisation_score").compute(predictions=[1.0] * 4)
    assert everything["memorisation_score"] == 0.0
    nearly = reference.metric("memorisation_score").compute(predictions=[0.999, 0.9])["memorisation_score"]
    assert nearly == pytest.approx(reference.entries["uds.bug.mem_score_of_full_memory"]["value"]["nearly"])
