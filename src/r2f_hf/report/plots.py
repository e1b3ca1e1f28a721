"""Plots as inline SVG: readable in the dark and in the light, and described for those who do not see them."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from .questions import Figure


# Matplotlib knows no CSS. So each colour of the page has a placeholder here, which `as_svg` puts the name of.
COLORS = {
    "ink": "#010101",
    "faint": "#020202",
    "before": "#030303",
    "after": "#040404",
    "gold": "#050505",
    "paper": "#060606",
}
MARKERS = {"before": "s", "after": "o", "gold": "D"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "r2f",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": COLORS["ink"],
    "axes.labelcolor": COLORS["ink"],
    "axes.edgecolor": COLORS["faint"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": COLORS["ink"],
    "ytick.color": COLORS["ink"],
    "grid.color": COLORS["faint"],
    "grid.linewidth": 0.5,
    "grid.alpha": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
WIDTH = 4.8
# More columns than this would be narrower than a pixel, and more dots would make the page slow.
MOST_COLUMNS = 300
MOST_DOTS = 800


def as_svg(name: str, title: str, description: str, size: tuple[float, float], draw: Callable[[Axes], Any]) -> str:
    """
    Draw a plot.

    Args:
        name (`str`):
            What its ids begin with. They are to be unique on the page.
        title (`str`):
            What a screen reader calls it.
        description (`str`):
            What there is to see.
        size (`tuple[float, float]`):
            Width and height, in inches.
        draw (`Callable[[Axes], Any]`):
            Draws on the axes.

    Returns:
        `str`: An `<svg>` element.
    """
    with rc_context(STYLE):
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas.add_subplot())
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The page has several plots, and each one calls its parts the same.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\g<1>#{name}-", svg)
    for color, placeholder in COLORS.items():
        svg = svg.replace(placeholder, f"var(--{color})")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    start, rest = svg.split(">", 1)
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', start)
    opening = (
        f'<svg class="plot" role="img" aria-labelledby="{name}-title {name}-desc" viewBox="{view[0][9:-1]}" '
        f'style="max-width: {float(view[1]) * 1.34:.0f}px" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    heading = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    return opening + heading + rest


def dumbbells(name: str, title: str, figures: Sequence[Figure], prefix: str = "") -> str:
    """
    A line per figure, with a mark for each model between 0 and the end of the figure's range.

    The prefix is left out of the figures' words.
    """
    shown = [figure for figure in figures if figure.span is not None and figure.after is not None]
    if not shown:
        return ""
    models = [model for model in MARKERS if any(getattr(figure, model) is not None for figure in shown)]
    labels = [textwrap.fill(figure.words.removeprefix(prefix), 26) for figure in shown]
    rooms, heights = spread(labels)

    def draw(axes: Axes) -> None:
        for height, figure in zip(heights, shown, strict=True):
            values = [getattr(figure, model) / figure.span for model in models if getattr(figure, model) is not None]
            axes.plot([min(values), max(values)], [height, height], color=COLORS["faint"], linewidth=2, zorder=1)
        for model in models:
            pairs = [
                (getattr(figure, model) / figure.span, height)
                for height, figure in zip(heights, shown, strict=True)
                if getattr(figure, model) is not None
            ]
            mark(axes, *zip(*pairs, strict=True), model)
        axes.set_yticks(heights, labels)
        axes.set_ylim(rooms.sum() + 0.3, -0.3)
        axes.set_xlim(-0.03, 1.03)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        legend(axes, len(models))

    values = [{model: getattr(figure, model) for model in models} for figure in shown]
    described = "; ".join(
        f"{figure.words}: " + ", ".join(f"{model} {value:.3g}" for model, value in own.items() if value is not None)
        for figure, own in zip(shown, values, strict=True)
    )
    return as_svg(name, title, described, (WIDTH, 0.8 + 0.27 * rooms.sum()), draw)


def spread(labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The room of each label, and its height. One of several lines takes more, half of it above its mark."""
    rooms = np.array([1 + 0.55 * label.count("\n") for label in labels])
    return rooms, np.cumsum(rooms) - rooms / 2


def mark(axes: Axes, x: Sequence[float], y: Sequence[float], model: str, size: float = 34) -> PathCollection:
    """Marks of a model. Gold's are hollow, so that those below stay visible."""
    face = "none" if model == "gold" else COLORS[model]
    return axes.scatter(
        x, y, s=size, marker=MARKERS[model], facecolors=face, edgecolors=COLORS[model], zorder=3, label=model
    )


def legend(axes: Axes, columns: int, marks: Mapping[str, Artist] | None = None) -> None:
    """The legend, above the plot, of all marks or of these."""
    chosen = {} if marks is None else {"handles": list(marks.values()), "labels": list(marks)}
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, handletextpad=0.2, **chosen)


