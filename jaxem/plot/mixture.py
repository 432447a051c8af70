"""Pictures of fitted Gaussian mixtures, and of the states of chains. Needs Matplotlib: pip install "jaxem[plot]"."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from jaxem.evaluate.selection import Candidate, Selection
from jaxem.families.gaussian import covariance_matrices
from jaxem.types import Result, Status

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


def selection_figure(data: Any, selection: Selection, *, labels: Sequence[str] = (), title: str = "") -> Any:
    """The chosen Gaussian mixture over its data, the criterion of all candidates, and how the restarts went.

    Args:
        data: (N, D), what was fitted.
        selection: of Gaussian mixtures.
        labels: D axis labels, with units.
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
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14, 8), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.14, wspace=0.03, hspace=0.05)  # type: ignore[union-attr]
        grid = figure.add_gridspec(2, 3, width_ratios=(1.9, 1.3, 0.8))
        if title:
            figure.suptitle(title, x=0.008, ha="left", fontsize=15, fontweight="bold")
        mixture(figure.add_subplot(grid[:, 0]), data, best.result, labels)
        criterion_curves(figure.add_subplot(grid[0, 1:]), selection)
        trace(figure.add_subplot(grid[1, 1]), best.result)
        finals(figure.add_subplot(grid[1, 2]), best.result)
    return figure


def mixture(axes: Any, data: Any, result: Result, labels: Sequence[str] = ()) -> None:
    """Data coloured by responsibility, with the 1- and 2-sigma ellipse of each component.

    One column is drawn as a histogram under the densities, more than two on their principal axes.
    """
    data = np.asarray(data)
    d = data.shape[1]
    labels = list(labels) or [f"column {j + 1}" for j in range(d)]
    hue = np.array(colors(result.model.n_components))
    if d == 1:
        _densities(axes, data[:, 0], result, hue, labels[0])
    else:
        _scatter(axes, data, result, hue, labels)
    kind = result.model.family.covariance
    n = result.model.n_components
    axes.set_title(f"{n} component{'s' if n > 1 else ''}, {kind} covariance{'' if kind == 'tied' or n == 1 else 's'}")


def _parts(result: Result) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    components = result.params["components"]
    covariance = covariance_matrices(components, result.model.family.covariance)
    return np.asarray(result.params["weights"]), np.asarray(components["mean"]), covariance


def _scatter(axes: Any, data: np.ndarray, result: Result, hue: np.ndarray, labels: list[str]) -> None:
    weights, means, covariances = _parts(result)
    responsibilities = np.asarray(result.model.posterior(result.params, data))
    if data.shape[1] > 2:
        center, scale = data.mean(0), np.where(data.std(0) > 0, data.std(0), 1)
        _, singular, rows = np.linalg.svd((data - center) / scale, full_matrices=False)
        project = rows[:2] / scale
        data, means = (data - center) @ project.T, (means - center) @ project.T
        covariances = project @ covariances @ project.T
        share = 100 * singular**2 / max((singular**2).sum(), 1e-300)
        labels = [f"principal axis {j + 1} of the standardized columns ({share[j]:.0f}% of variance)" for j in range(2)]
    shade = np.clip(responsibilities @ hue, 0, 1)
    size = np.clip(9000 / len(data), 3, 30)
    axes.scatter(*data.T, c=shade, s=size, alpha=0.75, linewidths=0.4, edgecolors="white", zorder=2)
    for k in range(len(weights)):
        for sigma, width, style in ((1, 1.8, "-"), (2, 1.3, (0, (4, 2.5)))):
            axes.plot(*_ellipse(means[k], covariances[k], sigma), color=0.8 * hue[k], lw=width, ls=style, zorder=3)
        axes.scatter(*means[k], marker="X", s=95, color=0.8 * hue[k], edgecolors="white", linewidths=1.2, zorder=4)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.margins(0.06)
    _legend(axes, weights, hue, "crosses: means, ellipses at 1 and 2 standard deviations")


