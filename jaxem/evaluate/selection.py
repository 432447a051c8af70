"""Which model: information criteria of finished fits, and the choice among several models. Lower is better."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data.validation import check_positive_int, check_weight, is_traced
from jaxem.engine.restarts import tier
from jaxem.families.gaussian import Gaussian
from jaxem.fitting.arguments import task_of
from jaxem.fitting.fit import fit
from jaxem.model import Model
from jaxem.models.mixture import Mixture
from jaxem.numerics.blocks import n_rows
from jaxem.priors import NormalInverseWishart
from jaxem.pytree import PyTree
from jaxem.types import FitError, Result, Status


def aic(result: Result, data: PyTree) -> Array:
    """Akaike's information criterion, -2 log-likelihood + 2 * (number of free parameters).

    Args:
        result: a finished fit.
        data: what it was fitted to; only its shapes are read.

    Returns:
        A scalar, or one for each fit of a batched result. Lower is better.
    """
    return -2 * result.loglik + 2 * result.model.n_free_params(_valid(result.model, data))


def bic(result: Result, data: PyTree, *, weight: Any = None, n_data: float | None = None) -> Array:
    """Bayesian information criterion (Schwarz 1978), -2 log-likelihood + log(N) * (number of free parameters).

    Args:
        result: a finished fit.
        data: what it was fitted to; only its shapes are read.
        weight: (N,) the weights that it was fitted with; N is then their sum. Sequences count as many times as they
            have observed steps.
        n_data: N itself, for those who count otherwise: the number of sequences, say.

    Returns:
        A scalar, or one for each fit of a batched result. Lower is better.
    """
    data = _valid(result.model, data)
    if n_data is None:
        weight = jnp.ones(n_rows(data)) if weight is None else _checked(weight, n_rows(data))
        n_data = (weight * result.model.n_observations(data)).sum()
    return -2 * result.loglik + jnp.log(jnp.asarray(n_data, result.loglik.dtype)) * result.model.n_free_params(data)


def icl(result: Result, data: PyTree, *, weight: Any = None) -> Array:
    """Integrated completed likelihood (Biernacki, Celeux and Govaert 2000): BIC of the data with each latent value at its mode.

    It is BIC - 2 sum_n log max_k p(k | x_n), so that overlapping components cost more than under BIC.

    Args:
        result: a finished fit of a model that has a `posterior` (N, K).
        data: what it was fitted to.
        weight: (N,) the weights that it was fitted with.

    Returns:
        A scalar. Lower is better.
    """
    posterior = result.model.posterior
    if posterior is None:
        raise TypeError(f"result must be of a model with a posterior; {type(result.model).__name__} has none")
    data = jax.tree.map(jnp.asarray, _valid(result.model, data))
    sure = jnp.log(posterior(result.params, data).max(-1))
    if weight is not None:
        weight = jnp.asarray(_checked(weight, n_rows(data)), sure.dtype)
        sure = weight * jnp.where(weight > 0, sure, 0)  # an absent row may hold NaN
    return bic(result, data, weight=weight) - 2 * sure.sum()


#: Options of `fit` that make its task; the others watch it.
TASK_OPTIONS = inspect.signature(task_of).parameters.keys()

CRITERIA: dict[str, Callable[[Result, PyTree], Array]] = {"aic": aic, "bic": bic, "icl": icl}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One model of a selection.

    Attributes:
        model: the model.
        result: its fit, or None where every restart failed.
        n_free_params: number of its free parameters.
        score: the criterion; infinite where every restart failed.
    """

    model: Model
    result: Result | None
    n_free_params: int
    score: float

    @property
    def degenerate(self) -> bool:
        """Whether even the best restart ended with a component at its floor, so that its likelihood means nothing."""
        return self.result is None or int(self.result.status) == Status.DEGENERATE

    @property
    def spurious(self) -> bool:
        """Whether no restart was left but those in which a component owes its likelihood to chance: see `select`."""
        if self.result is None or self.result.restarts.spurious is None:
            return False
        restarts = self.result.restarts
        return bool(restarts.spurious[tier(restarts.status) == tier(self.result.status)].all())


@dataclasses.dataclass(frozen=True)
class Selection:
    """Fits of several models, in the order given.

    Attributes:
        candidates: one for each model.
        criterion: name of the criterion.
    """

    candidates: tuple[Candidate, ...]
    criterion: str

    @property
    def best(self) -> Candidate:
        """The candidate of least score; a degenerate or a spurious one only where there is no other."""
        return min(self.candidates, key=lambda c: (c.degenerate, c.spurious, c.score))

    def __str__(self) -> str:
        best = self.best
        lines = [f"{'log-likelihood':>16} {'parameters':>11} {self.criterion:>14}  status        model"]
        for c in self.candidates:
            loglik, status = (float("nan"), "FAILED") if c.result is None else (float(c.result.loglik), _status(c.result))
            mark = "*" if c is best else " "
            lines.append(f"{loglik:>16.4f} {c.n_free_params:>11d} {c.score:>14.4f}{mark} {status:<13} {_describe(c.model)}")
            lines += [f"{'':>46} {said}" for said in _passed_over(c)]
        return "\n".join(lines)


