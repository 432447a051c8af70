"""What a fit returns, and the words for how it ended.

Axis letters, used in every docstring: N data, D features, K components or states, R restarts,
T time, B sequences, V vocabulary or categories.
"""

from __future__ import annotations

import enum
from typing import Any

import jax
import jax.core
import numpy as np
from jax import Array

from jaxem.pytree import PyTree, aside, static, struct

Params = Any


class Status(enum.IntEnum):
    """How a restart stands: an int32 in every restart, never a bool."""

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    NONFINITE = 3
    DEGENERATE = 4
    DECREASED = 5
    INTERRUPTED = 6


#: How badly a status ends; those that are not here end alike, and the objective decides among them.
TIERS = {Status.DECREASED: 1, Status.DEGENERATE: 2, Status.NONFINITE: 3}


class StopReason(enum.IntEnum):
    """Which stopping criterion fired."""

    NONE = 0
    LOGLIK_RTOL = 1
    LOGLIK_ATOL = 2
    PARAM_RTOL = 3
    PARAM_ATOL = 4
    RULE = 5


@struct
class Rows:
    """What belongs to single data rather than to the model; every leaf leads with n.

    Attributes:
        local: variational or per-datum parameters, from `Model.local`.
        scores: local scores, from `Model.scores`.
        labels: (n,) int, the known latent value or -1; for responsibilities given as labels, (n, K) floats.
        hard: whether discrete latent values are to be maximised over instead of summed out: hand it to `jaxem.latents`.
    """

    local: PyTree = None
    scores: PyTree = None
    labels: Array | None = None
    hard: bool = static(default=False)


@struct
class Moments:
    """What the data say of a continuous latent variable of each datum.

    Attributes:
        mean: (N,) posterior mean.
        variance: (N,) posterior variance.
    """

    mean: Array
    variance: Array


class FitError(RuntimeError):
    """Every restart of a fit failed; the message counts them by status."""


#: Projected gain beyond which a fit has crept rather than converged: worth a twentieth of a standard error.
MUCH = 0.00125

#: What it means that even the best restart ended so.
ENDINGS = {
    Status.RUNNING: "the fit goes on",
    Status.MAX_STEPS: "no stopping criterion was met in max_steps; raise it",
    Status.NONFINITE: "the objective became infinite or NaN; these are the last parameters before",
    Status.DEGENERATE: "a component collapsed to its floor, or to what the data's dtype cannot hold in their units, in this"
    " restart as in all others: its likelihood means nothing",
    Status.DECREASED: "the objective fell by more than rounding explains; these are the last parameters before",
    Status.INTERRUPTED: "the fit was stopped from outside before a criterion was met",
}


def limits(model: Any, params: Params) -> list[str]:
    """Names of the leaves that lie at a limit of the model (see `Model.at_limit`), with how many of their entries do."""
    out = []
    for path, at in jax.tree_util.tree_leaves_with_path(model.at_limit(params)):
        if n := int(np.sum(np.asarray(at))):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            out.append(f"{name} ({n} of {np.size(at)})" if np.size(at) > 1 else name)
    return out


@struct
class Restarts:
    """What became of every restart; each field (R,), `history` (R, steps): see `Result.history`.

    `spurious` tells which have a component that owes its likelihood to chance; None where nobody asked (`fit(guard=True)`).
    """

    loglik: Array
    objective: Array
    status: Array
    n_steps: Array
    history: Array
    spurious: Array | None = None


@struct
class Result:
    """A finished fit: the winning restart, and a line about each of the others.

    Attributes:
        params: parameters of the winning restart.
        local: its per-datum parameters, or None; leads with N.
        loglik: log-likelihood (or bound) at `params`, in the data's own units.
        objective: log-likelihood + log-prior - penalty: what rose and what stopped.
        status: int32 `Status`.
        stop: int32 `StopReason`.
        n_steps: EM maps evaluated by the winning restart.
        history: its last objective values, oldest first; -inf beyond the steps taken.
        restarts: all restarts.
        model: the fitted model.
        to_gain: what the log-likelihood is projected to rise still, in units of a datum's weight; NaN where the stopping
            rule does not say.
        restrained: dotted names of the leaves that did not move by themselves: frozen, or tied to another.
        provenance: how it was made, by a plain call: "versions", "backend", "dtype", "layout" and the like, and as
            "options" the arguments that were not at their defaults. `fit(model, data, **provenance["options"])` gives the
            same bits on the same machine. None inside jit, and after it.
    """

    params: Params
    local: PyTree
    loglik: Array
    objective: Array
    status: Array
    stop: Array
    n_steps: Array
    history: Array
    restarts: Restarts
    model: Any
    to_gain: Array | float = np.nan
    restrained: tuple[str, ...] = static(default=())
    provenance: dict[str, Any] | None = aside(default=None)

    @property
    def converged(self) -> Array:
        """Whether the winning restart met a stopping criterion and is no failure."""
        return self.status == Status.CONVERGED

    @property
    def params_converged(self) -> Array:
        """Whether the winning restart stopped on its parameters, as gradients through the fit need it."""
        on_params = (self.stop == StopReason.PARAM_RTOL) | (self.stop == StopReason.PARAM_ATOL)
        return self.converged & on_params

    @property
    def stop_reason(self) -> str:
        """Name of the criterion that fired, in lower case; 'none' where none did. For one concrete fit."""
        return StopReason(int(self.stop)).name.lower()

    @property
    def ending(self) -> str:
        """What it means that the winning restart did not converge, or crept, in a line; else empty. For one concrete fit."""
        status = Status(int(self.status))
        gain = float(self.to_gain)
        if status == Status.CONVERGED and gain > MUCH:
            left = f"{gain:.2g} to gain, {np.sqrt(2 * gain):.2g} standard errors in the slowest direction"
            return f"at a plateau: the objective hardly changes any more, yet has about {left}; set param_rtol, or use float64"
        return f"{status.name}: {ENDINGS[status]}" if status in ENDINGS else ""

    def _limits(self) -> str:
        """Which leaves lie at a limit of the model, in a line; empty where none does."""
        sound = int(self.status) not in (Status.DEGENERATE, Status.NONFINITE)
        found = limits(self.model, self.params) if sound else []
        return f"at a limit, which is no trouble: {', '.join(found)}" if found else ""

    def __str__(self) -> str:
        if isinstance(self.loglik, jax.core.Tracer) or np.ndim(self.loglik):
            return repr(self)
        counts = {s.name: int(np.sum(np.asarray(self.restarts.status) == s)) for s in Status}
        restarts = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
        told = [text for text in (self.ending, self._limits()) if text]
        lines = [
            f"{type(self.model).__name__}: {Status(int(self.status)).name} after {int(self.n_steps)} steps"
            f" (stopped by {self.stop_reason})",
            f"log-likelihood {float(self.loglik):.6f}   objective {float(self.objective):.6f}",
            f"restarts: {restarts}",
            *told,
        ]
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            text = np.array2string(np.asarray(leaf), precision=4, suppress_small=True, threshold=40)
            lines.append(f"{jax.tree_util.keystr(path, simple=True, separator='.')}: " + text.replace("\n", "\n  "))
        return "\n".join(lines)