def _densities(axes: Any, x: np.ndarray, result: Result, hue: np.ndarray, label: str) -> None:
    weights, means, covariances = _parts(result)
    spread = x.max() - x.min() or 1.0
    at = np.linspace(x.min() - 0.08 * spread, x.max() + 0.08 * spread, 800)
    sigma = np.sqrt(covariances[:, 0, 0])[:, None]
    density = weights[:, None] * np.exp(-(((at - means) / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi))
    bins = int(np.clip(1.5 * np.sqrt(len(x)), 8, 60))
    axes.hist(x, bins=bins, density=True, color="#dddddd", edgecolor="white")
    for k, row in enumerate(density):
        axes.fill_between(at, row, color=hue[k], alpha=0.18, lw=0)
        axes.plot(at, row, color=0.8 * hue[k], lw=1.8)
    axes.plot(at, density.sum(0), color=INK, lw=1.6, ls=(0, (4, 2.5)))
    axes.set(xlabel=label, ylabel="density")
    _legend(axes, weights, hue, "dashed: the mixture")


def _legend(axes: Any, weights: np.ndarray, hue: np.ndarray, title: str) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker="o", ls="", color=hue[k], label=f"weight {w:.3f}") for k, w in enumerate(weights)]
    # Below the axes, where no datum can lie.
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=min(len(handles), 4), columnspacing=1.6,
        handletextpad=0.2, title=title, fontsize=9.5, title_fontsize=9.5,
    )  # fmt: skip


def _ellipse(mean: np.ndarray, covariance: np.ndarray, sigma: float) -> np.ndarray:
    """(2, 200) points at Mahalanobis distance `sigma`."""
    values, vectors = np.linalg.eigh(covariance)
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    return mean[:, None] + sigma * vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * circle)


def criterion_curves(axes: Any, selection: Selection) -> None:
    """How far each candidate's score lies above the best, by number of components, a curve for each covariance."""
    best = selection.best
    name = selection.criterion.upper()
    kinds: dict[str, list[Candidate]] = {}
    for candidate in selection.candidates:
        kinds.setdefault(candidate.model.family.covariance, []).append(candidate)  # type: ignore[attr-defined]
    ends = []
    for kind, color in zip(kinds, colors(len(kinds)), strict=True):
        shown = [c for c in kinds[kind] if np.isfinite(c.score) and not c.degenerate]
        if not shown:
            continue
        shown.sort(key=lambda c: c.model.n_components)  # type: ignore[attr-defined]
        x = [c.model.n_components for c in shown]  # type: ignore[attr-defined]
        y = [c.score - best.score for c in shown]
        axes.plot(x, y, marker=MARKERS.get(kind, "o"), ms=5.5, lw=1.8, color=color, label=kind, clip_on=False, zorder=3)
        ends.append((x[-1], y[-1], kind, color))
    n = best.model.n_components  # type: ignore[attr-defined]
    axes.scatter([n], [0], s=190, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=4, clip_on=False)
    highest = max([10, *(line.get_ydata().max() for line in axes.lines)])
    if highest > 100:  # linear near the best, where the choice is made, and logarithmic above
        axes.set_yscale("symlog", linthresh=10, linscale=0.8)
        ticks = [0, *(10**p for p in range(1, 9) if 10**p <= 1.3 * highest)]
        axes.set_yticks(ticks, [f"{t:,}" for t in ticks])
        axes.yaxis.set_minor_locator(require_matplotlib().ticker.NullLocator())
    axes.set_ylim(-3 if highest > 100 else -0.08 * highest, 1.3 * highest)
    axes.xaxis.set_major_locator(require_matplotlib().ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="number of components", ylabel=f"{name} above the best")
    axes.set_title(f"{name} by number of components (least, ringed: {best.score:,.2f})")
    _name_curves(axes, ends)


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


def trace(axes: Any, result: Result) -> None:
    """The objective of every restart step by step; of a run of more than 1,000 steps, the last 1,000."""
    from matplotlib.collections import LineCollection

    winner, regular, near = _winner(result), _ended_well(result), _near_best(result)
    paths = _paths(result)
    others = np.arange(len(paths)) != winner
    kinds = (
        (regular & near & others, {"colors": PALETTE[5], "label": "to the best"}),
        (regular & ~near & others, {"colors": PALETTE[1], "label": "to elsewhere"}),
        (~regular & others, {"colors": PALETTE[3], "linestyles": (0, (2.5, 1.5)), "label": "degenerate or failed"}),
    )
    alpha = float(np.clip(6 / np.sqrt(len(paths)), 0.12, 0.6))
    handles = []
    for rank, (chosen, look) in enumerate(kinds):
        shown = [paths[i] for i in np.flatnonzero(chosen) if len(paths[i])]
        if not shown:
            continue
        axes.add_collection(LineCollection(shown, linewidths=0.9, alpha=alpha, zorder=2 + 0.1 * rank, **look))
        ends = np.stack([path[-1] for path in shown])
        axes.scatter(*ends.T, s=13, color=look["colors"], alpha=min(1, 2 * alpha), linewidths=0, zorder=2.4 + 0.1 * rank)
        handles.append(_line(color=look["colors"], ls=look.get("linestyles", "-"), lw=1.6, label=look["label"]))
    best = paths[winner]
    axes.plot(*best.T, color=PALETTE[0], lw=2.6, zorder=3)
    axes.scatter(*best[-1], s=55, color=PALETTE[0], edgecolors="white", linewidths=1, zorder=4)
    handles.insert(0, _line(color=PALETTE[0], lw=2.6, label="the winner"))
    _counting_scale(axes, max(path[-1, 0] for path in paths if len(path)))
    # From where half of the sound restarts begin, or from the lowest end: the first steps of poor starts lie far below.
    sound = [paths[i] for i in np.flatnonzero(regular) if len(paths[i])] or [best]
    least = min(np.median([path[0, 1] for path in sound]), min(path[-1, 1] for path in sound))
    span = max(best[-1, 1] - least, 1e-6 * (1 + abs(best[-1, 1])))
    axes.set_ylim(least - 0.08 * span, best[-1, 1] + 0.08 * span)
    cut = (
        ""
        if all(path[0, 0] == 1 for path in paths if len(path))
        else f", the last {result.restarts.history.shape[1]:,} of each"
    )
    axes.set(xlabel=f"evaluations of the objective{cut}", ylabel="objective")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_title("Paths of the restarts")
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4, columnspacing=1.2, handlelength=1.6,
        handletextpad=0.5, fontsize=9.5,
    )  # fmt: skip


