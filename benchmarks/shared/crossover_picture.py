"""The picture of `crossover.py`: seconds per step against tokens per step, and R2F's share of the others' seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from shared.lines import Line


NAMES = {
    "floor": "forward, and backward through activations",
    "r2f": "R2F",
    "lora": "LoRA + AdamW",
    "full": "full AdamW",
    "exact": "exact SGD, layer by layer",
}
COLORS = dict(zip(NAMES, ("grey", *colormaps["tab10"].colors), strict=False))


def draw(path: Path, report: Mapping[str, Any], whole: Sequence[int]) -> None:
    """
    Draw the report of `crossover.py` as an SVG file.

    Args:
        path (`Path`):
            The file.
        report (`Mapping[str, Any]`):
            The report.
        whole (`Sequence[int]`):
            Tokens of the steps that are not divided into micro-batches. Other points are hollow.
    """
    # The same figures give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "r2f", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, medians in report["seconds"].items():
            tokens = list(medians)
            line = Line(*(report["lines"][name][side][0] for side in Line._fields))
            left.plot(tokens, [line.at(each) for each in tokens], color=COLORS[name], linewidth=1)
            for each, seconds in medians.items():
                filled = COLORS[name] if each in whole else "white"
                left.plot(each, seconds, "o", color=COLORS[name], markerfacecolor=filled, markersize=4)
            left.plot([], [], "o-", color=COLORS[name], markersize=4, label=NAMES[name])
        left.set_ylabel("seconds per step")
        left.set_yscale("log")
        left.yaxis.set_major_formatter(ScalarFormatter())
        left.yaxis.set_minor_formatter(ScalarFormatter())
        for name, ratios in report["ratios"].items():
            middles, lows, highs = zip(*ratios.values(), strict=True)
            spans = [[middle - low for middle, low in zip(middles, lows, strict=True)]]
            spans += [[high - middle for middle, high in zip(middles, highs, strict=True)]]
            right.errorbar(list(ratios), middles, spans, color=COLORS[name], marker="o", markersize=4, linewidth=1)
        right.axhline(1, color="black", linestyle=":", linewidth=1)
        right.set_ylabel("R2F's step / theirs (below 1: R2F is cheaper)", fontsize=8)
        for axes in (left, right):
            label_tokens(axes, list(report["seconds"]["r2f"]))
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def label_tokens(axes: Axes, tokens: Sequence[int]) -> None:
    """Make the horizontal axis one of tokens, by doublings."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(tokens))
    axes.set_xlabel("tokens per step")
