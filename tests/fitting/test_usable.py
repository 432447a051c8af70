"""What `fit` returns is usable: mapped back, in the data's dtype, it satisfies its constraints and says what the fit said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Status
from jaxem import constraints as sets
from jaxem.fitting.coordinates import Units

KEY = jax.random.key(0)


def dependent(name: str) -> np.ndarray:
    """Rows of two clusters whose columns are linearly dependent."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (100, 2)), rng.normal(6, 1, (100, 2))])
    if name == "a sum":
        return np.c_[x, x.sum(1)]
    if name == "one-hot":
        return np.c_[x, np.eye(3)[rng.integers(0, 3, 200)]]
    if name == "other units":
        return np.c_[x, x.sum(1)] * [1e-6, 1, 1e6] + [1, 0, 1e6]
    return rng.normal(size=(10, 15))  # fewer rows than columns


@pytest.mark.parametrize(
    "name, covariance",
    [
        ("a sum", "full"),
        ("one-hot", "full"),
        ("fewer rows than columns", "full"),
        pytest.param("a sum", "tied", marks=pytest.mark.published),
        pytest.param("other units", "full", marks=pytest.mark.published),
        pytest.param("one-hot", "tied", marks=pytest.mark.published),
        pytest.param("fewer rows than columns", "tied", marks=pytest.mark.published),
    ],
)
def test_dependent_columns(dtype, name, covariance):
    x, model = dependent(name).astype(dtype), jaxem.GaussianMixture(2, covariance)
    result = jaxem.fit(model, x, key=KEY, n_restarts=4)
    if name == "other units" and np.finfo(x.dtype).bits == 32:
        pytest.xfail("in float32 rounding makes columns of other units independent, and their density is lost to it")
    assert int(result.status) == Status.DEGENERATE
    sets.check(model.constraints, result.params)
    rows = np.asarray(model.log_prob(result.params, x))
    # A floor in float32 is a few units of rounding, and so a row's log-density is known to few digits.
    np.testing.assert_allclose(
        rows.sum(), result.loglik, rtol=0, atol=1e-8 * np.abs(rows).sum() if dtype == "f8" else 2e-2 * len(x)
    )
    assert np.isfinite(model.posterior(result.params, x)).all()
    assert np.isfinite(model.sample(KEY, result.params, 5)).all()
    assert np.isfinite(jaxem.fit(model, x, init=result, n_restarts=4, max_steps=3).loglik)
    if name == "a sum" and dtype == "f8":
        traced = jax.jit(lambda x: jaxem.fit(model, x, key=KEY, n_restarts=4))(x)
        assert int(traced.status) == Status.DEGENERATE
        sets.check(model.constraints, traced.params)


@pytest.mark.parametrize("value, k", [(-99.0, 3), (1e6, 1)])
def test_one_row_far_away_in_float32(value, k):
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(200, 3)))
    x[:100] += 3
    x[7] = value
    model = jaxem.GaussianMixture(k)
    result = jaxem.fit(model, x, key=KEY, n_restarts=4)
    assert int(result.status) == Status.DEGENERATE
    sets.check(model.constraints, result.params)
    assert np.isfinite(model.posterior(result.params, x)).all()
    assert abs(float(model.log_prob(result.params, x).sum()) - float(result.loglik)) < 3e-2 * len(x)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_a_size_whose_squares_float32_cannot_hold(covariance):
    x, model = np.random.default_rng(0).normal(size=(50, 2)), jaxem.GaussianMixture(2, covariance)
    for size in (1e-23, 1e20):
        with pytest.raises(
            ValueError, match=r"data must vary by 1e-19 to 2e\+19, of which float32 holds the squares.* float64"
        ):
            jaxem.fit(model, np.float32(size * x), key=KEY)
    for size in (1e-17, 1e17):
        result = jaxem.fit(model, np.float32(size * x), key=KEY)
        assert int(result.status) == Status.CONVERGED
        assert np.isfinite(model.log_prob(result.params, np.float32(size * x))).all()


def test_a_winner_that_does_not_hold_gives_way(x64, monkeypatch):
    x, model = np.random.default_rng(0).normal(size=(60, 2)), jaxem.GaussianMixture(2)

    def fit(x=x):
        return jaxem.fit(model, x, key=KEY, n_restarts=4, max_steps=2)

    free = fit()
    first, second, *_ = np.argsort(-np.asarray(free.restarts.objective))
    weights = np.asarray(free.params["weights"])
    monkeypatch.setattr(Units, "hold", lambda self, params: not np.allclose(params["weights"], weights))
    monkeypatch.setattr(Units, "unusable", lambda self, params: jnp.isclose(params["weights"], weights).all(-1))
    for result in (fit(), jax.jit(fit)(x)):
        assert int(result.status) == Status.MAX_STEPS
        assert float(result.objective) == pytest.approx(float(free.restarts.objective[second]))
        wanted = np.where(np.arange(4) == first, int(Status.DEGENERATE), int(Status.MAX_STEPS))
        np.testing.assert_array_equal(result.restarts.status, wanted)
    monkeypatch.setattr(Units, "hold", lambda self, params: False)
    assert int(fit().status) == Status.DEGENERATE
    assert (np.asarray(fit().restarts.status) == Status.DEGENERATE).all()


def test_looking_at_the_winner_in_traced_code_is_cheap():
    x, model = np.random.default_rng(0).normal(size=(60, 2)), jaxem.GaussianMixture(2)
    units = Units(model, model.coordinates(x, np), np.dtype("f4"), True)
    params = jax.tree.map(lambda leaf: leaf[None], model.template(np.float32(x)))

    def operations(jaxpr) -> int:
        inner = [getattr(part, "jaxpr", part) for e in jaxpr.eqns for part in e.params.values()]
        return len(jaxpr.eqns) + sum(operations(part) for part in inner if hasattr(part, "eqns"))

    assert operations(jax.make_jaxpr(units.unusable)(params).jaxpr) <= 60
