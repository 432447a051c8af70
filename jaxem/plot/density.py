"""A fitted mixture over its data: densities of one column, clouds of several, profiles of categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxem.families.base import Family
from jaxem.families.bernoulli import Bernoulli
from jaxem.families.categorical import Categorical
from jaxem.families.gaussian import Gaussian, covariance_matrices
from jaxem.models.mixture import Mixture
from jaxem.plot.style import INK, colors, line
from jaxem.types import Result


def drawable(model: Any, data: Any) -> bool:
    """Whether `mixture` draws it: a mixture, and data that are one array (N,) or (N, D), not all of whose rows have gaps."""
    if not isinstance(model, Mixture):
        return False
    valid = model.validate(data)
    return isinstance(valid, np.ndarray | jax.Array) and valid.ndim <= 2 and bool(_complete(np.asarray(valid)).any())


def _complete(data: np.ndarray) -> np.ndarray:
    """(N,) which rows have no gap."""
    return np.asarray(np.isfinite(data.reshape(len(data), -1)).all(1))


def mixture(axes: Any, data: Any, result: Result, labels: Sequence[str] = ()) -> None:
    """Data coloured by responsibility, and the components; of Gaussians with the 1- and 2-sigma ellipse of each.

    One column is drawn as a histogram under the densities, more than two on their principal axes, without the rows that
    have gaps; of categories the shares in each component.

    Args:
        axes: Matplotlib axes.
        data: (N,) or (N, D), what was fitted.
        result: a fit of a `jaxem.Mixture`.
        labels: D axis labels, with units.

    Raises:
        TypeError: for another model, or data that are no array.
    """
    model = result.model
    if not drawable(model, data):
        raise TypeError(f"result must be of a Mixture over an array of data; got a {type(model).__name__}")
    data = np.asarray(model.validate(data))
    labels = list(labels) or [f"column {j + 1}" for j in range(data[0].size)]
    hue = np.array(colors(model.n_components))
    if isinstance(model.family, Bernoulli | Categorical):
        _profile(axes, result, hue, labels)
    else:
        data = data[_complete(data)]
        draw = _densities if data[0].size == 1 else _scatter
        draw(axes, data, result, hue, labels)
    n = model.n_components
    axes.set_title(f"{n} component{'s' if n > 1 else ''}, {_kind(model.family, n)}")


def _kind(family: Family, n: int) -> str:
    if not isinstance(family, Gaussian):
        return type(family).__name__
    return f"{family.covariance} covariance{'' if family.covariance == 'tied' or n == 1 else 's'}"


# --- several columns -------------------------------------------------------------------------
def _scatter(axes: Any, data: np.ndarray, result: Result, hue: np.ndarray, labels: list[str]) -> None:
    components, family = result.params["components"], result.model.family
    responsibilities = np.asarray(result.model.posterior(result.params, data))
    gaussian = isinstance(family, Gaussian)
    if gaussian:
        means, covariances = np.asarray(components["mean"]), covariance_matrices(components, family.covariance)
    else:
        means = responsibilities.T @ data / np.maximum(responsibilities.sum(0), 1e-300)[:, None]
        covariances = np.zeros((len(means), data.shape[1], data.shape[1]))
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
    for k, mean in enumerate(means):
        for sigma, width, style in ((1, 1.8, "-"), (2, 1.3, (0, (4, 2.5)))) if gaussian else ():
            axes.plot(*_ellipse(mean, covariances[k], sigma), color=0.8 * hue[k], lw=width, ls=style, zorder=3)
        axes.scatter(*mean, marker="X", s=95, color=0.8 * hue[k], edgecolors="white", linewidths=1.2, zorder=4)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.margins(0.06)
    _legend(axes, result, hue, f"crosses: means{', ellipses at 1 and 2 standard deviations' if gaussian else ''}")


def _ellipse(mean: np.ndarray, covariance: np.ndarray, sigma: float) -> np.ndarray:
    """(2, 200) points at Mahalanobis distance `sigma`."""
    values, vectors = np.linalg.eigh(covariance)
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    return mean[:, None] + sigma * vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * circle)


# --- one column ------------------------------------------------------------------------------
def _densities(axes: Any, data: np.ndarray, result: Result, hue: np.ndarray, labels: list[str]) -> None:
    """A histogram under p(x, k); of whole numbers under probabilities."""
    x, family = data.reshape(-1), result.model.family
    low, high = x.min(), x.max()
    spread = high - low or 1.0
    # A family of counts takes no halves, and one of positive numbers no margin that reaches below zero.
    counts = not _takes(family, data + 0.5)
    margin = 0 if counts or not _takes(family, data - 0.08 * spread) else 0.08 * spread
    at = np.linspace(low - margin, high + margin, 800)
    bins: Any = int(np.clip(1.5 * np.sqrt(len(x)), 8, 60))
    look: dict[str, Any] = {"lw": 1.8}
    if counts:
        at = np.unique(np.round(at))
        width = int(np.ceil((spread + 1) / 60))
        bins = np.arange(low, high + width + 1, width) - 0.5
        look |= {"marker": "o", "ms": 4.5} if len(at) <= 60 else {}
    density = _joint(result, at.reshape(-1, *data.shape[1:]).astype(data.dtype))
    axes.hist(x, bins=bins, density=True, color="#dddddd", edgecolor="white")
    for k, row in enumerate(density):
        axes.fill_between(at, row, color=hue[k], alpha=0.18, lw=0)
        axes.plot(at, row, color=0.8 * hue[k], **look)
    axes.plot(at, density.sum(0), color=INK, lw=1.6, ls=(0, (4, 2.5)))
    axes.set(xlabel=labels[0], ylabel="probability" if counts else "density")
    _legend(axes, result, hue, "dashed: the mixture")


def _joint(result: Result, data: np.ndarray) -> np.ndarray:
    """(K, N) p(x_n, k)."""
    model = result.model.exact(result.params)
    packed = model.pack(model.natural(result.params))
    return np.exp(np.asarray(model.local_scores(packed, data, model.rows(result.params, data))))


def _takes(family: Family, data: np.ndarray) -> bool:
    try:
        family.validate(data)
    except ValueError:
        return False
    return True


# --- categories ------------------------------------------------------------------------------
def _profile(axes: Any, result: Result, hue: np.ndarray, labels: list[str]) -> None:
    """The share of each code of each column in each component, as a table of shades; of zeros and ones that of ones."""
    probs = np.asarray(result.params["components"]["probs"])
    k, d = len(probs), len(labels)
    shares = probs.reshape(k, -1)  # (K, D V); of Bernoulli (K, D)
    v = shares.shape[1] // d
    shade = 1 - shares[..., None] * (1 - hue[:, None])  # (K, D V, 3)
    dark = shade @ [0.3, 0.59, 0.11] < 0.5
    axes.imshow(shade, aspect="auto")
    if d * v <= 24:
        look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": min(9.5, 120 / (d * v))}
        for i, j in np.ndindex(shares.shape):
            axes.text(j, i, f"{shares[i, j]:.2f}", color="white" if dark[i, j] else INK, **look)
    for edge in np.arange(1, d) * v - 0.5:
        axes.axvline(edge, color="white", lw=5)
    axes.set_xticks(np.arange(d) * v + (v - 1) / 2, labels)
    if v > 1:
        axes.set_xticks(np.arange(d * v), [str(code) for code in range(v)] * d, minor=True)
        axes.xaxis.remove_overlapping_locs = False
        axes.tick_params(axis="x", which="major", length=0, pad=20)
    axes.set_yticks(range(k), [f"weight {w:.3f}" for w in np.asarray(result.params["weights"])])
    for tick, color in zip(axes.get_yticklabels(), 0.8 * hue, strict=True):
        tick.set_color(color)
    axes.set_xlabel("shade: the share of each code" if v > 1 else "shade: the share of ones")
    axes.grid(False)


def _legend(axes: Any, result: Result, hue: np.ndarray, title: str) -> None:
    weights = np.asarray(result.params["weights"])
    handles = [line(marker="o", ls="", color=hue[k], label=f"weight {w:.3f}") for k, w in enumerate(weights)]
    # Below the axes, where no datum can lie.
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=min(len(handles), 4), columnspacing=1.6,
        handletextpad=0.2, title=title, fontsize=9.5, title_fontsize=9.5,
    )  # fmt: skip
