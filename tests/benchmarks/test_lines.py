"""Lines through measured times, on times that lie on known lines."""

from __future__ import annotations

import numpy as np
import pytest

from shared.lines import RESAMPLES, Line, crossing, ends, fit, resampled_fits


TOKENS = (256, 512, 1024, 2048)


def test_a_line_is_found_again() -> None:
    line = Line(0.25, 1e-3)
    assert fit({tokens: line.at(tokens) for tokens in TOKENS}) == pytest.approx(line)


def test_a_line_neither_falls_nor_begins_below_zero() -> None:
    falling = fit({tokens: 1 / tokens for tokens in TOKENS})
    steep = fit({tokens: tokens**2 for tokens in TOKENS})
    assert falling.slope == 0 and falling.fixed > 0
    assert steep.fixed == 0 and steep.slope > 0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Line(1.0, 1.0), Line(0.0, 2.0), 1.0),
        (Line(0.0, 1.0), Line(1.0, 2.0), 0.0),
        (Line(0.0, 2.0), Line(1.0, 1.0), np.inf),
        (Line(2.0, 1.0), Line(1.0, 1.0), np.inf),
        (Line(1.0, 1.0), Line(2.0, 1.0), 0.0),
    ],
)
def test_lines_cross_where_the_first_becomes_the_lower_one(one: Line, other: Line, expected: float) -> None:
    assert crossing(one, other) == expected


def test_intervals_hold_the_line_that_noisy_times_lie_on() -> None:
    generator, line = np.random.default_rng(0), Line(0.25, 1e-3)
    noisy = {tokens: line.at(tokens) * generator.normal(1, 0.02, 15) for tokens in TOKENS}
    lines = resampled_fits({"one": noisy, "same": noisy})
    assert lines["one"] == lines["same"] and len(lines["one"]) == RESAMPLES
    for side, true in enumerate(line):
        low, high = ends(np.array([found[side] for found in lines["one"]]))
        assert low < true < high and high - low < 0.5 * true
