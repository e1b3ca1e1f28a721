"""Tables."""

from __future__ import annotations

import pytest

from r2f_hf.report import print_table


def test_table_shows_the_columns_asked_for_and_leaves_gaps(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"before": {"forget_probability": 0.98765, "secret": 7.0}, "after": {"model_utility": 0.5}}
    print_table("Unlearning", rows, ["forget_probability", "model_utility"])
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("Unlearning", "forget probability", "model utility", "before", "after"))
    assert "0.988" in printed and "0.5" in printed
    assert "secret" not in printed and "None" not in printed


def test_a_title_is_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Is it gone? Cannot be judged", {"after": {"P": 0.5}}, ["P"])
    assert "Is it gone? Cannot be judged" in capsys.readouterr().out


def test_a_wide_table_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [f"a_rather_long_column_{index}" for index in range(9)]
    rows = {f"run {index}": dict.fromkeys(columns, 0.12345) for index in range(12)}
    print_table("Wide", rows, columns)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert all(column.replace("_", " ") in printed for column in columns)
    assert printed.count("0.123") == 9 * 12
