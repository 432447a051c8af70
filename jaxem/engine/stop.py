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
from jaxem.numerics.logs import divided
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
        datum_weight: weight of a typical datum, in units of which a log-likelihood is one of so many data.
        constraints: prefix tree of the parameters' constraints; frozen leaves are fixed.
        trial: whether this is the jump of an accelerator. On a jump no restart stops: that it is small makes the
            accelerator take an EM map, on which the rule is asked again.
        memory: what the rule remembered before.
        remembered: what it remembers now, where it is asked for a `reason`.
    """

    old_params: Params
    params: Params
    old_objective: Array
    objective: Array
    magnitude: Array
    datum_weight: Array | float
    constraints: PyTree
    trial: Array
    memory: PyTree
    remembered: PyTree = None


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

    def as_asked(self) -> StopRule:
        """The rule as its user wrote it: what a checkpoint is of."""
        return self

    def to_gain_of(self, memory: PyTree) -> Array | float:
        """What the objective is projected to rise still after the last step, as far as `memory` tells: see `Result.to_gain`."""
        del memory
        return jnp.nan


#: Default tolerance of the objective, and what is left to gain where it decides.
RTOL, TO_GAIN = 1e-8, 2.5e-4
#: Rounding units of an objective below which its change says nothing.
ROUNDING = 4
#: No series is taken to be slower, so that its sum is finite.
SLOWEST = 0.999


@struct
class Creep:
    """What `Stop` remembers, to tell how much is still to be gained.

    Steps are measured by the sum of squares of |change| / (1 + |parameter|), to which the gain of a step is proportional
    in the end: unlike the objective they keep their digits in float32.

    Attributes:
        length: of the last EM map.
        n_steps: int32, moves made.
        met_at: int32, how many when a tolerance of the objective was met; 0: not yet.
        worth: the most that a unit of length may have gained then.
        to_gain: projected gain of all steps to come; infinite before one was met.
    """

    length: Array
    n_steps: Array
    met_at: Array
    worth: Array
    to_gain: Array


@struct
class Stop(StopRule):
    """Stopping criteria; None or 0 never fires. They are numbers: changing one compiles nothing again.

    A log-likelihood tolerance does not certify parameters: EM may creep. So where `loglik_rtol` is met a restart goes on
    until what is still `to_gain` is little, for as many steps again at most, or three times as many where the tolerance
    is that of rounding; `Result.to_gain` tells about how much is left. Set `param_rtol` where parameters matter to more
    digits than their standard errors have.

    Attributes:
        loglik_rtol: is met when |change of the objective| <= loglik_rtol * (1 + |objective|), 1 for the weight of a datum.
            Never tighter than four times the rounding unit of the data's dtype.
        loglik_atol: stops when |change of the objective| <= loglik_atol.
        param_rtol: stops when max |change of a parameter| / (1 + |parameter|) <= param_rtol, in the
            coordinates of the computation (standardized data for Gaussian families).
        param_atol: stops when the Euclidean norm of the change of all parameters <= param_atol, in the same
            coordinates; of a simplex all entries but the last count, of a symmetric matrix the lower triangle.
        to_gain: stops, once loglik_rtol was met, when all steps to come would raise the objective by no more, in units of
            the weight of a datum: by geometric series of what steps gain, after Aitken (Boehning and others 1994).
            A gain of g is worth sqrt(2 g) standard errors. None: 2.5e-4, worth .022 of them, where loglik_rtol is left at
            its default; else, and at 0, a restart stops as soon as loglik_rtol is met.
    """

    loglik_rtol: float | Array | None = RTOL
    loglik_atol: float | Array | None = None
    param_rtol: float | Array | None = None
    param_atol: float | Array | None = None
    to_gain: float | Array | None = None

    def check(self) -> None:
        for field in dataclasses.fields(self):
            check_tolerance(getattr(self, field.name), f"stop.{field.name}")

    def resolved(self) -> Stop:
        """The same, `to_gain` a number where it matters and None where it does not."""
        usual = isinstance(self.loglik_rtol, float) and self.loglik_rtol == RTOL
        to_gain = (TO_GAIN if usual else None) if self.to_gain is None else self.to_gain
        return dataclasses.replace(self, to_gain=None if isinstance(to_gain, int | float) and to_gain == 0 else to_gain)

    def as_asked(self) -> Stop:
        bare = dataclasses.replace(self, to_gain=None)
        usual = isinstance(self.to_gain, float) and bare.resolved().to_gain == self.to_gain
        return bare if usual else self

    @property
    def _projects(self) -> bool:
        return self.to_gain is not None and self.loglik_rtol is not None

    def begin(self, params: Params, objective: Array) -> PyTree:
        del params
        if not self._projects:
            return ()
        zero, none = jnp.zeros_like(objective), jnp.int32(0)
        return Creep(zero, none, none, zero, to_gain=zero + jnp.inf)

    def remember(self, step: Step) -> PyTree:
        if not self._projects:
            return ()
        memory, eps = step.memory, jnp.finfo(step.objective.dtype).eps
        length = sum((jnp.square(x).sum() for x in _moved(step)), start=jnp.zeros_like(memory.length)).astype(
            memory.length.dtype
        )
        n_steps, fresh = memory.n_steps + 1, (memory.met_at == 0) & ~step.trial
        now = fresh & self._met(step)
        # Rounding meets a tolerance at the first dip of what still gains more.
        most = jnp.maximum(jnp.abs(step.objective - step.old_objective), 3 * ROUNDING * eps * jnp.abs(step.magnitude))
        worth = jnp.where(now, divided(most / step.datum_weight, length), memory.worth)
        met_at = jnp.where(now, n_steps, memory.met_at)
        rate = jnp.minimum(divided(length, memory.length), SLOWEST)
        to_gain = jnp.where(met_at > 0, worth * length * rate / (1 - rate), jnp.inf)
        # A jump is no measure of the maps before and after it.
        length, to_gain = jnp.where(step.trial, memory.length, length), jnp.where(step.trial, memory.to_gain, to_gain)
        return Creep(length, n_steps, met_at, worth, to_gain)

    def to_gain_of(self, memory: PyTree) -> Array | float:
        return memory.to_gain if isinstance(memory, Creep) else jnp.nan

    def reason(self, step: Step) -> Array:
        fired = jnp.int32(StopReason.NONE)
        if self.param_rtol is not None:
            moved = jnp.stack([jnp.max(x, initial=0) for x in _moved(step)])
            met = (moved.max() <= self.param_rtol) & (self.param_rtol > 0)
            fired = jnp.where(met, jnp.int32(StopReason.PARAM_RTOL), fired)
        if self.param_atol is not None:
            new, old = (sets.to_affine(step.constraints, params) for params in (step.params, step.old_params))
            met = (optax.tree.norm(jax.tree.map(jnp.subtract, new, old)) <= self.param_atol) & (self.param_atol > 0)
            fired = jnp.where(met, jnp.int32(StopReason.PARAM_ATOL), fired)
        if self.loglik_atol is not None:
            met = (jnp.abs(step.objective - step.old_objective) <= self.loglik_atol) & (self.loglik_atol > 0)
            fired = jnp.where(met, jnp.int32(StopReason.LOGLIK_ATOL), fired)
        if self.loglik_rtol is not None:
            met = self._met(step)
            if self._projects:  # a small jump makes an accelerator take an EM map, which tells more
                met = jnp.where(step.trial, met, self._settled(step.remembered))
            fired = jnp.where(met, jnp.int32(StopReason.LOGLIK_RTOL), fired)
        return fired

    def _met(self, step: Step) -> Array:
        """Whether a step meets loglik_rtol."""
        change = jnp.abs(step.objective - step.old_objective)
        rtol = jnp.asarray(self.loglik_rtol)
        tolerance = jnp.maximum(rtol, ROUNDING * jnp.finfo(change.dtype).eps)
        return (change <= tolerance * (step.datum_weight + jnp.abs(step.magnitude))) & (rtol > 0)

    def _settled(self, creep: Creep) -> Array:
        """Whether little is to gain, or a restart has gone on for long enough: longer where rounding met the tolerance."""
        patience = jnp.where(jnp.asarray(self.loglik_rtol) < ROUNDING * jnp.finfo(creep.length.dtype).eps, 4, 2)
        spent = (creep.met_at > 0) & (creep.n_steps >= patience * creep.met_at)
        return (creep.to_gain <= jnp.asarray(self.to_gain)) | spent


def _moved(step: Step) -> list[Array]:
    """Changes of all parameters, small ones as they are and large ones relative."""
    pairs = zip(jax.tree.leaves(step.params), jax.tree.leaves(step.old_params), strict=True)
    return [jnp.abs(new - old) / (1 + jnp.abs(old)) for new, old in pairs]


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

    def as_asked(self) -> AnyOf:
        return AnyOf(tuple(rule.as_asked() for rule in self.rules))

    def to_gain_of(self, memory: PyTree) -> Array | float:
        told = [rule.to_gain_of(own) for rule, own in zip(self.rules, memory, strict=True)]
        return jnp.nanmin(jnp.stack([jnp.asarray(x) for x in told]))

    def _each(self, step: Step) -> list[tuple[StopRule, Step]]:
        """Every rule with the step as it sees it, with its own memory."""
        now = step.remembered or [None] * len(self.rules)
        pairs = zip(self.rules, step.memory, now, strict=True)
        return [(rule, dataclasses.replace(step, memory=memory, remembered=new)) for rule, memory, new in pairs]


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
                datum_weight=1.0, constraints=constraints, trial=objective > 0, memory=memory,
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
    rules = tuple(rule.resolved() if isinstance(rule, Stop) else rule for rule in rules)
    if not rules:
        raise ValueError("stop must hold a rule at least; got none")
    return rules[0] if len(rules) == 1 else AnyOf(rules)


def trouble(old: Array, new: Array, slack: Array, params: Params) -> Array:
    """int32 `Status`: RUNNING, or what is wrong with a step from objective `old` to `new`, which may fall by `slack`."""
    status = jnp.where(new < old - slack, jnp.int32(Status.DECREASED), jnp.int32(Status.RUNNING))
    finite = jnp.isfinite(new) & all_finite(params)
    return jnp.where(finite, status, jnp.int32(Status.NONFINITE))
