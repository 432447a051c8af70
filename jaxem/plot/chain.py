"""The states of chains: along a series, and the moves between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxem.plot.style import colors, line, require_matplotlib


def states(axes: Any, path: Any, x: Any = None, labels: Sequence[str] = ()) -> None:
    """Bands in the colour of the state at each step, behind whatever else is drawn.

    Args:
        axes: Matplotlib axes.
        path: (T,) states, 0 .. K - 1.
        x: (T,) places of the steps in order. None: 0 .. T - 1.
        labels: K names for a legend, or none.
    """
    path = np.asarray(path)
    x = np.arange(len(path)) if x is None else np.asarray(x)
    middle = (x[1:] + x[:-1]) / 2
    edges = np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]])
    hue = colors(max(int(path.max()) + 1, len(labels)))
    starts = np.flatnonzero(np.diff(path, prepend=-1))
    for begin, end in zip(starts, [*starts[1:], len(path)], strict=True):
        axes.axvspan(edges[begin], edges[end], color=hue[path[begin]], alpha=0.22, lw=0, zorder=0)
    axes.set_xlim(edges[0], edges[-1])
    if labels:
        handles = [line(color=c, lw=8, alpha=0.35, label=name) for c, name in zip(hue, labels, strict=True)]
        axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(labels), fontsize=9.5)


def transition_graph(axes: Any, transition: Any, labels: Sequence[str] = (), least: float = 0.005) -> None:
    """States on a circle, with an arrow as wide as its probability for every move.

    Args:
        axes: Matplotlib axes; their frame is hidden.
        transition: (K, K), rows the state before.
        labels: K names. None: the states' numbers.
        least: moves of a lower probability are left out.
    """
    patches = require_matplotlib().patches
    transition = np.asarray(transition)
    k = len(transition)
    hue, names = colors(k), list(labels) or [str(i) for i in range(k)]
    angle = np.pi - 2 * np.pi * np.arange(k) / k  # the first on the left, then clockwise
    place = np.stack([np.cos(angle), np.sin(angle)], 1)
    size = min(0.36, 1.5 / k)
    for i, j in zip(*np.nonzero(transition >= least), strict=True):
        p = transition[i, j]
        look = {"lw": 0.8 + 5 * p, "color": hue[i], "zorder": 1}
        if i == j:
            center = place[i] * (1 + 1.35 * size)
            axes.add_patch(patches.Circle(center, 0.75 * size, fill=False, **look))
            where = place[i] * (1 + 2.9 * size)
        else:
            length = np.linalg.norm(place[j] - place[i])
            along = (place[j] - place[i]) / length
            aside = np.array([along[1], -along[0]])  # of the line between the two, the way back on the other side
            tip = 1.1 * size * np.array([0.94, 0.34])
            arrow = patches.FancyArrowPatch(
                tuple(place[i] + tip @ [along, aside]), tuple(place[j] + tip @ [-along, aside]), shrinkA=0, shrinkB=0,
                connectionstyle="arc3,rad=0.15",
                arrowstyle=patches.ArrowStyle("-|>", head_length=4 + 5 * p, head_width=2 + 3 * p), **look,
            )  # fmt: skip
            axes.add_patch(arrow)
            where = (place[i] + place[j]) / 2 + (0.2 * size + 0.07 * length + 0.15) * aside
        axes.text(*where, f"{p:.2f}", ha="center", va="center", fontsize=9.5, zorder=3)
    for spot, color, name in zip(place, hue, names, strict=True):
        axes.add_patch(patches.Circle(tuple(spot), size, facecolor=color, edgecolor="white", lw=1.5, zorder=2))
        axes.text(*spot, name, ha="center", va="center", color="white", fontweight="bold", fontsize=10, zorder=3)
    reach = 1.15 + 2.9 * size
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.axis("off")
