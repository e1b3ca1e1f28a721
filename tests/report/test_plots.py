"""Plots as inline SVG."""

from __future__ import annotations

import re

from report.page import Page

from r2f_hf.report import plots
from r2f_hf.report.questions import Figure


def figure(name: str, after: float, before: float | None = 0.9, span: float | None = 1) -> Figure:
    return Figure(name, name, before, after, 0.1, None, "", span)


def check(svg: str, name: str) -> Page:
    """The plot has ids of its own, a name, and only colors of the page."""
    page = Page(svg)
    assert page.open == []
    assert all(attributes["id"].startswith(f"{name}-") for _, attributes in page.elements if "id" in attributes)
    assert page.all("svg")[0]["aria-labelledby"] == f"{name}-title {name}-desc"
    # What is left of matplotlib's colors is in the map itself, which is an image.
    assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg)) == set()
    assert not re.search(r'href="(?!#|data:)', svg) and "<metadata" not in svg
    return page


def test_a_mark_per_model_and_its_numbers_in_words() -> None:
    svg = plots.dumbbells("a", "Is it gone?", [figure("P(answer)", 0.123), figure("R<ecall>", 40, 90, 100)])
    page = check(svg, "a")
    assert "P(answer): before 0.9, after 0.123, gold 0.1; R<ecall>: before 90, after 40, gold 0.1" in page.text
    assert {"before", "after", "gold", "Is it gone?"} <= {*page.words}
    # Without a range, or without figures, there is nothing to draw.
    assert plots.dumbbells("a", "", [figure("truth ratio", 0.5, span=None)]) == ""


def test_a_model_that_no_figure_has_is_not_in_the_legend() -> None:
    assert "before" not in check(plots.dumbbells("a", "", [figure("P", 0.5, before=None)]), "a").words


def test_many_rows_are_thinned_out_and_the_plot_says_so() -> None:
    few, many = (plots.dots("a", "", {"after": [0.5] * count}, "P") for count in (30, 4000))
    assert "row number" in check(few, "a").words
    assert "row number (one row of 5 is shown)" in check(many, "a").words
    assert len(many) < 200_000 and plots.dots("a", "", {}, "P") == ""
    assert "29 rows" in plots.dots("a", "", {"after": [None, *[0.5] * 29]}, "P")


def test_the_map_names_the_worst_module_and_bears_what_was_not_measured() -> None:
    modules = [f"model.layers.{layer}.mlp.up_proj" for layer in (10, 9, 0)]
    page = check(plots.heat_map("a", "", modules, [[0.9, 0.8, 0.7], [0.2, None, 1.0]]), "a")
    assert "3 modules at 2 steps; mean 0.72; the lowest is 0.2, of 10 up_proj at step 2." in page.text
    # Layer 10 comes after layer 9.
    assert [word for word in page.words if "up_proj" in word and len(word) < 15] == [
        "0 up_proj",
        "9 up_proj",
        "10 up_proj",
    ]
    assert plots.heat_map("a", "", modules, []) == ""


def test_a_large_model_and_a_long_run_make_no_large_file() -> None:
    modules = [f"model.layers.{layer}.{name}" for layer in range(32) for name in "abcdefg"]
    assert len(plots.heat_map("a", "", modules, [[0.5] * 224] * 1000)) < 300_000


def test_curves() -> None:
    page = check(plots.curves("a", "Losses", {"forget": ([1, 2], [3.0, 0.5]), "retain": ([], [])}, "loss"), "a")
    assert "forget: from 3 to 0.5" in page.text and "retain" not in page.text


def test_curves_of_models_have_the_marks_of_the_models() -> None:
    lines = {"before": ([0, 4], [0.9, 1.0]), "gold": ([0, 4], [0.1, 0.2])}
    svg = plots.curves("a", "Relearned", lines, "P(answer)", 1)
    check(svg, "a")
    assert "var(--before)" in svg and "var(--gold)" in svg and "var(--after)" not in svg


def test_ranges_have_two_ends_and_gold_across_all() -> None:
    svg = plots.ranges("a", "Does it last?", [("npo\nrate 0.1", (-0.2, 0.4)), ("ga", (0.5, 0.5))], 0.0)
    page = check(svg, "a")
    assert "npo, rate 0.1: -0.2 to 0.4; ga: 0.5; gold: 0" in page.text
    assert {"after", "gold", "npo", "rate 0.1", "ga"} <= {*page.words}
    assert plots.ranges("a", "", []) == ""
