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

from jaxem.data.validation import check_positive_int, check_weight, is_traced
from jaxem.fitting.arguments import task_of
from jaxem.fitting.fit import fit
from jaxem.fitting.interrupts import Interrupts
from jaxem.model import Model
from jaxem.numerics.blocks import n_rows
from jaxem.pytree import PyTree
from jaxem.storage.checkpoint import Checkpoint, as_checkpoint
from jaxem.storage.fingerprint import fingerprint
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
        """The candidate of least score; a degenerate one only where there is no other."""
        return min(self.candidates, key=lambda c: (c.degenerate, c.score))

    def __str__(self) -> str:
        best = self.best
        lines = [f"{'log-likelihood':>16} {'parameters':>11} {self.criterion:>14}  status        model"]
        for c in self.candidates:
            loglik, status = (float("nan"), "FAILED") if c.result is None else (float(c.result.loglik), _status(c.result))
            mark = "*" if c is best else " "
            lines.append(f"{loglik:>16.4f} {c.n_free_params:>11d} {c.score:>14.4f}{mark} {status:<13} {_describe(c.model)}")
        return "\n".join(lines)


def select(
    models: Iterable[Model],
    data: PyTree,
    *,
    criterion: str | Callable[[Result, PyTree], Any] = "bic",
    workers: int = 1,
    on_fit: Callable[[Candidate], None] | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
    **options: Any,
) -> Selection:
    """Fit several models to the same data and choose one.

    Args:
        models: the models.
        data: the data.
        criterion: "aic", "bic", "icl", or a function (result, data) -> number, lower is better.
        workers: fits in flight at once. Models of different shapes compile separately: threads let one
            compile while another runs. With one worker an interrupt waits for what is being compiled.
        on_fit: called with each `Candidate` as soon as it is known; from another thread when workers > 1.
        checkpoint: as `fit` takes it; each model has a directory of its own in it. The same call made again goes on from
            there, whatever their order and whichever models were added.
        **options: of `jaxem.fit`: key, n_restarts, weight, stop, ...

    Returns:
        A `Selection`; `.best` is the chosen candidate. After an interrupt (SIGINT, Ctrl-C) it holds the models whose
        fits were finished: the others are left at once, though a thread may end what it compiles. With one worker it
        ends with a model whose time was up, or that its callback stopped.

    Raises:
        ValueError: for an unknown criterion, or no models.
        FitError: when every model failed.
        KeyboardInterrupt: after an interrupt before any fit was finished, or a second one.
    """
    models = list(models)
    if not models:
        raise ValueError("models must hold at least one model; got none")
    if isinstance(criterion, str) and criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)} or a function; got {criterion!r}")
    workers = check_positive_int(workers, "workers")
    score = _scorer(criterion, options.get("weight"))
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
            free = model.n_free_params(model.validate(data))
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
