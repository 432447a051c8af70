"""float32 against float64 on the same float32 values, under default settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import clusters

import jaxem
from jaxem.families.covariance import Full

SHAPES = ["full", "tied", "diag", "spherical"]
FIXED = jaxem.Stop(loglik_rtol=None)


def covariance_start(covariance: str, k: int, d: int, variance: float) -> np.ndarray:
    shape = {"full": np.eye(d) * np.ones((k, 1, 1)), "tied": np.eye(d), "diag": np.ones((k, d)), "spherical": np.ones(k)}
    return shape[covariance] * variance


def both(x, start, covariance, steps):
    """The same float32 values fitted in float32 and in float64."""
    model = jaxem.GaussianMixture(len(start["weights"]), covariance)
    with jax.enable_x64(True):
        x, start = np.float32(x), jax.tree.map(np.float32, start)
        single = jaxem.fit(model, x, init=start, max_steps=steps, stop=FIXED)
        doubled = jax.tree.map(np.float64, (x, start))
        double = jaxem.fit(model, doubled[0], init=doubled[1], max_steps=steps, stop=FIXED)
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((single.params, single.loglik, single.history)))
        rows = np.asarray(model.log_prob(single.params, x)), np.asarray(model.log_prob(double.params, doubled[0]))
    return single, double, rows


def shapes_and_sizes(*sizes):
    """The default suite takes the last size only; other sizes are published for full covariances, slow for the rest."""

    def marks(covariance, size):
        if size == sizes[-1]:
            return ()
        return pytest.mark.published if covariance == "full" else pytest.mark.slow

    return [pytest.param(c, *size, marks=marks(c, size)) for size in sizes for c in SHAPES]


@pytest.mark.parametrize("covariance, d, k", shapes_and_sizes((10, 10), (2, 5)))
def test_offset_of_1e4(covariance, d, k):
    x = clusters(4_000, d, k)
    x = (x - x.mean(0)) / x.std(0) + 1e4
    start = {
        "weights": np.full(k, 1 / k),
        "components": {"mean": x[:k], "covariance": covariance_start(covariance, k, d, 1.0)},
    }
    single, double, _ = both(x, start, covariance, 10)
    assert abs(float(single.loglik) - float(double.loglik)) / len(x) < 1e-3


@pytest.mark.parametrize("covariance, d, k", shapes_and_sizes((32, 16), (10, 10), (2, 5)))
def test_clusters_a_thousand_times_narrower_than_the_spread(covariance, d, k):
    rng = np.random.default_rng(0)
    n = 4_000
    means, z = rng.normal(size=(k, d)), rng.integers(k, size=n)
    mixing = 0.3 * rng.normal(size=(k, d, d)) / np.sqrt(d) + np.eye(d)
    x = means[z] + 1e-3 * np.einsum("nde,ne->nd", mixing[z], rng.normal(size=(n, d)))
    start = {
        "weights": np.full(k, 1 / k),
        "components": {"mean": means, "covariance": covariance_start(covariance, k, d, 1e-6)},
    }
    single, double, rows = both(x, start, covariance, 5)
    assert np.abs(rows[0] - rows[1]).max() < 1e-2
    got, wanted = single.params["components"]["covariance"], double.params["components"]["covariance"]
    assert np.abs(np.asarray(got) - np.asarray(wanted)).max() < 1e-2 * np.abs(np.asarray(wanted)).max()


def test_correlated_columns_at_a_condition_of_1e6():
    rng = np.random.default_rng(1)
    base = clusters(3_000, 2, 2, seed=2)
    ridge = np.stack([base[:, 0], base[:, 0] + 1e-3 * base[:, 1] + 1e-3 * rng.normal(size=3_000)], 1) + 50
    start = {
        "weights": np.full(2, 0.5),
        "components": {"mean": ridge[:2], "covariance": np.cov(ridge.T) * np.ones((2, 1, 1))},
    }
    single, double, _ = both(ridge, start, "full", 20)
    assert abs(float(single.loglik) - float(double.loglik)) / len(ridge) < 1e-3
    np.testing.assert_allclose(single.params["components"]["covariance"], double.params["components"]["covariance"], rtol=1e-2)


def test_both_forms_of_the_scores_are_one_function(dtype):
    x = clusters(200, 3, 2, seed=3).astype(dtype)
    for covariance in SHAPES:
        model = jaxem.GaussianMixture(2, covariance)
        components = {"mean": x[:2], "covariance": covariance_start(covariance, 2, 3, 0.7).astype(dtype)}
        params = {"weights": np.full(2, 0.5, dtype), "components": components}
        variants = [m.family for m in model.centered(params).variants(params)[1]]
        natural = variants[0].natural(params["components"])
        product, residual = (np.asarray(f.scores(f.pack(natural), x)) for f in variants)
        np.testing.assert_allclose(product, residual, atol=200 * np.finfo(dtype).eps * np.abs(residual).max())
        assert variants[1].form == "residual"


def test_float64_data_without_x64_warn_once(monkeypatch):
    from jaxem.data import validation

    monkeypatch.setattr(validation, "_warned", set())
    x = clusters(50, 2, 2)
    with pytest.warns(UserWarning, match="float64 but JAX computes in float32") as caught:
        result = jaxem.fit(jaxem.GaussianMixture(2), x, key=jax.random.key(0), max_steps=2)
        jaxem.fit(jaxem.GaussianMixture(2), x, key=jax.random.key(1), max_steps=2)
    assert len(caught) == 1
    assert result.loglik.dtype == np.float32


def test_fewer_rows_than_dimensions_to_a_component_in_float32():
    """No covariance is regular there, and the default floor lies below rounding: a status, and finite numbers."""
    x = np.float32(np.random.default_rng(0).normal(size=(60, 16)))
    result = jaxem.fit(jaxem.GaussianMixture(4), x, key=jax.random.key(0), n_restarts=3, max_steps=15)
    assert set(np.asarray(result.restarts.status)) <= {jaxem.Status.DEGENERATE, jaxem.Status.DECREASED}
    assert (np.asarray(result.restarts.n_steps) > 1).all() and np.isfinite(result.restarts.loglik).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


def test_matrices_above_the_floor_are_not_touched():
    """One matrix below its floor changes no other, and comes out with a factor, recognised as at the floor."""
    shape, floor = Full(), jnp.float32(1e-8)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0]
    thin, flat = (np.float32(turn * np.r_[np.ones(31), least] @ turn.T) for least in (1e-4, 0))
    thin, flat = jnp.asarray((thin + thin.T) / 2), jnp.asarray((flat + flat.T) / 2)
    clipped = shape.clip(jnp.stack([thin, flat]), floor)
    np.testing.assert_array_equal(clipped[0], thin)
    assert np.isfinite(np.linalg.cholesky(np.asarray(clipped[1]))).all()
    np.testing.assert_array_equal(shape.at_floor(clipped, 1.001 * floor).squeeze(), [False, True])
