"""The report of a run, or of several side by side: one HTML file that needs no network."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..runs.files import write_text
from ..runs.undo import UNDO_FOLDER
from . import plots
from .comparison import SHOWN, Column, Line, compare_runs
from .questions import GONE, KEPT, LASTS, OTHER, QUESTIONS, TOLD, Answer, answers, measured, not_measured, verdict
from .run import Run, read_run


# Rows of the table of single rows. More make a browser slow.
MOST_ROWS = 1000


def write_report(
    folders: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    texts: Sequence[Sequence[str]] | None = None,
    public: bool = False,
) -> Path:
    """
    Write the report of a run, or of several side by side.

    Args:
        folders (`Sequence[str]`):
            The output folders of the runs, see [`read_run`].
        out (`str` or `os.PathLike`):
            The file to write.
        texts (`Sequence[Sequence[str]]`, *optional*):
            The texts of the forget rows, to be shown next to their numbers. By default the report has no text.
        public (`bool`, *optional*, defaults to `False`):
            Whether to leave out names of local files and folders. The name of a file may tell who was forgotten.

    Returns:
        `Path`: The file.

    Raises:
        `FileNotFoundError`: If no run has written to one of the folders.
        `ValueError`: If a file of a run is damaged.
    """
    return write_runs([read_run(folder) for folder in folders], out, texts, public)


def write_runs(
    runs: Sequence[Run],
    out: str | os.PathLike,
    texts: Sequence[Sequence[str]] | None = None,
    public: bool = False,
) -> Path:
    """[`write_report`] of runs that were read already."""
    write_text(out, render(runs, texts, public))
    return Path(out)


def render(runs: Sequence[Run], texts: Sequence[Sequence[str]] | None = None, public: bool = False) -> str:
    """
    The report as HTML.

    Args:
        runs (`Sequence[Run]`):
            The runs, at least one.
        texts (`Sequence[Sequence[str]]`, *optional*):
            The texts of the forget rows of the only run.
        public (`bool`, *optional*, defaults to `False`):
            Whether to leave out names of local files and folders.
    """
    environment = Environment(
        loader=PackageLoader("r2f_hf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": figure,
        "time": in_words,
        "size": in_bytes,
        "setting": as_setting,
        "code": with_code,
    }
    found = [answers(run) for run in runs]
    columns, lines = compare_runs(runs, found) if len(runs) > 1 else ([], [])
    sections = [
        section(run, answer, f"r{number}", texts) for number, (run, answer) in enumerate(zip(runs, found, strict=True))
    ]
    return environment.get_template("report.html.j2").render(
        sections=sections,
        columns=columns,
        lines=lines,
        panels=draw_comparison(columns, lines),
        public=public,
        style=Markup(environment.get_template("style.css").render()),
        written=datetime.now(timezone.utc).isoformat(timespec="minutes"),
        version=version("r2f-hf"),
    )


def section(
    run: Run, found: Mapping[str, Answer], name: str, texts: Sequence[Sequence[str]] | None = None
) -> dict[str, Any]:
    """What the template shows of one run. Its ids begin with the name."""
    heading, sentence = verdict(found, run.undone)
    entry = run.entry
    rows = run.rows
    return {
        "name": name,
        "run": run,
        "entry": entry,
        "heading": heading,
        "sentence": sentence,
        "answers": found,
        "plots": {key: Markup(plot) for key, plot in draw(run, found, name).items() if plot},
        "rows": table_of_rows(rows.get("forget", {}), texts),
        "shown_rows": MOST_ROWS,
        "not_measured": not_measured(run, found),
        "others": [figure for question, figure in measured(run) if question == OTHER],
        "notes": [note for report in run.evaluations for note in report["notes"]],
        "meanings": {
            attack: content["meaning"] for report in run.attacks for attack, content in report["attacks"].items()
        },
        "curves": {f"curve-{number}": words for number, words in enumerate(relearning_curves(run))},
        "undo_folder": UNDO_FOLDER,
        "metrics": {
            key: value for key, value in entry["metrics"].items() if not isinstance(value, dict) and value is not None
        },
        "command": run.details.command,
    }


def relearning_curves(run: Run) -> dict[str, dict[str, list[float]]]:
    """What comes back by step, by the words of the attack's variant."""
    return {
        f"{attack.replace('_', ' ')}: {variant}": curve
        for report in run.attacks
        for attack, content in report["attacks"].items()
        for variant, curve in content.get("curves", {}).items()
    }


