"""Colours and lines that all pictures share. Needs Matplotlib: pip install "jaxem[plot]"."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Okabe and Ito's palette, which colour-blind readers can tell apart; black and yellow left out.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = {"full": "o", "tied": "s", "diag": "^", "spherical": "D"}
INK = "#222222"
STYLE = {
    "font.size": 10.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
}


def require_matplotlib() -> Any:
    """`matplotlib`, or an ImportError that says how to get it."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('pictures need Matplotlib: pip install "jaxem[plot]"') from error
    return matplotlib


def colors(n: int) -> list[tuple[float, float, float]]:
    """n colours: the palette, then the palette mixed with white and with black."""
    matplotlib = require_matplotlib()
    base = [np.array(matplotlib.colors.to_rgb(c)) for c in PALETTE]
    shades = [lambda c: c, lambda c: 0.45 * c + 0.55, lambda c: 0.5 * c]
    return [tuple(shades[i // len(base) % 3](base[i % len(base)])) for i in range(n)]


def line(**look: Any) -> Any:
    """A line for a legend alone."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **look)
