"""The choice among several models: their criterion, and the one chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from jaxem.evaluate.selection import Selection
from jaxem.plot.density import drawable, mixture
from jaxem.plot.restarts import finals, trace
from jaxem.plot.style import INK, MARKERS, STYLE, colors, require_matplotlib


def selection_figure(data: Any, selection: Selection, *, labels: Sequence[str] = (), title: str = "") -> Any:
    """The criterion of all candidates, how the restarts of the chosen one went, and a chosen mixture over its data.

    Args:
        data: what was fitted.
        selection: of any models.
        labels: D axis labels, with units, for a mixture.
        title: a headline, or none.

    Returns:
        A Matplotlib `Figure`; `figure.savefig(path)` writes it. No window is opened.
    """
    matplotlib = require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    best = selection.best
    if best.result is None:
        raise ValueError("selection must hold a fit that did not fail; every restart of every model failed")
    with_density = drawable(best.model, data)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14 if with_density else 9, 8), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.14, wspace=0.03, hspace=0.05)  # type: ignore[union-attr]
        grid = figure.add_gridspec(2, 2 + with_density, width_ratios=(1.9, 1.3, 0.8)[-2 - with_density :])
        if title:
            figure.suptitle(title, x=0.008, ha="left", fontsize=15, fontweight="bold")
        if with_density:
            mixture(figure.add_subplot(grid[:, 0]), data, best.result, labels)
        criterion_curves(figure.add_subplot(grid[0, -2:]), selection)
        trace(figure.add_subplot(grid[1, -2]), best.result)
        finals(figure.add_subplot(grid[1, -1]), best.result)
    return figure


def criterion_curves(axes: Any, selection: Selection) -> None:
    """How far each candidate's score lies above the best, by size: a curve for each way in which they differ otherwise.

    The size is the number of components, states, factors, ...; of free parameters where candidates share no such number.
    """
    best = selection.best
    name = selection.criterion.upper()
    size, sizes, kinds = _sizes_and_kinds(selection)
    ends = []
    for kind, color in zip(names := list(dict.fromkeys(kinds)), colors(len(names)), strict=True):
        shown = sorted(
            (x, c.score - best.score)
            for x, k, c in zip(sizes, kinds, selection.candidates, strict=True)
            if k == kind and np.isfinite(c.score) and not c.degenerate
        )
        if not shown:
            continue
        x, y = zip(*shown, strict=True)
        axes.plot(x, y, marker=MARKERS.get(kind, "o"), ms=5.5, lw=1.8, color=color, label=kind, clip_on=False, zorder=3)
        if kind:
            ends.append((x[-1], y[-1], kind, color))
    (chosen,) = (x for x, c in zip(sizes, selection.candidates, strict=True) if c is best)
    axes.scatter([chosen], [0], s=190, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=4, clip_on=False)
    highest = max([10, *(line.get_ydata().max() for line in axes.lines)])
    if highest > 100:  # linear near the best, where the choice is made, and logarithmic above
        axes.set_yscale("symlog", linthresh=10, linscale=0.8)
        ticks = [0, *(10**p for p in range(1, 9) if 10**p <= 1.3 * highest)]
        axes.set_yticks(ticks, [f"{t:,}" for t in ticks])
        axes.yaxis.set_minor_locator(require_matplotlib().ticker.NullLocator())
    axes.set_ylim(-3 if highest > 100 else -0.08 * highest, 1.3 * highest)
    axes.xaxis.set_major_locator(require_matplotlib().ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel=size, ylabel=f"{name} above the best")
    axes.set_title(f"{name} by {size} (least, ringed: {best.score:,.2f})")
    _name_curves(axes, ends)


def _sizes_and_kinds(selection: Selection) -> tuple[str, list[int], list[str]]:
    """What the size is called, each candidate's size, and the words for what else sets it apart from the others."""
    settings = [_settings(c.model) for c in selection.candidates]
    names = list(dict.fromkeys(name for each in settings for name in each))
    values: dict[str, list[Any]] = {name: [each.get(name) for each in settings] for name in names}
    # What only one kind of part has, its class says.
    differ = [name for name in names if len({each[name] for each in settings if name in each}) > 1]
    counts = [name for name in names if all(type(v) is int for v in values[name]) and (name in differ or name.startswith("n_"))]
    size = min(counts, key=lambda name: (name not in differ, name.count("."))) if counts else None
    if size is None:
        sizes, words = [c.n_free_params for c in selection.candidates], "number of free parameters"
    else:
        sizes, words = values[size], _in_words(size)
    # What grows with the size in step makes no kind of its own.
    others = [name for name in differ if values[name] != sizes]
    if not others and all("family.covariance" in each for each in settings):
        others = ["family.covariance"]
    return words, sizes, [_kind(each, others) for each in settings]


def _settings(model: Any, prefix: str = "") -> dict[str, Any]:
    """Numbers and words that make a model and its parts what they are, by dotted name; arrays left out."""
    found: dict[str, Any] = {f"{prefix}class": type(model).__name__}
    for field in dataclasses.fields(model):
        name, value = prefix + field.name, getattr(model, field.name)
        parts = {f"{name}.{i}": part for i, part in enumerate(value)} if isinstance(value, tuple) else {name: value}
        for key, part in parts.items():
            if dataclasses.is_dataclass(part):
                found |= _settings(part, f"{key}.")
            elif part is None or isinstance(part, int | float | str | np.generic):
                found[key] = part.item() if isinstance(part, np.generic) else part
    return found


def _in_words(name: str) -> str:
    """'n_components' -> 'number of components', 'family.order' -> 'order'."""
    last = name.split(".")[-1]
    return f"number of {last[2:].replace('_', ' ')}" if last.startswith("n_") else last.replace("_", " ")


def _kind(settings: dict[str, Any], names: list[str]) -> str:
    there = [(name.split(".")[-1], settings[name]) for name in names if settings.get(name) is not None]
    return ", ".join(str(value) if isinstance(value, str) else f"{name.replace('_', ' ')} {value}" for name, value in there)


def _name_curves(axes: Any, ends: list[tuple[float, float, str, Any]]) -> None:
    """Each curve's name at its right end, pushed apart where they would overlap."""
    if not ends:
        return
    height = axes.transData.transform([(x, y) for x, y, _, _ in ends])[:, 1]
    box = axes.get_window_extent()
    at = (height - box.y0) / box.height
    order, least = np.argsort(at), 0.085
    for before, after in pairwise(order):
        at[after] = max(at[after], at[before] + least)
    for (x, y, kind, color), level in zip(ends, at, strict=True):
        axes.annotate(
            kind, (x, y), xytext=(1.03, level), textcoords="axes fraction", color=color, va="center", fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.7, "shrinkA": 1, "shrinkB": 5},
        )  # fmt: skip
