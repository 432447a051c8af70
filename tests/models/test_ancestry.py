"""Ancestries against frappe's equations in plain NumPy, fastmixture's figures, and what accelerators make of local."""

import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import DATA

import jaxem
from jaxem import constraints as sets


def simulated(n=300, people=40, k=3, seed=0, missing=0.1):
    """Genotypes of admixed people, and their ancestries."""
    rng = np.random.default_rng(seed)
    ancestry = rng.dirichlet(np.full(k, 0.3), people)
    frequencies = rng.uniform(0.05, 0.95, (n, k))
    genotypes = rng.binomial(2, frequencies @ ancestry.T)
    genotypes[rng.random(genotypes.shape) < missing] = -1
    return genotypes, ancestry


def error(found, truth):
    """Root mean squared error at the best order of the populations."""
    orders = itertools.permutations(range(truth.shape[1]))
    return min(np.sqrt(((np.asarray(found)[:, list(order)] - truth) ** 2).mean()) for order in orders)


def loglik(genotypes, ancestry, frequencies):
    h = np.asarray(frequencies, float) @ np.asarray(ancestry, float).T
    seen = genotypes >= 0
    return np.where(seen, genotypes * np.log(h) + (2 - genotypes) * np.log1p(-h), 0).sum()


def update_frequencies(g, q, p):
    seen, h = g >= 0, p @ q.T
    ones = p * (np.where(seen, g / h, 0) @ q)
    others = (1 - p) * (np.where(seen, (2 - g) / (1 - h), 0) @ q)
    return np.clip(ones / (ones + others), 1e-6, 1 - 1e-6)


def update_ancestry(g, q, p):
    seen, h = g >= 0, p @ q.T
    alleles = q * (np.where(seen, g / h, 0).T @ p + np.where(seen, (2 - g) / (1 - h), 0).T @ (1 - p))
    return alleles / alleles.sum(1, keepdims=True)


def test_equals_the_equations_of_frappe(x64):
    """Tang et al. (2005), one half after the other, missing genotypes left out."""
    g, _ = simulated(60, 12)
    q = np.random.default_rng(1).dirichlet(np.ones(3), 12)
    result = jaxem.fit(jaxem.Ancestry(3), g, init={"ancestry": q}, max_steps=5, block_size=17, stop=jaxem.Stop(None))
    ones, others = np.where(g >= 0, g, 0).sum(1), np.where(g >= 0, 2 - g, 0).sum(1)
    p = np.repeat(((ones + 1) / (ones + others + 2))[:, None], 3, 1)
    p = update_frequencies(g, q, update_frequencies(g, q, p))  # a restart begins cold, and its first E-step goes on
    wanted = [loglik(g, q, p)]
    for _ in range(5):
        q = update_ancestry(g, q, p)
        p = update_frequencies(g, q, p)
        wanted.append(loglik(g, q, p))
    np.testing.assert_allclose(result.history, wanted, rtol=1e-12)
    np.testing.assert_allclose(result.params["ancestry"], q, atol=1e-10)
    np.testing.assert_allclose(result.local, p, atol=1e-10)
    assert result.local.shape == (60, 3)


@jaxem.struct
class Held(jaxem.Ancestry):
    """Says nothing of the set in which its per-datum parameters live."""

    local_constraints: ClassVar[Any] = None


@pytest.mark.parametrize(
    ("algorithm", "n_maps", "gain"),
    [
        (jaxem.QuasiNewton(), 60, 0.1),
        pytest.param(jaxem.Squarem(), 60, 0.1, marks=pytest.mark.published),
        pytest.param(jaxem.Anderson(), 120, 0.05, marks=pytest.mark.published),  # damped at first
    ],
    ids=["QuasiNewton", "Squarem", "Anderson"],
)
def test_accelerators_move_both(x64, algorithm, n_maps, gain):
    """They come beyond what they reach where they may move the shared parameters alone, and never fall."""
    g, truth = simulated()
    given = {"key": jax.random.key(0), "algorithm": algorithm, "max_steps": n_maps, "stop": jaxem.Stop(None)}
    both, one = jaxem.fit(jaxem.Ancestry(3), g, **given), jaxem.fit(Held(3), g, **given)
    assert both.loglik > one.loglik + gain
    assert (np.diff(both.history) > -1e-8).all()
    np.testing.assert_allclose(both.loglik, loglik(g, both.params["ancestry"], both.local), rtol=1e-12)
    assert error(both.params["ancestry"], truth) < 0.1


