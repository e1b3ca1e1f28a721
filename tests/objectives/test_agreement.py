"""On the same inputs the losses and their gradients are those of other projects' code (`reference/README.md`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.agreement import Reference, counted_leaves, difference, rounding
from shared.loss_agreement import LossReference, is_loss, why_no_loss


FOLDER = Path(__file__).parents[1] / "reference"
NAMES = [name for name in json.loads((FOLDER / "expected.json").read_text())["entries"] if is_loss(name)]
ENTRIES = [name for name in NAMES if why_no_loss(name) is None]


@pytest.fixture(scope="module")
def losses() -> LossReference:
    return LossReference(Reference(FOLDER))


@pytest.mark.parametrize("name", ENTRIES)
def test_the_loss_and_its_gradient_are_those_of_the_other_project(name: str, losses: LossReference) -> None:
    entry = losses.reference.entries[name]
    theirs, ours = counted_leaves(entry["value"]), counted_leaves(losses.ours(name))
    assert ours and set(ours) <= set(theirs)
    for path, number in ours.items():
        gap, tolerance = difference(number, theirs[path], entry["rtol"], entry["atol"])
        assert gap <= max(tolerance, rounding(name)), f"{path}: {number} here, {theirs[path]} there"


def test_few_entries_have_no_loss_of_ours() -> None:
    assert len(NAMES) == 172 and len(ENTRIES) >= 128
