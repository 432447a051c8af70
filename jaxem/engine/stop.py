"""When a restart stops: each criterion on one full EM map, and the guards against silent trouble."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_tolerance
from jaxem.model import undefined
from jaxem.numerics.trees import all_finite
from jaxem.pytree import PyTree, check_struct, struct
from jaxem.types import Params, Status, StopReason


@struct
class Step:
    """One move of one restart, as a stopping rule sees it.

    Attributes:
        old_params: parameters before.
        params: parameters after.
        old_objective: objective before, up to a constant.
        objective: objective after, up to the same constant.
        magnitude: objective after in the data's own units, for tolerances that are relative.
        constraints: prefix tree of the parameters' constraints; frozen leaves are fixed.
        trial: whether this is the jump of an accelerator. On a jump no restart stops: that it is small makes the
            accelerator take an EM map, on which the rule is asked again.
        memory: what the rule remembers.
    """

    old_params: Params
    params: Params
    old_objective: Array
    objective: Array
    magnitude: Array
    constraints: PyTree
    trial: Array
    memory: PyTree


class StopRule:
    """When a restart stops. Subclasses are frozen dataclasses made pytrees by `jaxem.struct`; numbers in them are leaves.

    A rule gives `reason`, for one restart at a time, in what jit and vmap can trace. One that looks back further than
    the last move gives `begin` and `remember` too: each restart carries that memory, and checkpoints hold it.
    """

    def check(self) -> None:
        """Raise ValueError for settings that no fit could use; called once, before anything is compiled."""

    def begin(self, params: Params, objective: Array) -> PyTree:
        """What to remember before the first move: arrays in the shapes and dtypes of what `remember` gives.

        Args:
            params: of the start.
            objective: a scalar in the dtype of the objective, -inf since nothing has been evaluated.
        """
        del params, objective
        return ()

    def reason(self, step: Step) -> Array:
        """Whether to stop after `step`: a bool, reported as `StopReason.RULE`, or an int32 `StopReason`."""
        raise undefined(self, "reason")

    def remember(self, step: Step) -> PyTree:
        """What to remember after `step`; asked for moves that the restart made, jumps among them."""
        return step.memory


@struct
class Stop(StopRule):
    """Stopping criteria; None or 0 never fires. They are numbers: changing one compiles nothing again.

    A log-likelihood tolerance does not certify parameters: EM may creep. Set `param_rtol` where they matter.

    Attributes:
        loglik_rtol: stops when |change of the objective| <= loglik_rtol * (1 + |objective|). Never tighter
            than four times the rounding unit of the data's dtype.
        loglik_atol: stops when |change of the objective| <= loglik_atol.
        param_rtol: stops when max |change of a parameter| / (1 + |parameter|) <= param_rtol, in the
            coordinates of the computation (standardized data for Gaussian families).
        param_atol: stops when the Euclidean norm of the change of all parameters <= param_atol, in the same
            coordinates; of a simplex all entries but the last count, of a symmetric matrix the lower triangle.
    """

    loglik_rtol: float | Array | None = 1e-8
    loglik_atol: float | Array | None = None
    param_rtol: float | Array | None = None
    param_atol: float | Array | None = None

    def check(self) -> None:
        for field in dataclasses.fields(self):
            check_tolerance(getattr(self, field.name), f"stop.{field.name}")

    def reason(self, step: Step) -> Array:
        change = jnp.abs(step.objective - step.old_objective)
        eps = jnp.finfo(step.objective.dtype).eps
        fired = jnp.int32(StopReason.NONE)
        if self.param_rtol is not None:
            moved = [
                jnp.max(jnp.abs(n - o) / (1 + jnp.abs(o)), initial=0)
                for n, o in zip(jax.tree.leaves(step.params), jax.tree.leaves(step.old_params), strict=True)
            ]
            met = (jnp.stack(moved).max() <= self.param_rtol) & (self.param_rtol > 0)
            fired = jnp.where(met, jnp.int32(StopReason.PARAM_RTOL), fired)
        if self.param_atol is not None:
            new, old = (sets.to_affine(step.constraints, params) for params in (step.params, step.old_params))
            met = (optax.tree.norm(jax.tree.map(jnp.subtract, new, old)) <= self.param_atol) & (self.param_atol > 0)
            fired = jnp.where(met, jnp.int32(StopReason.PARAM_ATOL), fired)
        if self.loglik_atol is not None:
            met = (change <= self.loglik_atol) & (self.loglik_atol > 0)
            fired = jnp.where(met, jnp.int32(StopReason.LOGLIK_ATOL), fired)
        if self.loglik_rtol is not None:
            tolerance = jnp.maximum(self.loglik_rtol, 4 * eps)
            met = (change <= tolerance * (1 + jnp.abs(step.magnitude))) & (self.loglik_rtol > 0)
            fired = jnp.where(met, jnp.int32(StopReason.LOGLIK_RTOL), fired)
        return fired


@struct
class AnyOf(StopRule):
    """Several rules at once: the first of them that fires gives the reason."""

    rules: tuple[StopRule, ...]

    def check(self) -> None:
        for rule in self.rules:
            rule.check()

    def begin(self, params: Params, objective: Array) -> PyTree:
        return tuple(rule.begin(params, objective) for rule in self.rules)

    def reason(self, step: Step) -> Array:
        fired = jnp.int32(StopReason.NONE)
        for rule, own in self._each(step):
            fired = jnp.where(fired == StopReason.NONE, reason(rule, own), fired)
        return fired

    def remember(self, step: Step) -> PyTree:
        return tuple(rule.remember(own) for rule, own in self._each(step))

    def _each(self, step: Step) -> list[tuple[StopRule, Step]]:
        """Every rule with the step as it sees it, with its own memory."""
        pairs = zip(self.rules, step.memory, strict=True)
        return [(rule, dataclasses.replace(step, memory=memory)) for rule, memory in pairs]


def reason(rule: StopRule, step: Step) -> Array:
    """int32 `StopReason` of `rule`.

    Raises:
        TypeError: for a rule that gives neither one bool nor one integer.
    """
    found = jnp.asarray(rule.reason(step))
    if found.shape or not (found.dtype == bool or jnp.issubdtype(found.dtype, jnp.integer)):
        got = f"{found.dtype} of shape {found.shape}"
        raise TypeError(f"{type(rule).__name__}.reason must give one bool or one jaxem.StopReason; got {got}")
    if found.dtype == bool:
        return jnp.where(found, jnp.int32(StopReason.RULE), jnp.int32(StopReason.NONE))
    found = found.astype(jnp.int32)
    if isinstance(rule, Stop | AnyOf):
        return found
    return jnp.where((found < 0) | (found > max(StopReason)), jnp.int32(StopReason.RULE), found)


def first_memory(rule: StopRule, params: Params, objective: Array, constraints: PyTree) -> PyTree:
    """What `rule` remembers before the first move.

    Raises:
        TypeError: for a rule that later remembers something of another structure, shape or dtype.
    """
    memory = rule.begin(params, objective)
    for one, first in zip(rule.rules, memory, strict=True) if isinstance(rule, AnyOf) else [(rule, memory)]:
        if type(one).remember is StopRule.remember:
            continue

        def later(params: Params, objective: Array, memory: PyTree, one: StopRule = one) -> PyTree:
            step = Step(
                old_params=params, params=params, old_objective=objective, objective=objective, magnitude=objective,
                constraints=constraints, trial=objective > 0, memory=memory,
            )  # fmt: skip
            return one.remember(step)

        wanted, given = jax.eval_shape(lambda m: m, first), jax.eval_shape(later, params, objective, first)
        kinds = [jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree) for tree in (wanted, given)]
        if jax.tree.structure(wanted) != jax.tree.structure(given) or kinds[0] != kinds[1]:
            name = type(one).__name__
            raise TypeError(f"{name}.remember must give what {name}.begin gives, {kinds[0]}; got {kinds[1]}")
    return memory


def one_rule(stop: Any) -> StopRule:
    """A rule, or several, as one, its settings checked.

    Raises:
        TypeError: for what is no rule.
        ValueError: for settings that no fit could use.
    """
    rules = tuple(stop) if isinstance(stop, tuple | list) else (stop,)
    for rule in rules:
        if not isinstance(rule, StopRule):
            got = f"the class {rule.__name__}" if isinstance(rule, type) else type(rule).__name__
            hint = f"; for a tolerance give jaxem.Stop(loglik_rtol={rule})" if isinstance(rule, int | float) else ""
            raise TypeError(f"stop must be a jaxem.Stop or another jaxem.StopRule, or several of them; got {got}{hint}")
        check_struct(rule, "stop")
        rule.check()
    if not rules:
        raise ValueError("stop must hold a rule at least; got none")
    return rules[0] if len(rules) == 1 else AnyOf(rules)


def trouble(old: Array, new: Array, magnitude: Array, params: Params, total_weight: Array, rounding: int = 100) -> Array:
    """int32 `Status`: RUNNING, or what is wrong with a step from objective `old` to `new`.

    `rounding` is the number of rounding units by which it may fall.
    """
    slack = rounding * jnp.finfo(new.dtype).eps * (jnp.abs(magnitude) + total_weight)
    status = jnp.where(new < old - slack, jnp.int32(Status.DECREASED), jnp.int32(Status.RUNNING))
    finite = jnp.isfinite(new) & all_finite(params)
    return jnp.where(finite, status, jnp.int32(Status.NONFINITE))
