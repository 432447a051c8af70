"""Substitution along trees: pruning against the sum over ancestors, expectations against quadrature, PHAST, IQ-TREE."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import DATA

import jaxem
from jaxem.engine.e_step import e_step
from jaxem.models.phylogeny.site_rates import gamma_classes
from jaxem.numerics.blocks import cut


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


#: (human, (mouse, rat), cow): leaves 0-3, 4 the ancestor of the rodents, 5 the root.
PARENTS = (5, 4, 4, 5, 5, -1)
#: ((human, (mouse, rat)), cow)
ROOTED = (5, 4, 4, 6, 5, 6, -1)
#: As PHAST counted them.
FREQUENCIES = np.array([0.325828, 0.191345, 0.182691, 0.300136])
VERTEBRATES = (31, 17, 17, 30, 19, 20, 21, 18, 18, 24, 23, 22, 22, 25, 25, 27, 27,
               31, 19, 20, 21, 29, 23, 24, 26, 26, 28, 28, 29, 30, 31, -1)  # fmt: skip
QUICK = {"algorithm": jaxem.QuasiNewton(), "stop": jaxem.Stop(1e-12)}


def mammals():
    rows = [line.split(",") for line in (DATA / "hmrc_patterns.csv").read_text().split()[1:]]
    codes = np.array([["ACGT".find(base) for base in row[:4]] for row in rows])
    return codes, np.array([float(row[4]) for row in rows])


def vertebrates():
    rows = [line.split(",") for line in (DATA / "vertebrates_patterns.csv").read_text().split()[1:]]
    codes = np.array([["ACGT".find(base) for base in pattern] for pattern, _ in rows])
    return codes, np.array([float(count) for _, count in rows])


def rises(history):
    return (np.diff(history) > -1e-6).all()


def some_params(model, seed=0):
    """Parameters with nothing equal."""
    rng = np.random.default_rng(seed)
    params = {"lengths": rng.uniform(0.05, 0.6, len(model.parents) - 1)}
    for name, size in (("exchange", model.rates.n_kinds), ("frequencies", 4), ("class_weights", 3), ("class_shares", 3)):
        params[name] = rng.dirichlet(np.full(size, 5.0))
    template = model.template(None)
    return {name: jnp.asarray(params[name]) for name in template}


# --- density ------------------------------------------------------------------------------------
def ancestors(model, params, row, rates, weights):
    """Probability of a site, and those of its ancestral states: the sum over all of these and the classes."""
    from scipy.linalg import expm

    meanings = ["A", "C", "G", "T", "AG", "CT", "CG", "AT", "GT", "AC", "CGT", "AGT", "ACT", "ACG"]
    leaves = [["ACGT".index(b) for b in meanings[c]] if 0 <= c < 14 else range(4) for c in row]
    q, pi = np.asarray(model.rates.matrix(params)), np.asarray(model.rates.parts(params)[1])
    inner = len(model.parents) - len(row)
    found = np.zeros((inner, 4))
    for rate, weight in zip(rates, weights, strict=True):
        p = [expm(q * t * rate) for t in np.asarray(params["lengths"])]
        for states in itertools.product(*leaves, *[range(4)] * inner):
            joint = weight * pi[states[-1]]
            for node, parent in enumerate(model.parents[:-1]):
                joint *= p[node][states[parent], states[node]]
            found[range(inner), states[len(row) :]] += joint
    return found[0].sum(), found / found[0].sum()


@pytest.mark.parametrize("rates", [jaxem.JC(), jaxem.UNREST(estimated=True)], ids=["JC", "UNREST with classes"])
def test_pruning_sums_over_ancestors(rates):
    """Gaps, ambiguity codes, classes of rates, and the posterior of each inner node."""
    sites = jaxem.OneRate() if rates.equal else jaxem.FreeRates(3)
    model = jaxem.Substitution(PARENTS, rates, sites)
    params = some_params(model)
    data = np.array([[0, 1, 2, 3], [2, 2, 2, 2], [0, -1, 3, 3], [4, 5, 13, 99], [-1, -1, -1, -1]])
    wanted = [ancestors(model, params, row, *map(np.asarray, model.sites.classes(params))) for row in data]
    np.testing.assert_allclose(model.log_prob(params, data), np.log([p for p, _ in wanted]), atol=1e-12)
    posterior = model.posterior(params, data)
    np.testing.assert_allclose(posterior, [states for _, states in wanted], atol=1e-12)
    np.testing.assert_array_equal(model.predict(params, data), posterior.argmax(-1))
    by_class = model.class_posterior(params, data)
    np.testing.assert_allclose(by_class.sum(1), 1)
    np.testing.assert_allclose(model.site_rates(params, data)[-1], 1)  # nothing seen: the mean rate


def test_rate_matrices():
    pi = np.array([0.1, 0.2, 0.3, 0.4])
    for rates, n_free in ((jaxem.F81(pi), 0), (jaxem.HKY(pi), 1), (jaxem.GTR(pi), 5), (jaxem.GTR(estimated=True), 8)):
        params = {"lengths": jnp.ones(5), **rates.initialize(jnp.asarray(pi))}
        if "exchange" in params:
            params["exchange"] = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(rates.n_kinds)))
        q = np.asarray(rates.matrix(params))
        np.testing.assert_allclose(pi @ q, 0, atol=1e-15)
        np.testing.assert_allclose(pi[:, None] * q, (pi[:, None] * q).T)
        np.testing.assert_allclose(-pi @ np.diag(q), 1)
        assert rates.n_free_params == n_free
    q = np.asarray(
        jaxem.HKY().matrix({"lengths": jnp.ones(1), "exchange": jnp.array([0.8, 0.2]), "frequencies": jnp.asarray(pi)})
    )
    np.testing.assert_allclose(q[0, 2] / q[0, 1], 4 * pi[2] / pi[1])  # kappa = 4, A to G against A to C
    rates = jaxem.UNREST(pi)
    q = np.asarray(rates.matrix({"lengths": jnp.ones(1), "exchange": jnp.arange(1.0, 13) / 78, "frequencies": jnp.asarray(pi)}))
    np.testing.assert_allclose(q[~np.eye(4, dtype=bool)] / q[0, 1], np.arange(1, 13))
    assert rates.n_free_params == 11


def test_gamma_classes():
    from scipy.stats import gamma

    for shape in (0.05, 0.3, 1.0, 10.0, 99.0):
        cuts = gamma.ppf(np.arange(1, 4) / 4, shape)
        wanted = 4 * np.diff(np.r_[0, gamma.cdf(cuts, shape + 1), 1])
        np.testing.assert_allclose(gamma_classes(jnp.asarray(shape), 4), wanted, atol=1e-12)
    slope = jax.jacfwd(lambda a: gamma_classes(a, 4))(1.3)
    difference = (gamma_classes(jnp.asarray(1.3 + 1e-5), 4) - gamma_classes(jnp.asarray(1.3 - 1e-5), 4)) / 2e-5
    np.testing.assert_allclose(slope, difference, atol=1e-8)


# --- expectations -------------------------------------------------------------------------------
def test_expected_counts_are_integrals_of_matrix_exponentials():
    """Jumps i -> j on a branch: the integral over s of P(s)_ai q_ij P(t - s)_jb, weighed by all else in the tree."""
    from scipy.linalg import expm

    model = jaxem.Substitution((2, 2, -1), jaxem.UNREST(estimated=True))
    params = some_params(model)
    codes = np.array([[0, 2], [1, 3], [3, 4]])
    found = e_step(model, params, cut(jnp.asarray(codes), None, None, 3)).stats
    q, pi, lengths = np.asarray(model.rates.matrix(params)), np.asarray(params["frequencies"]), np.asarray(params["lengths"])
    nodes, gauss = np.polynomial.legendre.leggauss(30)
    jumps, dwell, root = np.zeros((2, 4, 4)), np.zeros((2, 4)), np.zeros(4)
    for row in codes:
        seen = [np.eye(4)[c] if c < 4 else np.array([1.0, 0, 1, 0]) for c in row]  # 4 is A or G
        up = [expm(q * t) @ x for t, x in zip(lengths, seen, strict=True)]
        total = pi @ (up[0] * up[1])
        root += pi * up[0] * up[1] / total
        for e, t in enumerate(lengths):
            above = pi * up[1 - e]
            for x, weight in zip((nodes + 1) / 2, gauss / 2, strict=True):
                before, after = above @ expm(q * t * x), expm(q * t * (1 - x)) @ seen[e]
                dwell[e] += weight * before * after / total
                jumps[e] += weight * t * q * np.outer(before, after) / total
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(found["log_jumps"][0][:, off], jumps[:, off], rtol=1e-8)
    np.testing.assert_allclose(found["exit"][0], dwell, rtol=1e-8)
    np.testing.assert_allclose(found["log_root"], root, rtol=1e-8)
    np.testing.assert_allclose(found["log_weights"], 3)


def test_equal_eigenvalues_are_nothing_special(dtype):
    """JC69 has three equal ones: first and second derivatives are finite, also at lengths of zero and beyond saturation."""
    model, data = jaxem.Substitution((2, 2, -1)), jnp.array([[0, 1], [1, 1], [0, 0]])
    with jax.enable_x64(dtype == np.float64):
        row = lambda lengths: model.log_prob({"lengths": lengths}, data)  # noqa: E731
        derivatives = jax.jit(lambda x: (row(x), jax.jacrev(row)(x), jax.jacfwd(jax.jacrev(row))(x)))
        for t in (0.1, 1e-4, 5.0, 200.0):
            value, gradient, hessian = derivatives(jnp.full((2,), t, dtype))
            assert gradient.dtype == dtype
            assert np.isfinite(gradient).all() and np.isfinite(hessian).all()
            wanted = np.log((0.25 + 0.75 * np.exp(-4 / 3 * 2 * t)) / 4)
            np.testing.assert_allclose(value[2], wanted, rtol=1e3 * np.finfo(dtype).eps)


@pytest.mark.published
def test_zero_branch_stays_zero_and_recovery():
    model = jaxem.Substitution(PARENTS, jaxem.HKY(estimated=True))
    truth = {"lengths": jnp.array([0.1, 0.2, 0.0, 0.3, 0.15]), "exchange": jnp.array([0.8, 0.2])}
    truth |= {"frequencies": jnp.array([0.4, 0.3, 0.2, 0.1])}
    data = model.sample(jax.random.key(0), truth, 4000)
    init = {
        **truth,
        "lengths": np.array([0.1, 0.1, 0.0, 0.1, 0.1]),
        "exchange": np.full(2, 0.5),
        "frequencies": np.full(4, 0.25),
    }
    result = jaxem.fit(model, data, init=init)
    assert result.params["lengths"][2] == 0
    np.testing.assert_allclose(result.params["lengths"], truth["lengths"], atol=0.03)
    np.testing.assert_allclose(result.params["exchange"], truth["exchange"], atol=0.03)
    np.testing.assert_allclose(result.params["frequencies"], truth["frequencies"], atol=0.02)


# --- PHAST: four mammals ------------------------------------------------------------------------
def test_jukes_cantor_on_four_mammals():
    codes, counts = mammals()
    model = jaxem.Substitution(PARENTS)
    result = jaxem.fit(model, codes, weight=counts, stop=jaxem.Stop(None, None, 1e-9))
    assert result.converged
    assert abs(float(result.loglik) + 200605.703636) < 1e-4
    assert rises(result.history)
    assert model.n_free_params(codes) == 5


MAMMALS = {
    "F81": (jaxem.Substitution(PARENTS, jaxem.F81(FREQUENCIES)), -197609.270983),
    "HKY": (jaxem.Substitution(PARENTS, jaxem.HKY(FREQUENCIES)), -194181.145150),
    "GTR": (jaxem.Substitution(PARENTS, jaxem.GTR(FREQUENCIES)), -194059.523258),
    "UNREST": (jaxem.Substitution(ROOTED, jaxem.UNREST(FREQUENCIES)), -193995.299695),
    "GTR with gamma rates": (jaxem.Substitution(PARENTS, jaxem.GTR(FREQUENCIES), jaxem.GammaRates(4)), -194057.620212),
}


@pytest.mark.published
@pytest.mark.parametrize("name", MAMMALS)
def test_four_mammals(name):
    """phyloFit's best by BFGS; its EM stops .01 (HKY, GTR) and 1.6 (UNREST) below."""
    model, best = MAMMALS[name]
    codes, counts = mammals()
    result = jaxem.fit(model, codes, weight=counts, **QUICK)
    assert result.loglik >= best - 1e-3
    # Frequencies held where they were given; with free ones all would be far higher.
    np.testing.assert_allclose(result.params["frequencies"], FREQUENCIES, atol=1e-6)
    assert result.loglik < best + 0.2
    assert rises(result.history)