def test_jumps_that_cross_the_boundary_are_pulled_back(x64):
    like = {"q": jnp.array([[0.2, 0.8, 0.0]]), "p": jnp.array([0.5, 0.9]), "r": jnp.array([1.0, 0.0])}
    where = {"q": sets.Simplex(), "p": sets.UnitInterval(), "r": sets.NonNegative()}
    far = {"q": jnp.array([[-0.1, 1.1, 0.0]]), "p": jnp.array([0.6, 1.3]), "r": jnp.array([-2.0, 0.0])}
    back = sets.pulled_back(where, far, like)
    assert sets.inside(where, back, like) and not sets.inside(where, far, like)
    np.testing.assert_allclose(back["q"], [[0.02 / 1.12, 1.1 / 1.12, 0]])
    np.testing.assert_allclose(back["p"], [0.6, 0.99])
    np.testing.assert_allclose(back["r"], [0.1, 0])
    for x in jax.tree.leaves(jax.tree.map(lambda a, b: jnp.abs(a - b).max(), sets.pulled_back(where, like, like), like)):
        assert x < 1e-15


@pytest.mark.published
def test_start_is_near_and_needs_no_tuning():
    g, truth = simulated(2000, 60, missing=0.05)
    model = jaxem.Ancestry(3)
    for seed in range(3):
        start = model.initialize(jax.random.key(seed), jnp.asarray(model.validate(g)), jnp.ones(len(g)))
        assert start["ancestry"].dtype == jnp.float32
        assert error(start["ancestry"], truth) < 0.2 < error(np.full(truth.shape, 1 / 3), truth)
    one = jaxem.Ancestry(1).initialize(jax.random.key(0), jnp.asarray(g), jnp.ones(len(g)))
    np.testing.assert_array_equal(one["ancestry"], 1)


def test_posterior_predict_and_sample(x64):
    g, _ = simulated(30, 8)
    model, truth = jaxem.Ancestry(3), {"ancestry": jnp.asarray(np.random.default_rng(2).dirichlet(np.ones(3), 8))}
    posterior = np.asarray(model.posterior(truth, g))
    np.testing.assert_allclose(posterior.sum(-1), 1)
    missing = np.argwhere(g < 0)[0]
    np.testing.assert_allclose(posterior[tuple(missing)], truth["ancestry"][missing[1]])
    p, q = np.asarray(model.frequencies(truth, g)), np.asarray(truth["ancestry"])
    snp, person = np.argwhere(g == 1)[0]
    h = p[snp] @ q[person]
    wanted = q[person] * (p[snp] / h + (1 - p[snp]) / (1 - h)) / 2
    np.testing.assert_allclose(posterior[snp, person], wanted)
    np.testing.assert_allclose(model.predict(truth, g), 2 * p @ q.T)
    np.testing.assert_allclose(model.log_prob(truth, g).sum(), loglik(g, q, p))
    given = jnp.asarray(np.random.default_rng(3).uniform(0.1, 0.9, (4000, 3)))
    drawn = np.asarray(model.sample(jax.random.key(0), truth, 4000, given))
    assert drawn.dtype == np.int8 and set(np.unique(drawn)) == {0, 1, 2}
    np.testing.assert_allclose(drawn.mean(0), np.asarray(2 * given @ truth["ancestry"].T).mean(0), atol=0.06)
    assert model.n_free_params(g) == 8 * 2 + 30 * 3


