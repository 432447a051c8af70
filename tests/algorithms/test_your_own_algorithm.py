"""An algorithm by public names alone: over-relaxed EM, theta + factor * (M(theta) - theta)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem


# --- the example ----------------------------------------------------------------------------------
@jaxem.struct
class OverRelaxed(jaxem.Accelerator):
    """Goes further than the EM map along its own step (Peters and Walker 1978); never lower, never out of the space."""

    factor: float | jax.Array = 1.9
    algorithm: jaxem.Algorithm = jaxem.EM()

    def begin(self, problem, params):
        return self.first(problem, params), self.algorithm.begin(problem, params)

    def next(self, problem, point, memory):
        way_back, inner = memory  # the EM map of the last point accepted
        mapped, inner = self.map(problem, point, inner)
        before, after = self.states(problem, point, mapped)
        beyond = (self.factor - 1) * (self.flat(problem, after) - self.flat(problem, before))
        # Where a jump failed the EM map is the way back; where its change was small an EM map decides whether to stop.
        target, leaps = self.leap(problem, after, beyond, point.accepted & ~point.small)
        target = jax.tree.map(lambda t, w: jnp.where(point.accepted, t, w), target, way_back)
        return jaxem.Move(params=target.params, local=target.local, trial=leaps, memory=(after, inner))


# --------------------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def overlapping(n=400):
    """Two components so close that EM creeps."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(n, 1)) + 1.8 * (rng.random((n, 1)) < 0.4)


OPTIONS = {"key": jax.random.key(0), "n_restarts": 3, "stop": jaxem.Stop(loglik_rtol=1e-13), "max_steps": 20_000}


def test_it_reaches_the_optimum_of_em_in_fewer_maps():
    model = jaxem.GaussianMixture(2, "diag")
    em = jaxem.fit(model, overlapping(), **OPTIONS)
    relaxed = jaxem.fit(model, overlapping(), algorithm=OverRelaxed(), **OPTIONS)
    assert relaxed.converged and relaxed.n_steps < 0.65 * em.n_steps
    np.testing.assert_allclose(relaxed.objective, em.objective, atol=1e-7)
    history = np.asarray(relaxed.history)
    assert (np.diff(history) >= -1e-13 * np.abs(history).max()).all()


def test_a_factor_too_large_falls_back_on_em():
    """A jump that leaves the parameter space is halved, one that falls is undone: half the maps at worst are wasted."""
    model = jaxem.Mixture(2, jaxem.Bernoulli())
    x = (np.random.default_rng(0).random((300, 5)) < np.array([[0.2], [0.7]])[np.arange(300) % 2]).astype(float)
    em = jaxem.fit(model, x, **OPTIONS)
    relaxed = jaxem.fit(model, x, algorithm=OverRelaxed(50.0), **OPTIONS)
    assert relaxed.converged and relaxed.n_steps <= 2.5 * em.n_steps
    np.testing.assert_allclose(relaxed.objective, em.objective, atol=1e-7)


def test_per_datum_parameters_jump_along():
    rng = np.random.default_rng(0)
    model, x = jaxem.LDA(2), rng.poisson(2.0 * rng.dirichlet(np.ones(6), 30) * 6).astype(float)
    em = jaxem.fit(model, x, **{**OPTIONS, "stop": jaxem.Stop(loglik_rtol=1e-9)})
    relaxed = jaxem.fit(model, x, algorithm=OverRelaxed(1.5), **{**OPTIONS, "stop": jaxem.Stop(loglik_rtol=1e-9)})
    assert relaxed.converged and relaxed.n_steps < em.n_steps
    np.testing.assert_allclose(relaxed.objective, em.objective, rtol=1e-4)
