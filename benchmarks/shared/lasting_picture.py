"""The picture of `lasting.py`: what is kept against what comes back, a point per run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from shared.four_questions import COMEBACK, KEPT


MARKERS = "osD^vP*X"


def draw(path: Path, points: Sequence[tuple[str, str, float, float]]) -> None:
    """
    Draw the runs as an SVG file.

    Args:
        path (`Path`):
            The file.
        points (`Sequence[tuple[str, str, float, float]]`):
            Per run the setting, the method, what is kept, and the comeback.
    """
    settings, methods = (list(dict.fromkeys(names)) for names in list(zip(*points, strict=True))[:2])
    colors = dict(zip(methods, colormaps["tab20"].colors, strict=False))
    markers = dict(zip(settings, MARKERS, strict=False))
    # The same points give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "r2f", "font.family": "sans-serif"}):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for setting, method, kept, comeback in points:
            axes.scatter(kept, comeback, color=colors[method], marker=markers[setting], alpha=0.8)
        axes.axvline(KEPT, color="grey", linestyle=":", linewidth=1)
        axes.axhline(COMEBACK, color="grey", linestyle=":", linewidth=1)
        axes.set_xlabel("kept, as a part of before's (dotted: the target)")
        axes.set_ylabel("comeback after relearning a tenth of the rows")
        handles = [Line2D([], [], color=color, marker="o", linestyle="", label=name) for name, color in colors.items()]
        if len(settings) > 1:
            shapes = {"color": "grey", "linestyle": ""}
            handles += [Line2D([], [], marker=shape, label=name, **shapes) for name, shape in markers.items()]
        figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
