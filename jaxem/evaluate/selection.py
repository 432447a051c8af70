"""Which model: information criteria of finished fits, and the choice among several models. Lower is better."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_positive_int, check_weight, is_traced
from jaxem.engine.restarts import tier
from jaxem.families.gaussian import Gaussian
from jaxem.fitting.arguments import task_of
from jaxem.fitting.fit import fit
from jaxem.fitting.interrupts import Interrupts
from jaxem.model import Model
from jaxem.models.mixture import Mixture
from jaxem.numerics.blocks import n_rows, replace_absent
from jaxem.numerics.leaves import leaf_names
from jaxem.priors import NormalInverseWishart
from jaxem.pytree import PyTree
from jaxem.storage.checkpoint import Checkpoint, as_checkpoint
from jaxem.storage.fingerprint import fingerprint
from jaxem.types import TIERS, FitError, Result, Status


def n_free_params(result: Result, data: PyTree) -> Any:
    """Number of parameters that were free in a fit: the model's, without frozen leaves, and one of those tied to each other.

    Where a model counts fewer parameters than its leaves have coordinates (a rotation of loadings, categories that no row
    holds), its largest leaf has fewer.

    Args:
        result: a finished fit.
        data: what it was fitted to, as `model.validate` leaves it.
    """
    model = result.model
    total = model.n_free_params(data)
    if not result.restrained:
        return total
    template = model.template(data)
    params = result.params if template is None else template
    full = sets.broadcast(model.constraints, params)
    free = lambda c, x: (~c.edge(jnp.asarray(x), jnp.zeros(jnp.shape(x), bool))).sum()  # noqa: E731
    sizes = jax.tree.leaves(jax.tree.map(free, full, params, is_leaf=lambda x: isinstance(x, sets.Real)))
    counts = jnp.stack(sizes)
    counts = counts.at[counts.argmax()].add(-jnp.maximum(counts.sum() - total, 0))
    kept = total - counts[np.isin(leaf_names(params), result.restrained)].sum()
    return kept if is_traced(kept) else int(kept)


def aic(result: Result, data: PyTree) -> Array:
    """Akaike's information criterion, -2 log-likelihood + 2 * (number of free parameters).

    Args:
        result: a finished fit; leaves that were frozen or tied do not count.
        data: what it was fitted to; its shapes, and the categories that occur.

    Returns:
        A scalar, or one for each fit of a batched result. Lower is better.
    """
    return -2 * result.loglik + 2 * n_free_params(result, _valid(result.model, data))


def bic(result: Result, data: PyTree, *, weight: Any = None, n_data: float | None = None) -> Array:
    """Bayesian information criterion (Schwarz 1978), -2 log-likelihood + log(N) * (number of free parameters).

    Args:
        result: a finished fit; leaves that were frozen or tied do not count.
        data: what it was fitted to; its shapes, and the categories that occur.
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
    return -2 * result.loglik + jnp.log(jnp.asarray(n_data, result.loglik.dtype)) * n_free_params(result, data)


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
    if weight is None:
        sure = jnp.log(posterior(result.params, data).max(-1)).sum()
    else:  # an absent row may hold NaN
        weight = jnp.asarray(_checked(weight, n_rows(data)), result.loglik.dtype)
        sure = (weight * jnp.log(posterior(result.params, replace_absent(data, weight)).max(-1))).sum()
    return bic(result, data, weight=weight) - 2 * sure


#: Options of `fit` that make its task; the others watch it.
TASK_OPTIONS = inspect.signature(task_of).parameters.keys()