def select(
    models: Iterable[Model],
    data: PyTree,
    *,
    criterion: str | Callable[[Result, PyTree], Any] = "bic",
    workers: int = 1,
    on_fit: Callable[[Candidate], None] | None = None,
    prior: str | None = None,
    **options: Any,
) -> Selection:
    """Fit several models to the same data and choose one.

    More restarts find more maxima that chance made: a few rows that lie nearly on a line. A restart is passed over in
    which a component has fewer rows than parameters of its place and spread need, or is much thinner than the components
    are on average and has not many rows (`SPURIOUS` of `jaxem.families.base`); `guard=False` lets it win.

    Args:
        models: the models.
        data: the data.
        criterion: "aic", "bic", "icl", or a function (result, data) -> number, lower is better.
        workers: fits in flight at once. Models of different shapes compile separately: threads let one
            compile while another runs.
        on_fit: called with each `Candidate` as soon as it is known; from another thread when workers > 1.
        prior: "mclust" gives mixtures of Gaussians without one `NormalInverseWishart.mclust` of the data. None: as they are.
        **options: of `jaxem.fit`: key, n_restarts, weight, stop, ...

    Returns:
        A `Selection`; `.best` is the chosen candidate. After an interrupt it ends with the model that was
        interrupted.

    Raises:
        ValueError: for an unknown criterion or prior, a model that it is not for, or no models.
        FitError: when every model failed.
    """
    models = list(models)
    if not models:
        raise ValueError("models must hold at least one model; got none")
    if isinstance(criterion, str) and criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)} or a function; got {criterion!r}")
    if prior is not None:
        models = [_with_prior(prior, model, data) for model in models]
    workers = min(check_positive_int(workers, "workers"), len(models))
    score = _scorer(criterion, options.get("weight"))
    options = {"guard": True, **options}
    for model in models:  # what is wrong with any of them is said before the first is fitted
        task_of(model, data, **{name: options[name] for name in TASK_OPTIONS & options.keys()})

    def one(model: Model) -> Candidate:
        try:
            result = fit(model, data, **options)
        except FitError:
            result = None
        free = model.n_free_params(model.validate(data))
        candidate = Candidate(model, result, free, float("inf") if result is None else float(score(result, data)))
        if on_fit is not None:
            on_fit(candidate)
        return candidate

    if workers == 1:
        fitted = []
        for model in models:
            fitted.append(one(model))
            if _interrupted(fitted[-1]):
                break
        candidates = tuple(fitted)
    else:
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(one, model) for model in models]
            try:
                candidates = tuple(future.result() for future in futures)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if all(c.result is None for c in candidates):
        raise FitError(f"every restart of all {len(candidates)} models failed")
    return Selection(candidates, criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "score"))


def _with_prior(prior: str, model: Model, data: PyTree) -> Model:
    if prior != "mclust":
        raise ValueError(f"prior must be None or 'mclust'; got {prior!r}")
    family = getattr(model, "family", None)
    if not (isinstance(model, Mixture) and isinstance(family, Gaussian) and family.missing is None):
        raise ValueError(f"prior='mclust' is for mixtures of Gaussians without missing entries; got {_describe(model)}")
    if family.prior is not None:
        return model
    given = NormalInverseWishart.mclust(model.validate(data), model.n_components, family.covariance)
    return dataclasses.replace(model, family=dataclasses.replace(family, prior=given))


def _interrupted(candidate: Candidate) -> bool:
    return candidate.result is not None and bool((candidate.result.restarts.status == Status.INTERRUPTED).any())


def _scorer(criterion: str | Callable[[Result, PyTree], Any], weight: Any) -> Callable[[Result, PyTree], Any]:
    if not isinstance(criterion, str):
        return criterion
    if criterion == "aic":
        return aic
    return lambda result, data: CRITERIA[criterion](result, data, weight=weight)  # type: ignore[call-arg]


def _valid(model: Model, data: PyTree) -> PyTree:
    return data if is_traced(data) else model.validate(data)


def _checked(weight: Any, n: int) -> Any:
    return weight if is_traced(weight) else check_weight(weight, n).astype(np.float64)


def _passed_over(candidate: Candidate) -> list[str]:
    """The line that tells of restarts with spurious components, where there are any."""
    restarts = None if candidate.result is None else candidate.result.restarts
    if restarts is None or restarts.spurious is None or not restarts.spurious.any():
        return []
    count, of = int(restarts.spurious.sum()), restarts.spurious.size
    return [f"{count} of {of} restarts{'' if candidate.spurious else ' passed over'}: a component on too few rows, or too thin"]


def _status(result: Result) -> str:
    return Status(int(result.status)).name


def _describe(model: Any) -> str:
    """The settings that are not at their defaults, arrays left out."""
    parts = []
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if dataclasses.is_dataclass(value):
            parts.append(f"{field.name}={_describe(value)}")
        elif isinstance(value, int | float | str) and value != field.default:
            parts.append(f"{field.name}={value!r}")
    return f"{type(model).__name__}({', '.join(parts)})"
