"""Several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from r2f_hf.report.comparison import compare_runs
from r2f_hf.report.questions import answers
from r2f_hf.report.run import Run
from r2f_hf.runs.details import Details


def run(metrics: dict[str, float], gold: dict[str, float] | None = None, seconds: float = 1.0, **recipe: Any) -> Run:
    evaluation = {
        "suite": "tofu",
        "rows": {},
        "metrics": metrics,
        "compared": {} if gold is None else {"gold": gold},
        "left_out": {},
    }
    entry = {"kind": "unlearn", "recipe": {"forget_objective": "npo"} | recipe, "metrics": {"steps": 20}, "undo": None}
    return Run(Path("run"), [entry], 1, Details(cost={"seconds": seconds}), evaluations=[evaluation])


def compared(*runs: Run) -> tuple[list[str], list[Any]]:
    columns, lines = compare_runs(runs, [answers(each) for each in runs])
    return [column.name for column in columns], lines


def test_seeds_of_one_setting_are_a_range_and_settings_are_rows() -> None:
    columns, lines = compared(
        run({"model_utility": 0.5}, seed=0, rank=8),
        run({"model_utility": 0.6}, seed=1, rank=8),
        run({"model_utility": 0.58}, seed=0, rank=16),
        run({"model_utility": 0.1}, seed=0, rank=16, forget_objective="ga"),
    )
    assert columns == ["model_utility", "steps", "seconds"]
    assert [(line.method, line.settings, line.runs, line.seeds) for line in lines] == [
        ("npo", ["rank 8"], [0, 1], ["0", "1"]),
        ("npo", ["rank 16"], [2], ["0"]),
        ("ga", ["rank 16"], [3], ["0"]),
    ]
    assert [line.values["model_utility"] for line in lines] == [(0.5, 0.6), (0.58, 0.58), (0.1, 0.1)]
    # The mean of the range counts. All took as many steps, so none is best in that.
    assert [line.best for line in lines] == [set(), {"model_utility"}, set()]


def test_the_best_is_the_nearest_to_gold_and_not_the_lowest() -> None:
    gold = {"forget_probability": 0.1}
    runs = [run({"forget_probability": p}, gold, seconds=s, rank=r) for p, s, r in ((0.001, 1, 8), (0.12, 2, 16))]
    assert [line.best for line in compared(*runs)[1]] == [{"seconds"}, {"forget_probability"}]


def test_a_column_that_one_run_lacks_is_left_blank() -> None:
    _, lines = compared(run({"truth_ratio": 0.5}, rank=8), run({}, rank=16))
    assert "truth_ratio" in lines[0].values and "truth_ratio" not in lines[1].values and not lines[0].best
