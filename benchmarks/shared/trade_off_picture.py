"""The picture of `trade_off.py`: what comes back against two other questions, a line per option."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure

from shared.four_questions import COMEBACK, KEPT, PRIVLEAK


LABEL = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": 7}
# By figure its target.
AGAINST = {"|PrivLeak|": PRIVLEAK, "kept": KEPT}


def draw(path: Path, lines: Mapping[str, Mapping[float, Mapping[str, float]]]) -> None:
    """
    Draw the lines as an SVG file.

    Args:
        path (`Path`):
            The file.
        lines (`Mapping[str, Mapping[float, Mapping[str, float]]]`):
            By option and value the figures `comeback`, `kept` and `|PrivLeak|`.
    """
    colors = dict(zip(lines, colormaps["tab10"].colors, strict=False))
    # The same points give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "r2f", "font.family": "sans-serif"}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        for axes, (name, target) in zip(figure.subplots(1, 2), AGAINST.items(), strict=True):
            points_of = {
                option: [(found["comeback"], found[name]) for found in by_value.values()]
                for option, by_value in lines.items()
            }
            # The recipe's own runs lie on all lines. Their values there would cover each other.
            shared = set.intersection(*map(set, points_of.values())) if len(lines) > 1 else set()
            for option, by_value in lines.items():
                points = points_of[option]
                label = option if name == "kept" else None
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colors[option], label=label)
                for value, point in zip(by_value, points, strict=True):
                    if point not in shared:
                        axes.annotate(f"{value:g}", point, color=colors[option], **LABEL)
            for point in shared:
                axes.plot(*point, marker="*", markersize=11, color="black")
                axes.annotate("recipe", point, color="black", **LABEL | {"xytext": (7, -9)})
            axes.axvline(COMEBACK, color="grey", linestyle=":", linewidth=1)
            axes.axhline(target, color="grey", linestyle=":", linewidth=1)
            axes.set_xlabel("comeback (dotted: the targets)")
            axes.set_ylabel(name)
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
