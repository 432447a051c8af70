"""A stopping rule by public names alone: Aitken's, on the limit that the objective is heading for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import StopReason
from jaxem.fitting import segments


# --- the example ----------------------------------------------------------------------------------
@jaxem.struct
class Aitken(jaxem.StopRule):
    """Stops when the limit projected from three values of the objective is at most `gain` above (Boehning et al. 1994)."""

    gain: float | jax.Array = 1e-4

    def begin(self, params, objective):
        return jnp.full_like(objective, jnp.nan)  # the gain of the move before

    def reason(self, step):
        last = step.objective - step.old_objective
        rate = last / step.memory
        left = last * rate / (1 - rate)
        return (rate < 1) & (jnp.abs(left) <= self.gain)  # not where the memory is NaN

    def remember(self, step):
        return jnp.where(step.trial, jnp.nan, step.objective - step.old_objective)  # jumps follow no series


# --------------------------------------------------------------------------------------------------
KEY = jax.random.key(0)
MODEL = jaxem.GaussianMixture(2, "diag")


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def overlapping(n=400):
    """Two components so close that EM creeps."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(n, 1)) + 1.8 * (rng.random((n, 1)) < 0.4)


@pytest.fixture(scope="module")
def optimum(x64):
    """The objective that EM creeps to."""
    return jaxem.fit(MODEL, overlapping(), key=KEY, stop=jaxem.Stop(loglik_rtol=1e-14)).objective


@pytest.fixture(scope="module")
def stopped(x64):
    return jaxem.fit(MODEL, overlapping(), key=KEY, stop=Aitken(1e-2))


def test_it_stops_where_the_projected_gain_is_below_the_tolerance(stopped, optimum):
    assert stopped.converged and stopped.stop_reason == "rule" and int(stopped.stop) == StopReason.RULE == max(StopReason)
    gains = np.diff(stopped.history)
    rate = gains[1:] / gains[:-1]
    fires = (rate < 1) & (np.abs(gains[1:] * rate / (1 - rate)) <= 1e-2)
    assert fires[-1] and not fires[:-1].any() and len(fires) == stopped.n_steps - 1
    # What is left is what was projected, where a rule on the last gain alone stops far too early.
    lazy = jaxem.fit(MODEL, overlapping(), key=KEY, stop=jaxem.Stop(loglik_rtol=None, loglik_atol=1e-2))
    np.testing.assert_allclose(optimum - stopped.objective, 1e-2, rtol=0.1)
    assert optimum - lazy.objective > 0.2


def test_each_restart_has_a_memory_of_its_own():
    starts = [jaxem.fit(MODEL, overlapping(), key=KEY, max_steps=n).params for n in (0, 2, 20, 60)]
    each = jaxem.init.Each(jax.tree.map(lambda *x: np.stack(x), *starts))
    together = jaxem.fit(MODEL, overlapping(), init=each, n_restarts=4, stop=Aitken(1e-3))
    alone = [jaxem.fit(MODEL, overlapping(), init=start, stop=Aitken(1e-3)) for start in starts]
    assert together.restarts.n_steps.tolist() == [int(one.n_steps) for one in alone]
    assert len(set(together.restarts.n_steps.tolist())) == 4


def test_inside_jit_and_without_compiling_for_another_tolerance():
    traces = []

    @jax.jit
    def steps(gain):
        traces.append(gain)
        return jaxem.fit(MODEL, jnp.asarray(overlapping()), key=KEY, stop=Aitken(gain), mesh=None).n_steps

    assert steps(1e-1) < steps(1e-3) and len(traces) == 1


def test_a_stream_stops_where_a_fit_does(stopped):
    streamed = jaxem.fit_stream(MODEL, np.split(overlapping(), 4), key=KEY, stop=Aitken(1e-2))
    assert streamed.stop_reason == "rule" and streamed.n_steps == stopped.n_steps


@pytest.mark.parametrize("streamed", [False, True])
def test_it_resumes_to_the_same_bits(tmp_path, monkeypatch, streamed):
    monkeypatch.setattr(segments, "SECONDS", 0.0)
    options = {"key": KEY, "n_restarts": 2, "stop": Aitken(1e-1)}

    def run(**more):
        if streamed:
            return jaxem.fit_stream(MODEL, np.split(overlapping(), 4), **options, **more)
        return jaxem.fit(MODEL, overlapping(), **options, **more)

    whole = run()
    saved = jaxem.Checkpoint(tmp_path, every_seconds=0)
    cut = run(checkpoint=saved, callback=lambda snapshot: snapshot.n_steps.max() >= 3)
    assert cut.status == jaxem.Status.INTERRUPTED and cut.n_steps < whole.n_steps
    again = run(checkpoint=saved)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_memory_is_in_the_checkpoint(tmp_path):
    jaxem.fit(MODEL, overlapping(), key=KEY, stop=Aitken(1e-3), checkpoint=tmp_path)
    names = np.load(jaxem.Checkpoint(tmp_path).paths()[-1]).files
    assert "restarts.seen" in names, names


