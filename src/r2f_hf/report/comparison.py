"""Several runs side by side: a row per method and setting, with seeds as ranges."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .questions import GONE, KEPT, LASTS, TOLD, Answer, Figure, worst_comeback
from .run import Run


METHOD_KEYS = ("forget_objective", "retain_objective", "update_target")
# They tell how a run was started, and not what it is.
NO_SETTING = ("seed", "data_seed", "base", *METHOD_KEYS)


@dataclass(frozen=True)
class Column:
    """
    A column of the comparison.

    Args:
        name (`str`):
            The metric.
        words (`str`):
            Its heading.
        best (`str`):
            What is best: `"high"`, `"low"`, `"zero"`, or `"gold"`, which is as near to gold as can be.
        gold (`float`, *optional*):
            Its value for gold. A comeback is 0 there.
    """

    name: str
    words: str
    best: str
    gold: float | None = None


COLUMNS = (
    Column("forget_probability", "P(forget)", "gold"),
    Column("forget_paraphrase_probability", "P(forget), reworded", "gold"),
    Column("forget_extraction_strength", "extraction strength", "gold"),
    Column("truth_ratio", "truth ratio", "gold"),
    Column("forget_quality", "forget quality", "high"),
    Column("mia_loss_auc", "AUC of the loss attack", "gold"),
    Column("retain_probability", "P(retain)", "high"),
    Column("model_utility", "model utility", "high"),
    Column("comeback", "highest comeback", "zero"),
    Column("steps", "steps", "low"),
    Column("seconds", "seconds", "low"),
)
# The column that a plot shows of each question: the first one that is there.
SHOWN = {
    GONE: ("forget_probability", "forget_extraction_strength"),
    TOLD: ("mia_loss_auc", "forget_quality"),
    KEPT: ("retain_probability", "model_utility"),
    LASTS: ("comeback",),
}


@dataclass(frozen=True)
class Line:
    """
    A row of the comparison.

    Args:
        method (`str`):
            The objectives, and where the updates go.
        settings (`list[str]`):
            The settings in which the runs differ.
        runs (`list[int]`):
            The numbers of the runs, from 0.
        seeds (`list[str]`):
            Their seeds.
        values (`dict[str, tuple[float, float]]`):
            By column the lowest and the highest value over the seeds.
        best (`set[str]`):
            The columns in which this row is best.
    """

    method: str
    settings: list[str]
    runs: list[int]
    seeds: list[str]
    values: dict[str, tuple[float, float]]
    best: set[str]


def compare_runs(runs: Sequence[Run], answers: Sequence[Mapping[str, Answer]]) -> tuple[list[Column], list[Line]]:
    """
    Set runs side by side.

    Args:
        runs (`Sequence[Run]`):
            The runs. Those that differ only in their seeds become one row.
        answers (`Sequence[dict[str, Answer]]`):
            The answers to the questions about each of them.

    Returns:
        `tuple[list[Column], list[Line]]`: The columns that some run has, and the rows.
    """
    differing = [
        key
        for key in dict.fromkeys(key for run in runs for key in run.recipe)
        if key not in NO_SETTING and len({as_text(run.recipe.get(key)) for run in runs}) > 1
    ]
    if len({run.details.set_sizes.get("forget") for run in runs}) > 1:
        differing.insert(0, "rows")
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for index, run in enumerate(runs):
        known = run.recipe | {"rows": run.details.set_sizes.get("forget")}
        settings = tuple(f"{key} {as_text(known.get(key))}" for key in differing)
        groups.setdefault((method(run), settings), []).append(index)
    found = [values_of(run, answer) for run, answer in zip(runs, answers, strict=True)]
    gold = {
        figure.name: figure.gold for answer in answers for figure in all_figures(answer) if figure.gold is not None
    }
    gold |= {column.name: 0.0 for column in COLUMNS if column.best == "zero"}
    columns = [
        replace(column, gold=gold.get(column.name))
        for column in COLUMNS
        if any(column.name in values for values in found)
    ]
    lines = []
    for (name, settings), members in groups.items():
        ranges = {}
        for column in columns:
            values = [found[index][column.name] for index in members if column.name in found[index]]
            if values:
                ranges[column.name] = (min(values), max(values))
        seeds = [str(runs[index].recipe.get("seed")) for index in members]
        lines.append(Line(name, list(settings) or ["the same settings"], members, seeds, ranges, set()))
    for column in columns:
        mark_best(column, lines, distance(column))
    return columns, lines


def mark_best(column: Column, lines: Sequence[Line], far: Callable[[float], float]) -> None:
    """Mark the rows whose mean is best. One row alone is not the best of anything."""
    known = [(far(sum(line.values[column.name]) / 2), line) for line in lines if column.name in line.values]
    if len(known) > 1 and len({value for value, _ in known}) > 1:
        best = min(value for value, _ in known)
        for value, line in known:
            if value == best:
                line.best.add(column.name)


def distance(column: Column) -> Callable[[float], float]:
    """How far a value is from the best."""
    gold = column.gold
    # A comeback below 0 tells too: the model knows less than gold.
    if column.best in ("gold", "zero") and gold is not None:
        return lambda value: abs(value - gold)
    if column.name == "mia_loss_auc":
        return lambda value: abs(value - 0.5)
    # Without gold a low probability is taken for the better one. The report says that it means little.
    high = column.best == "high" or column.name == "truth_ratio"
    return lambda value: -value if high else value


def values_of(run: Run, answers: Mapping[str, Answer]) -> dict[str, float]:
    """The value of each column."""
    values = {figure.name: figure.after for figure in all_figures(answers) if figure.after is not None}
    values |= {"comeback": worst_comeback(run), "steps": run.entry["metrics"].get("steps")}
    values["seconds"] = run.details.cost.get("seconds", run.entry["metrics"].get("train_runtime"))
    return {column.name: values[column.name] for column in COLUMNS if values.get(column.name) is not None}


def all_figures(answers: Mapping[str, Answer]) -> list[Figure]:
    """The figures of all questions."""
    return [figure for answer in answers.values() for figure in answer.figures]


def method(run: Run) -> str:
    """The method of a run in a few words."""
    recipe = run.recipe
    words = " + ".join(str(recipe[key]) for key in ("forget_objective", "retain_objective") if recipe.get(key))
    return words + (", adapter" if recipe.get("update_target") == "adapter" else "")


def as_text(value: Any) -> str:
    """A setting as text."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