def test_frequencies_of_the_data_are_those_given():
    """PHAST counted bases the same way: what initialize takes where none are given."""
    codes, counts = mammals()
    start = jaxem.Substitution(PARENTS, jaxem.GTR()).initialize(None, jnp.asarray(codes), jnp.asarray(counts))
    np.testing.assert_allclose(start["frequencies"], FREQUENCIES, atol=1e-4)


# --- IQ-TREE: seventeen vertebrates -------------------------------------------------------------
@pytest.mark.published
def test_seventeen_vertebrates():
    """IQ-TREE 2.0.7 on the same topology: JC -23662.3207, GTR+FO -22680.2846."""
    codes, counts = vertebrates()
    plain = jaxem.fit(jaxem.Substitution(VERTEBRATES), codes, weight=counts, **QUICK)
    assert abs(float(plain.loglik) + 23662.3207) < 1e-3
    model = jaxem.Substitution(VERTEBRATES, jaxem.GTR(estimated=True))
    result = jaxem.fit(model, codes, weight=counts, **QUICK)
    assert -22680.30 <= result.loglik < -22680.2
    assert rises(result.history)
    assert model.n_free_params(codes) == 31 + 8


@pytest.mark.published
def test_free_rates_on_seventeen_vertebrates(optimised):
    """GTR+FO+R4, best of 20 starts: IQ-TREE 2.0.7 reaches -21140.5840."""
    codes, counts = vertebrates()
    model = jaxem.Substitution(VERTEBRATES, jaxem.GTR(estimated=True), jaxem.FreeRates(4))
    result = jaxem.fit(
        model, codes, weight=counts, key=jax.random.key(0), n_restarts=20,
        algorithm=jaxem.QuasiNewton(), stop=jaxem.Stop(1e-9), rounds=jaxem.Rounds(30),
    )  # fmt: skip
    assert result.loglik >= -21140.65
    rates, weights = model.sites.classes(result.params)
    np.testing.assert_allclose(weights @ rates, 1)
    np.testing.assert_allclose(np.sort(rates), [0.05057, 0.3631, 1.102, 3.17], rtol=0.6)


# --- input --------------------------------------------------------------------------------------
def test_bad_input():
    with pytest.raises(ValueError, match="parents"):
        jaxem.fit(jaxem.Substitution((-1, 0)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="a column for each leaf"):
        jaxem.fit(jaxem.Substitution(PARENTS), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="integer codes"):
        jaxem.fit(jaxem.Substitution(PARENTS), np.full((3, 4), 0.5))
    with pytest.raises(ValueError, match="frequencies must be 4 positive numbers"):
        jaxem.fit(jaxem.Substitution(PARENTS, jaxem.GTR([0.5, 0.5, 0.5, 0.5])), np.zeros((3, 4)))
