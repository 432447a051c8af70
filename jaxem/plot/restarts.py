"""How the restarts of a fit went: their paths, and where they ended."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxem.plot.style import PALETTE, line, require_matplotlib
from jaxem.types import Result, Status


def trace(axes: Any, result: Result) -> None:
    """The objective of every restart step by step; of a run of more than 1,000 steps, the last 1,000."""
    from matplotlib.collections import LineCollection

    winner, regular, near = winning_restart(result), _ended_well(result), _near_best(result)
    paths = paths_of(result)
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
        handles.append(line(color=look["colors"], ls=look.get("linestyles", "-"), lw=1.6, label=look["label"]))
    best = paths[winner]
    axes.plot(*best.T, color=PALETTE[0], lw=2.6, zorder=3)
    axes.scatter(*best[-1], s=55, color=PALETTE[0], edgecolors="white", linewidths=1, zorder=4)
    handles.insert(0, line(color=PALETTE[0], lw=2.6, label="the winner"))
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


def paths_of(result: Result) -> list[np.ndarray]:
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


def winning_restart(result: Result) -> int:
    """The restart whose parameters the result holds, or one that went the same way."""
    restarts = result.restarts
    same = (np.asarray(restarts.n_steps) == int(result.n_steps)) & (np.asarray(restarts.status) == int(result.status))
    gap = np.abs(np.asarray(restarts.objective) - float(result.objective))
    return int(np.argmin(np.where(same & np.isfinite(gap), gap, np.inf)))