CRITERIA: dict[str, Callable[[Result, PyTree], Array]] = {"aic": aic, "bic": bic, "icl": icl}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One model of a selection.

    Attributes:
        model: the model.
        result: its fit, or None where every restart failed.
        n_free_params: number of parameters that were free in it.
        score: the criterion; infinite where every restart failed.
    """

    model: Model
    result: Result | None
    n_free_params: int
    score: float

    @property
    def degenerate(self) -> bool:
        """Whether even the best restart ended with a component at its floor, so that its likelihood means nothing."""
        return self.tier >= TIERS[Status.DEGENERATE]

    @property
    def tier(self) -> int:
        """How badly even the best restart ended, as `jaxem.types.TIERS` has it."""
        return TIERS[Status.NONFINITE] if self.result is None else TIERS.get(Status(int(self.result.status)), 0)

    @property
    def spurious(self) -> bool:
        """Whether no restart was left but those in which a component owes its likelihood to chance: see `select`."""
        spurious = None if self.result is None else self.result.restarts.spurious
        if self.result is None or spurious is None:
            return False
        restarts = self.result.restarts
        return bool(spurious[tier(restarts.status) == tier(self.result.status)].all())


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
        """The candidate of least score among those that ended best; a spurious one only where there is no other."""
        return min(self.candidates, key=lambda c: (c.tier, c.spurious, c.score))

    def __str__(self) -> str:
        best = self.best
        lines = [f"{'log-likelihood':>16} {'parameters':>11} {self.criterion:>14}  status        model"]
        for c in self.candidates:
            loglik, status = (float("nan"), "FAILED") if c.result is None else (float(c.result.loglik), _status(c.result))
            mark = "*" if c is best else " "
            lines.append(f"{loglik:>16.4f} {c.n_free_params:>11d} {c.score:>14.4f}{mark} {status:<13} {_describe(c.model)}")
            lines += [f"{'':>46} {said}" for said in _passed_over(c)]
        if best.result is not None and (ending := best.result.ending):
            lines.append(f"chosen {ending}")
        return "\n".join(lines)


def select(
    models: Iterable[Model],
    data: PyTree,
    *,
    criterion: str | Callable[[Result, PyTree], Any] = "bic",
    workers: int = 1,
    on_fit: Callable[[Candidate], None] | None = None,
    prior: str | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
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
            compile while another runs. With one worker an interrupt waits for what is being compiled.
        on_fit: called with each `Candidate` as soon as it is known; from another thread when workers > 1.
        prior: "mclust" gives mixtures of Gaussians without one `NormalInverseWishart.mclust` of the data. None: as they are.
        checkpoint: as `fit` takes it; each model has a directory of its own in it. The same call made again goes on from
            there, whatever their order and whichever models were added.
        **options: of `jaxem.fit`: key, n_restarts, weight, stop, ...

    Returns:
        A `Selection`; `.best` is the chosen candidate. After an interrupt (SIGINT, Ctrl-C) it holds the models whose
        fits were finished: the others are left at once, though a thread may end what it compiles. With one worker it
        ends with a model whose time was up, or that its callback stopped.

    Raises:
        ValueError: for an unknown criterion or prior, a model that it is not for, or no models.
        FitError: when every model failed.
        KeyboardInterrupt: after an interrupt before any fit was finished, or a second one.
    """
    models = list(models)
    if not models:
        raise ValueError("models must hold at least one model; got none")
    if isinstance(criterion, str) and criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)} or a function; got {criterion!r}")
    if prior is not None:
        models = [_with_prior(prior, model, data) for model in models]
    workers = check_positive_int(workers, "workers")
    score = _scorer(criterion, options.get("weight"))
    options = {"guard": True, **options}
    for model in models:  # what is wrong with any of them is said before the first is fitted
        task_of(model, data, **{name: options[name] for name in TASK_OPTIONS & options.keys()})

    checkpoints = _checkpoints(checkpoint, models)
    x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]  # other threads do not know of it

    def one(i: int) -> Candidate | None:
        """None where an interrupt left the fit unfinished."""
        if interrupts.seen:
            return None
        model = models[i]
        with jax.enable_x64(x64):
            try:
                result = fit(model, data, checkpoint=checkpoints[i], **options)
            except FitError:
                result = None
            if interrupts.seen and _interrupted(result):
                return None
            valid = model.validate(data)
            free = model.n_free_params(valid) if result is None else n_free_params(result, valid)
            candidate = Candidate(model, result, free, float("inf") if result is None else float(score(result, data)))
        if on_fit is not None:
            on_fit(candidate)
        return candidate

    with Interrupts() as interrupts:
        if workers == 1:
            fitted = []
            for i in range(len(models)):
                fitted.append(one(i))
                if fitted[-1] is None or _interrupted(fitted[-1].result):  # by its time or its callback
                    break
        else:
            fitted = _in_threads(one, len(models), min(workers, len(models)), interrupts)
    candidates = tuple(candidate for candidate in fitted if candidate is not None)
    if not candidates:
        raise KeyboardInterrupt
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


def _in_threads(one: Callable[[int], Candidate | None], n: int, workers: int, interrupts: Interrupts) -> list[Candidate | None]:
    """`one` of 0, 1, ..., n - 1, so many at once; after an interrupt of those that are done within a second."""
    pool = ThreadPoolExecutor(workers)
    futures: list[Future[Candidate | None]] = [pool.submit(one, i) for i in range(n)]
    waiting = set(futures)
    try:
        while waiting and not interrupts.seen:  # not for long: a signal must find this thread awake
            done, waiting = wait(waiting, 0.1, FIRST_EXCEPTION)
            for future in done:
                future.result()  # raises what it raised
        if waiting:
            wait(waiting, 1.0)
        return [future.result() if future.done() and not future.cancelled() else None for future in futures]
    finally:
        pool.shutdown(wait=not interrupts.seen, cancel_futures=True)


def _checkpoints(checkpoint: Any, models: list[Model]) -> list[Checkpoint | None]:
    """One for each model, in a directory that is called after what the model is; equal models are told apart by number."""
    whole = as_checkpoint(checkpoint)
    if whole is None:
        return [None] * len(models)
    names = [f"{type(model).__name__}-{fingerprint(model)[:16]}" for model in models]
    places = [f"{name}-{names[:i].count(name)}" for i, name in enumerate(names)]
    return [dataclasses.replace(whole, directory=Path(whole.directory) / place) for place in places]


def _interrupted(result: Result | None) -> bool:
    return result is not None and bool((np.asarray(result.restarts.status) == Status.INTERRUPTED).any())


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
