"""Choosing by name."""

from __future__ import annotations

import pytest

from r2f_hf.lookup import lookup


TABLE = {"npo": 1, "simnpo": 2, "grad_diff": None}


def test_the_entry_of_a_name() -> None:
    assert lookup(TABLE, "npo", "objective") == 1
    assert lookup(TABLE, "grad_diff", "objective") is None


@pytest.mark.parametrize(
    ("name", "list_all", "message"),
    [
        (
            "graddiff",
            True,
            "Unknown objective: 'graddiff'. Did you mean 'grad_diff'? Available: grad_diff, npo, simnpo.",
        ),
        ("sim_npo", False, "Unknown objective: 'sim_npo'. Did you mean 'simnpo'?"),
        ("xyz", True, "Unknown objective: 'xyz'. Available: grad_diff, npo, simnpo."),
        ("xyz", False, "Unknown objective: 'xyz'."),
        (7, False, "Unknown objective: 7."),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, list_all: bool, message: str) -> None:
    with pytest.raises(ValueError) as error:
        lookup(TABLE, name, "objective", list_all)
    assert str(error.value) == message
