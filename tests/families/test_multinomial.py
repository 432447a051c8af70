"""Multinomial components against frequencies and SciPy, with probabilities of zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from components import fit_one, scores, tables
from scipy import stats

import jaxem


def test_probabilities_of_zero_and_empty_rows(x64):
    params = {"probs": jnp.asarray([[0.0, 0.5, 0.5]])}
    got = scores(jaxem.Multinomial(), params, np.array([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))[:, 0]
    np.testing.assert_allclose(got[:2], [np.log(3 / 8), 0], atol=1e-12)
    assert got[2] < -1e8
    slope = jax.grad(lambda p: scores_sum(p))(params)
    assert np.isfinite(slope["probs"]).all()


def scores_sum(params):
    family = jaxem.Multinomial()
    return family.scores(family.natural(params), jnp.asarray([[0.0, 2.0, 1.0]])).sum()


def test_one_multinomial_is_the_frequencies(dtype):
    x = tables().astype(dtype)
    result = fit_one(jaxem.Multinomial(), x)
    wanted = x.sum(0) / x.sum()
    np.testing.assert_allclose(result.params["components"]["probs"][0], wanted, rtol=1e-5)
    assert float(result.loglik) == pytest.approx(
        stats.multinomial(20, x.sum(0, float) / x.sum(dtype=float)).logpmf(x).sum(), rel=1e-5
    )


def test_totals_of_half_a_billion_are_possible(dtype):
    """Only a count of what has probability zero is impossible, however large the others are."""
    params = {"probs": jnp.asarray([[0.25, 0.25, 0.5, 0.0]], dtype)}
    rows = np.array([[5e8, 5e8, 1e9, 0], [9e8, 8e8, 3, 0], [5e8, 5e8, 1e9, 1], [0, 0, 0, 1]], dtype)
    got = scores(jaxem.Multinomial(), params, rows)[:, 0]
    assert np.isfinite(got[:2]).all() and (got[2:] == -np.inf).all()
    family = jaxem.Multinomial()
    slope = jax.grad(lambda p: family.scores(family.natural(p), jnp.asarray(rows[:2])).sum())(params)
    assert np.isfinite(slope["probs"]).all()
    if dtype == np.float64:
        np.testing.assert_allclose(
            got[:2], stats.multinomial.logpmf(rows[:2], rows[:2].sum(1), [0.25, 0.25, 0.5, 0]), rtol=1e-6
        )