def draw(run: Run, found: Mapping[str, Answer], name: str) -> dict[str, str]:
    """All plots of a run, by what they show."""
    drawn = {
        key: plots.dumbbells(f"{name}-{key}", f"{found[key].question} Before, after and gold", found[key].figures)
        for key in (GONE, TOLD, KEPT)
    }
    relearned = [figure for figure in found[LASTS].figures if figure.name.startswith("relearning/")]
    others = [figure for figure in found[LASTS].figures if not figure.name.startswith("relearning/")]
    drawn["relearning"] = plots.dumbbells(
        f"{name}-relearning", "P(answer) after relearning", relearned, "relearning: "
    )
    for number, (words, curve) in enumerate(relearning_curves(run).items()):
        roles = {"before": "original", "after": "unlearned", "gold": "gold"}
        lines = {model: (curve["steps"], curve[role]) for model, role in roles.items() if role in curve}
        drawn[f"curve-{number}"] = plots.curves(f"{name}-curve-{number}", words, lines, "P(answer)", 1)
    drawn["attacks"] = plots.dumbbells(f"{name}-attacks", "What other attacks get", others)
    for split in ("forget", "retain"):
        title = f"P(answer) of each row, {split} set"
        drawn[f"{split}_rows"] = plots.dots(f"{name}-{split}-rows", title, run.rows.get(split, {}), "P(answer)")
    losses = {name: series(run.logs, f"{name}_loss") for name in ("forget", "retain")}
    drawn["losses"] = plots.curves(f"{name}-losses", "Losses by step", losses, "loss")
    fidelity = {"mean over modules": series(run.logs, "r2f/fidelity"), "worst": series(run.logs, "r2f/fidelity_min")}
    drawn["fidelity"] = plots.curves(f"{name}-fidelity", "Fidelity by step", fidelity, "cosine")
    drawn["modules"] = plots.heat_map(
        f"{name}-modules", "Fidelity by module and step", run.details.modules, run.details.fidelity
    )
    before = run.entry["metrics"].get("before", {})
    evaluated = {}
    for split in ("forget", "retain", "holdout"):
        steps, values = series(run.logs, f"eval_{split}_probability")
        if steps and steps[0] and f"eval_{split}_probability" in before:
            steps, values = [0, *steps], [before[f"eval_{split}_probability"], *values]
        if len(steps) > 1:
            evaluated[split] = steps, values
    drawn["evaluated"] = plots.curves(f"{name}-evaluated", "P(answer) during the run", evaluated, "P(answer)")
    return drawn


def draw_comparison(columns: Sequence[Column], lines: Sequence[Line]) -> list[tuple[str, Markup]]:
    """A plot per question with all rows of the comparison, and its caption."""
    alike = len({line.method for line in lines}) == 1
    known = {column.name: column for column in columns}
    drawn = []
    for question, names in SHOWN.items():
        column = next((known[name] for name in names if name in known), None)
        if column is not None:
            title = f"{QUESTIONS[question]} {column.words[0].upper()}{column.words[1:]}"
            shown = [
                ("\n".join(([] if alike else [line.method]) + line.settings), line.values[column.name])
                for line in lines
                if column.name in line.values
            ]
            drawn.append((title, Markup(plots.ranges(f"comparison-{question}", title, shown, column.gold))))
    return drawn


def series(logs: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """The steps at which something was logged, and its values."""
    pairs = [(log["step"], log[key]) for log in logs if isinstance(log.get(key), (int, float))]
    return [step for step, _ in pairs], [value for _, value in pairs]


def table_of_rows(
    rows: Mapping[str, Sequence[float | None]], texts: Sequence[Sequence[str]] | None
) -> list[dict[str, Any]]:
    """The forget rows with their numbers, and by request their texts."""
    count = max((len(values) for values in rows.values()), default=0)
    return [
        {
            "number": number,
            "values": {model: values[number] for model, values in rows.items() if number < len(values)},
            "texts": list(texts[number]) if texts is not None and number < len(texts) else [],
        }
        for number in range(min(count, MOST_ROWS))
    ]


def figure(value: float | str | None) -> str:
    """A number with three significant digits."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}"


def in_words(seconds: float | None) -> str:
    """A time."""
    if seconds is None:
        return "not recorded"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def in_bytes(count: float | None) -> str:
    """A size."""
    return "not recorded" if count is None else f"{count / 1e6:,.0f} MB"


def with_code(text: str) -> Markup:
    """A sentence whose names in backticks become code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if odd % 2 else part for odd, part in enumerate(parts)
    )


def as_setting(value: Any) -> str:
    """A setting as it would stand in a recipe."""
    return value if isinstance(value, str) else json.dumps(value)