def test_missing_genotypes_are_left_out(x64):
    """However they are written, and a person without any keeps the ancestry given."""
    g, _ = simulated(50, 10)
    g[:, 3] = -1
    floats = np.where(g < 0, np.nan, g)
    init = {"ancestry": np.random.default_rng(4).dirichlet(np.ones(2), 10)}
    one, other = (jaxem.fit(jaxem.Ancestry(2), x, init=init, max_steps=4) for x in (g, floats))
    np.testing.assert_array_equal(one.params["ancestry"], other.params["ancestry"])
    np.testing.assert_array_equal(one.params["ancestry"][3], init["ancestry"][3])
    assert jaxem.Ancestry(2).validate(floats).dtype == np.int8


def test_bad_input():
    with pytest.raises(ValueError, match="genotypes 0, 1, 2"):
        jaxem.fit(jaxem.Ancestry(2), np.array([[0, 1, 3]]), key=jax.random.key(0))
    with pytest.raises(ValueError, match="a row for each SNP"):
        jaxem.fit(jaxem.Ancestry(2), np.zeros(3), key=jax.random.key(0))
    with pytest.raises(ValueError, match="at most the number of people, 2; got 3"):
        jaxem.fit(jaxem.Ancestry(3), np.zeros((3, 2)), key=jax.random.key(0))
    with pytest.raises(ValueError, match="n_populations"):
        jaxem.fit(jaxem.Ancestry(0), np.zeros((3, 2)), key=jax.random.key(0))


@pytest.mark.published
def test_msprime_simulation_of_600_people(optimised):
    """fastmixture 1.3.0: -9517923.3586, RMSE .01932. Here in float32; the totals are checked in float64."""
    with np.load(DATA / "admixture_sim3.npz") as file:
        g, truth = file["G"].T, file["Q"]
    assert not jax.config.jax_enable_x64
    result = jaxem.fit(
        jaxem.Ancestry(3), g, key=jax.random.key(0), algorithm=jaxem.QuasiNewton(), max_steps=100, stop=jaxem.Stop(None)
    )
    exact = loglik(g, result.params["ancestry"], result.local)
    assert result.params["ancestry"].dtype == jnp.float32
    assert result.n_steps <= 400
    assert exact >= -9517930
    assert abs(float(result.loglik) - exact) < 4  # float32 has steps of 1 at this size
    assert error(result.params["ancestry"], truth) <= 0.0195


SPANS = {
    "one person, ten times": (lambda rng: np.tile(rng.integers(3, size=(40, 1)), (1, 10)), 3),
    "one SNP, forty times": (lambda rng: np.tile(rng.integers(3, size=(1, 10)), (40, 1)), 3),
    "two kinds of people": (lambda rng: rng.integers(3, size=(40, 2))[:, np.arange(10) % 2], 4),
    "two SNPs": (lambda rng: rng.integers(3, size=(2, 10)), 4),
    "one genotype": (lambda rng: np.ones((40, 10), int), 2),
}


@pytest.mark.parametrize("name", SPANS)
def test_people_that_span_no_simplex_start_at_random(name, dtype):
    make, k = SPANS[name]
    g = make(np.random.default_rng(0))
    start = jaxem.Ancestry(k).initialize(jax.random.key(0), g, np.ones(len(g), dtype))["ancestry"]
    assert start.dtype == dtype and (start > 0).all()
    np.testing.assert_allclose(start.sum(1), 1, rtol=1e-5)


def test_a_fit_from_random_shares(x64):
    """Of people all alike nothing tells the populations apart: any shares are as good as the frequencies by themselves."""
    g = np.tile(np.random.default_rng(0).integers(3, size=(40, 1)), (1, 10))
    result = jaxem.fit(jaxem.Ancestry(3), g, key=jax.random.key(0), n_restarts=2, max_steps=50)
    h = np.clip(g.mean(1) / 2, 1e-6, 1 - 1e-6)
    np.testing.assert_allclose(result.loglik, 10 * (g[:, 0] * np.log(h) + (2 - g[:, 0]) * np.log1p(-h)).sum(), rtol=1e-3)
