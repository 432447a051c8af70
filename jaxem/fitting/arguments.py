"""Arguments that `fit`, `fit_stream` and `plan` share: made a task in one place, described in one place."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jax import Array
from jax.sharding import Mesh

from jaxem.data.validation import check_positive_int
from jaxem.engine.em import EM
from jaxem.engine.mesh import mesh_of
from jaxem.engine.problem import Algorithm
from jaxem.engine.regularizer import regularizer
from jaxem.engine.restarts import Rounds
from jaxem.engine.stop import Stop, StopRule, one_rule
from jaxem.fitting.checks import check_algorithm, check_init, check_key, check_model
from jaxem.fitting.task import Options, Task
from jaxem.model import Model
from jaxem.pytree import PyTree
from jaxem.types import Params, Result


def task_of(
    model: Model,
    data: PyTree,
    *,
    key: Array | None = None,
    init: Any = None,
    n_restarts: int = 1,
    weight: Any = None,
    labels: Any = None,
    algorithm: Algorithm = EM(),  # noqa: B008
    stop: StopRule | Sequence[StopRule] = Stop(),  # noqa: B008
    max_steps: int | Array = 10_000,
    block_size: int | None = None,
    rounds: Rounds | None = None,
    penalty: Any = None,
    log_prior: Callable[[Params], Array] | None = None,
    frozen: Any = None,
    tied: Any = None,
    standardize: bool = True,
    unroll: int | None = None,
    mesh: Mesh | None = None,
    guard: bool = False,
) -> Task:
    """The arguments of `jaxem.fit` in one piece, checked as far as they can be before the data are looked at."""
    check_model(model)
    check_init(model, init)
    check_algorithm(algorithm)
    n_restarts = check_positive_int(n_restarts, "n_restarts")
    block_size = None if block_size is None else check_positive_int(block_size, "block_size")
    stop = one_rule(stop)
    init = init.params if isinstance(init, Result) else init
    check_key(model, init, key)
    restrained = regularizer(penalty, log_prior, frozen, tied)
    options = Options(
        n_restarts=n_restarts,
        block_size=block_size,
        rounds=rounds,
        regularizer=restrained,
        unroll=None if unroll is None else check_positive_int(unroll, "unroll", 0),
        mesh=mesh_of(mesh, data),
    )
    return Task(
        model=model,
        data=data,
        weight=weight,
        labels=labels,
        init=init,
        key=key,
        algorithm=algorithm,
        stop=stop,
        max_steps=max_steps,
        options=options,
        # A prior or penalty that is a function of the user's parameters must see them as they are.
        standardize=standardize and not restrained.in_users_units and model.log_prior is None,
        guard=guard,
    )


_Function = TypeVar("_Function", bound=Callable[..., Any])


def described_by(source: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """Where a docstring says of an argument "as in `source`." it comes to say what the docstring of `source` does."""
    section = inspect.cleandoc(source.__doc__ or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    texts = {match[1]: match[0] for match in re.finditer(r"^    (\w+): .*(?:\n     .*)*", section, re.M)}
    reference = re.compile(rf"^    (\w+): as in `{source.__name__}`\.$", re.M)

    def described(function: _Function) -> _Function:
        if function.__doc__:  # python -OO leaves none
            function.__doc__ = reference.sub(lambda match: texts[match[1]], inspect.cleandoc(function.__doc__))
        return function

    return described