def dots(name: str, title: str, rows: Mapping[str, Sequence[float | None]], quantity: str) -> str:
    """A dot per row and model."""
    present = {model: rows[model] for model in MARKERS if rows.get(model)}
    if not present:
        return ""
    count = max(map(len, present.values()))
    every = -(-count // MOST_DOTS)

    def draw(axes: Axes) -> None:
        # Many rows are close to each other.
        size = 14 if count <= 80 else 5
        for model, values in present.items():
            pairs = [
                (number, value) for number, value in enumerate(values) if value is not None and not number % every
            ]
            if pairs:
                mark(axes, *zip(*pairs, strict=True), model, size)
        label = "row number" if every == 1 else f"row number (one row of {every} is shown)"
        axes.set(xlabel=label, ylabel=quantity, ylim=(-0.04, 1.04))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(axis="y")
        legend(axes, len(present))

    known = {model: [value for value in values if value is not None] for model, values in present.items()}
    described = "; ".join(
        f"{model}: {len(values)} rows, from {min(values):.3g} to {max(values):.3g}, median {np.median(values):.3g}"
        for model, values in known.items()
        if values
    )
    return as_svg(name, title, described, (WIDTH, 2.7), draw)


def ranges(name: str, title: str, lines: Sequence[tuple[str, tuple[float, float]]], gold: float | None = None) -> str:
    """
    A range per line, with a mark at both of its ends. Gold's value is a line across all.

    Args:
        name (`str`):
            What its ids begin with.
        title (`str`):
            What a screen reader calls it.
        lines (`Sequence[tuple[str, tuple[float, float]]]`):
            The words of each line, which may have several lines of their own, with its lowest and highest value.
        gold (`float`, *optional*):
            The value of gold.
    """
    if not lines:
        return ""
    labels = ["\n".join(textwrap.fill(part, 26) for part in words.splitlines()) for words, _ in lines]
    rooms, heights = spread(labels)

    def draw(axes: Axes) -> None:
        for height, (_, values) in zip(heights, lines, strict=True):
            axes.plot(values, [height, height], color=COLORS["after"], linewidth=2, zorder=2)
            mark(axes, values, [height, height], "after")
        if gold is not None:
            axes.axvline(gold, color=COLORS["gold"], linestyle="--", linewidth=1.5, zorder=1, label="gold")
        axes.set_yticks(heights, labels)
        axes.set_ylim(rooms.sum() + 0.3, -0.3)
        least, most = (choose(end for _, values in lines for end in values) for choose in (min, max))
        axes.set_xlim(min(least, 0) - 0.03, max(most, 1) + 0.03)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        handles, words = axes.get_legend_handles_labels()
        legend(axes, 2, dict(zip(words, handles, strict=True)))

    parts = [
        f"{', '.join(words.splitlines())}: {low:.3g}" + (f" to {high:.3g}" if high != low else "")
        for words, (low, high) in lines
    ]
    described = "; ".join(parts) + ("" if gold is None else f"; gold: {gold:.3g}")
    return as_svg(name, title, described, (WIDTH, 0.8 + 0.27 * rooms.sum()), draw)


def curves(
    name: str,
    title: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    label: str,
    span: float | None = None,
) -> str:
    """Lines over the steps, at most three. Those of models have the models' marks. With a span the plot ends there."""
    lines = {key: (x, y) for key, (x, y) in lines.items() if len(x)}
    if not lines:
        return ""
    looks = dict(zip(lines, lines if lines.keys() <= MARKERS.keys() else ("after", "before", "gold"), strict=False))

    def draw(axes: Axes) -> None:
        for key, (x, y) in lines.items():
            color = looks[key]
            few = len(x) <= 40
            axes.plot(x, y, color=COLORS[color], label=key, marker=MARKERS[color] if few else None, markersize=3.5)
        axes.set(xlabel="step", ylabel=label)
        if span is not None:
            axes.set_ylim(-0.04 * span, 1.04 * span)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(axis="y")
        legend(axes, len(lines))

    described = "; ".join(f"{key}: from {y[0]:.3g} to {y[-1]:.3g}" for key, (_, y) in lines.items())
    return as_svg(name, title, described, (WIDTH, 2.7 if span is None else 2.2), draw)


def heat_map(name: str, title: str, modules: Sequence[str], steps: Sequence[Sequence[float | None]]) -> str:
    """The fidelity of each module at each step."""
    whole = [step for step in steps if len(step) == len(modules)]
    if not whole or not modules:
        return ""
    order = sorted(range(len(modules)), key=lambda index: natural(modules[index]))
    values = np.array(whole, dtype=float)[:, order].T
    parts = min(values.shape[1], MOST_COLUMNS)
    edges = np.linspace(0, values.shape[1], parts + 1)
    columns = np.array_split(values, parts, axis=1)
    means = np.stack([column.mean(1) for column in columns], axis=1)
    names = [short(modules[index]) for index in order]
    every = max(1, len(names) // 40 + 1)

    def draw(axes: Axes) -> None:
        heights = np.arange(len(names) + 1) - 0.5
        image = axes.pcolormesh(edges + 0.5, heights, means, cmap="cividis", vmin=0, vmax=1, rasterized=True)
        axes.set_yticks(range(0, len(names), every), names[::every], fontsize=6.5)
        axes.invert_yaxis()
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.figure.colorbar(image, ax=axes, shrink=0.6, label="cosine")

    known = values[np.isfinite(values)]
    worst = np.unravel_index(np.nanargmin(values), values.shape) if known.size else (0, 0)
    described = (
        f"{len(names)} modules at {values.shape[1]} steps; mean {np.mean(known):.3g}; the lowest is "
        f"{values[worst]:.3g}, of {names[worst[0]]} at step {worst[1] + 1}."
    )
    return as_svg(name, title, described, (WIDTH, min(1.2 + 0.13 * len(names), 6)), draw)


def natural(module: str) -> list[Any]:
    """A module's name as a key to sort by, so that layer 10 comes after layer 9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"[.]", module)]


def short(module: str) -> str:
    """A module's layer and its own name."""
    number = re.search(r"\.(\d+)\.", module)
    return " ".join(filter(None, (number and number[1], module.rsplit(".", 1)[-1])))