def test_of_several_rules_the_first_to_fire_says_why(stopped):
    strict = jaxem.Stop(loglik_rtol=None, param_rtol=1e-9)
    both = jaxem.fit(MODEL, overlapping(), key=KEY, stop=(strict, Aitken(1e-2)))
    assert both.stop_reason == "rule" and both.n_steps == stopped.n_steps
    loose = jaxem.Stop(loglik_rtol=None, param_rtol=1e-1)
    assert jaxem.fit(MODEL, overlapping(), key=KEY, stop=[loose, Aitken(1e-9)]).stop_reason == "param_rtol"


def test_an_accelerator_stops_by_it_on_an_em_map(optimum):
    found = jaxem.fit(MODEL, overlapping(), key=KEY, stop=Aitken(1e-4), algorithm=jaxem.Squarem())
    assert found.stop_reason == "rule" and found.n_steps < 100 and optimum - found.objective < 5e-2


@pytest.mark.parametrize("stop", [1e-6, jaxem.Stop, None, (jaxem.Stop(), 1e-6)])
def test_what_is_no_rule(stop):
    with pytest.raises(TypeError, match=r"stop must be a jaxem.Stop or another jaxem.StopRule"):
        jaxem.fit(MODEL, overlapping(), key=KEY, stop=stop)


def test_settings_are_checked_in_any_place():
    with pytest.raises(ValueError, match=r"stop.param_rtol must be None or a non-negative number"):
        jaxem.fit(MODEL, overlapping(), key=KEY, stop=(Aitken(), jaxem.Stop(param_rtol=-1)))


def test_several_rules_are_one_at_least():
    with pytest.raises(ValueError, match="stop must hold a rule at least"):
        jaxem.fit(MODEL, overlapping(), key=KEY, stop=[])


@jaxem.struct
class Given(jaxem.StopRule):
    """A rule of whatever is given."""

    reasons: Callable = jaxem.static(default=lambda step: step.objective > 1e9)
    first: Callable = jaxem.static(default=lambda objective: ())
    later: Callable = jaxem.static(default=lambda step: ())

    def begin(self, params, objective):
        return self.first(objective)

    def reason(self, step):
        return self.reasons(step)

    def remember(self, step):
        return self.later(step)


@pytest.mark.parametrize(
    "rule, message",
    [
        (
            Given(lambda step: step.objective - step.old_objective),
            r"Given.reason must give one bool .* got float64 of shape \(\)",
        ),
        (Given(lambda step: jnp.zeros(2, bool)), r"Given.reason must give one bool .* got bool of shape \(2,\)"),
        (Given(first=lambda value: jnp.zeros(3)), r"Given.remember must give what Given.begin gives, float64\[3\]; got \(\)"),
        (
            Given(first=lambda value: jnp.int32(0), later=lambda step: step.objective),
            r"Given.remember must give what Given.begin gives, int32\[\]; got float64\[\]",
        ),
    ],
)
def test_a_rule_that_does_not_fit_is_named(rule, message):
    for stop in (rule, (jaxem.Stop(), rule)):
        with pytest.raises(TypeError, match=message):
            jaxem.fit(MODEL, overlapping(), key=KEY, stop=stop)


def test_a_reason_of_ones_own_is_a_rule():
    assert jaxem.fit(MODEL, overlapping(), key=KEY, stop=Given(lambda step: jnp.int32(99))).stop_reason == "rule"


class Bare(jaxem.StopRule):
    """Not decorated."""


@pytest.mark.parametrize("call", [jaxem.fit, jaxem.cross_validate, jaxem.bootstrap])
def test_every_door_checks_the_rule(call):
    more = (jaxem.fit(MODEL, overlapping(), key=KEY, max_steps=0).params,) if call is jaxem.bootstrap else ()
    with pytest.raises(TypeError, match=r"stop must be a jaxem\.Stop or another"):
        call(MODEL, *more, overlapping(), key=KEY, stop=jaxem.Stop)
    with pytest.raises(TypeError, match="stop class Bare must be a frozen dataclass"):
        call(MODEL, *more, overlapping(), key=KEY, stop=Bare())
    with pytest.raises(ValueError, match=r"stop\.loglik_rtol must be None or a non-negative number"):
        call(MODEL, *more, overlapping(), key=KEY, stop=jaxem.Stop(-1.0))