def _line(**look: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **look)


def _paths(result: Result) -> list[np.ndarray]:
    """Of each restart the (steps, 2) pairs of evaluation, from 1, and objective; empty where its start was no good."""
    restarts = result.restarts
    # A step that went wrong is counted, and its objective not stored.
    wrong = np.isin(np.asarray(restarts.status), [Status.DECREASED, Status.NONFINITE])
    paths = []
    for row, last, undone in zip(np.asarray(restarts.history), np.asarray(restarts.n_steps), wrong, strict=True):
        kept = min(int(last) + 1, len(row))
        path = np.stack([np.arange(last + 2 - kept, last + 2), row[:kept]], 1)[: kept - undone]
        paths.append(path[np.isfinite(path[:, 1])])
    return paths


def _counting_scale(axes: Any, highest: float) -> None:
    """A logarithmic axis of plain numbers from 1 to `highest`."""
    ticker = require_matplotlib().ticker
    axes.set_xscale("log")
    axes.set_xlim(0.85, 1.3 * max(highest, 2))
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0,) if highest > 100 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def finals(axes: Any, result: Result) -> None:
    """Final log-likelihoods of all restarts, best first."""
    regular = _ended_well(result)
    loglik, near = np.asarray(result.restarts.loglik)[regular], _near_best(result)[regular]
    order = np.argsort(-loglik, kind="stable")
    loglik, near = loglik[order], near[order]
    best = float(result.loglik)
    rank = np.arange(1, len(loglik) + 1)
    size = np.clip(2000 / max(len(rank), 1), 4, 30)
    axes.scatter(rank[near], loglik[near], s=size, color=PALETTE[0], zorder=3)
    axes.scatter(rank[~near], loglik[~near], s=size, color=PALETTE[1], zorder=3)
    if near.all():
        axes.set_ylim(best - 1, best + 1)
    failed = int((~regular).sum())
    axes.set(xlabel=f"restart, best first{f' ({failed} failed)' if failed else ''}", ylabel="final log-likelihood")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_major_locator(require_matplotlib().ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_title(f"{near.sum()} of {regular.size} at the best")


def _ended_well(result: Result) -> np.ndarray:
    """(R,) which restarts ended as they should; where none did, all of them."""
    regular = np.isin(np.asarray(result.restarts.status), [Status.CONVERGED, Status.MAX_STEPS])
    return regular if regular.any() else np.isfinite(np.asarray(result.restarts.objective))


def _near_best(result: Result) -> np.ndarray:
    """(R,) which restarts reached the winner's log-likelihood."""
    best = float(result.loglik)
    return best - np.asarray(result.restarts.loglik) <= 1e-6 * (1 + abs(best))


def _winner(result: Result) -> int:
    """The restart whose parameters the result holds, or one that went the same way."""
    restarts = result.restarts
    same = (np.asarray(restarts.n_steps) == int(result.n_steps)) & (np.asarray(restarts.status) == int(result.status))
    gap = np.abs(np.asarray(restarts.objective) - float(result.objective))
    return int(np.argmin(np.where(same & np.isfinite(gap), gap, np.inf)))


# --- chains ----------------------------------------------------------------------------------
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
        handles = [_line(color=c, lw=8, alpha=0.35, label=name) for c, name in zip(hue, labels, strict=True)]
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
