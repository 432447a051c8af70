"""Information matrices, standard errors, intervals, EM's rate: against published figures, formulas and differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from linkage import CELLS, COUNTS, PI, by_cells, by_counts
from scipy import stats
from support import read

import jaxem
from jaxem.constraints import chart
from jaxem.evaluate.information import METHODS


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


# --- genetic linkage (Dempster, Laird and Rubin 1977, section 1) ------------------------------------
LINKAGE = {"scores": (by_cells(), CELLS, COUNTS), "natural": (by_counts(), COUNTS[None], None)}


@pytest.mark.parametrize("by", LINKAGE)
def test_genetic_linkage(by):
    model, data, weight = LINKAGE[by]
    pi = float(PI)
    found = {m: jaxem.information(model, {"pi": pi}, data, weight=weight, method=m) for m in ("observed", "louis", "oakes")}
    own_units = (pi * (1 - pi)) ** 2  # squared derivative of pi in its logit
    for method in ("louis", "oakes"):
        np.testing.assert_allclose(found[method].matrix, found["observed"].matrix, rtol=1e-8)
        np.testing.assert_allclose(found[method].complete / own_units, [[435.31785]], rtol=1e-7)
        np.testing.assert_allclose(jaxem.em_rate(found[method]), 0.13277873, atol=1e-8)
    np.testing.assert_allclose(1 / jaxem.standard_errors(found["observed"])["pi"] ** 2, 377.5169, rtol=1e-7)
    np.testing.assert_allclose(found["observed"].score, 0, atol=1e-8)


def test_one_datum_has_no_scores_to_compare():
    model, data, _ = LINKAGE["natural"]
    with pytest.raises(ValueError, match="more than the 1 free coordinates"):
        jaxem.information(model, {"pi": 0.6}, data, method="sandwich")


# --- two Poissons: deaths of women over 80 by day, The Times 1910-1912 (Hasselblad 1969) ------------
DEATHS = np.arange(10.0)
DAYS = np.array([162.0, 267, 271, 185, 111, 61, 27, 8, 3, 1])
TWO = jaxem.Mixture(2, jaxem.Poisson())
START = {"weights": np.array([0.3, 0.7]), "components": {"rate": np.array([1.0, 2.5])}}


@pytest.fixture(scope="module")
def deaths():
    stop = jaxem.Stop(None, None, 1e-13)
    return jaxem.fit(TWO, DEATHS, weight=DAYS, init=START, stop=stop, max_steps=20_000)


def derivatives(p, a, b):
    """Scores (3, 10) and Hessians (3, 3, 10) of log p(x) in (p, a, b), by hand."""
    x, factorial = DEATHS, np.array([math.factorial(int(k)) for k in DEATHS])
    first, second = (np.exp(-rate) * rate**x / factorial for rate in (a, b))
    density = p * first + (1 - p) * second
    slopes = first * (x / a - 1), second * (x / b - 1)
    gradient = np.stack([first - second, p * slopes[0], (1 - p) * slopes[1]]) / density
    hessian = np.zeros((3, 3, 10))
    hessian[0, 1] = hessian[1, 0] = slopes[0]
    hessian[0, 2] = hessian[2, 0] = -slopes[1]
    hessian[1, 1] = p * first * ((x / a - 1) ** 2 - x / a**2)
    hessian[2, 2] = (1 - p) * second * ((x / b - 1) ** 2 - x / b**2)
    return gradient, hessian / density - gradient[:, None] * gradient[None]


def three(errors):
    return np.array([errors["weights"][0], *errors["components"]["rate"][:2]])


def test_two_poissons(deaths):
    np.testing.assert_allclose(deaths.loglik, -1989.945859883, atol=5e-10)
    found = {m: jaxem.information(TWO, deaths, DEATHS, weight=DAYS, method=m) for m in METHODS}
    for method in ("louis", "oakes"):
        largest = np.abs(found["observed"].matrix).max()
        np.testing.assert_allclose(found[method].matrix, found["observed"].matrix, atol=1e-8 * largest)

    gradient, hessian = derivatives(deaths.params["weights"][0], *deaths.params["components"]["rate"])
    bread = np.linalg.inv(-hessian @ DAYS)
    outer = (gradient * DAYS) @ gradient.T
    expected = {"observed": bread, "empirical": np.linalg.inv(outer), "sandwich": bread @ outer @ bread}
    for method, covariance in expected.items():
        errors = jaxem.standard_errors(found[method])
        # The smallest eigenvalue is 1/200 of the largest: two digits of the fit's 1e-11 are lost.
        np.testing.assert_allclose(three(errors), np.sqrt(np.diag(covariance)), rtol=1e-7)
        np.testing.assert_allclose(errors["weights"][0], errors["weights"][1], rtol=1e-12)
    # As published, at estimates rounded to a few digits, to which this flat likelihood is sensitive.
    np.testing.assert_allclose(three(jaxem.standard_errors(found["observed"])), [0.1948, 0.3503, 0.2507], rtol=1e-3)


def test_rate_of_em_is_the_missing_fraction(deaths):
    louis = jaxem.information(TWO, deaths, DEATHS, weight=DAYS, method="louis")
    lost = jaxem.missing_information(louis)
    assert (np.diff(lost.fraction) <= 0).all() and -1e-12 < lost.fraction[-1] and lost.fraction[0] < 1
    # Errors shrink by the rate, what the log-likelihood still lacks by its square.
    init = {**deaths.params, "weights": deaths.params["weights"] + jnp.array([0.002, -0.002])}
    again = jaxem.fit(TWO, DEATHS, weight=DAYS, init=init, stop=jaxem.Stop(None), max_steps=200)
    gains = np.diff(again.history)[[50, 150]]
    np.testing.assert_allclose((gains[1] / gains[0]) ** (1 / 200), jaxem.em_rate(louis), atol=1e-5)
    with pytest.raises(TypeError, match="'louis' or 'oakes'"):
        jaxem.em_rate(jaxem.information(TWO, deaths, DEATHS, weight=DAYS))


def test_intervals_stay_in_the_parameter_space(deaths):
    found = jaxem.information(TWO, deaths, DEATHS, weight=DAYS)
    errors = jaxem.standard_errors(found)
    lower, upper = jaxem.intervals(found, 0.95)
    rate, error = deaths.params["components"]["rate"], errors["components"]["rate"]
    np.testing.assert_allclose(np.log(upper["components"]["rate"] / rate), 1.959963984540054 * error / rate, rtol=1e-12)
    np.testing.assert_allclose(lower["components"]["rate"] * upper["components"]["rate"], rate**2, rtol=1e-12)
    np.testing.assert_allclose(lower["weights"] + upper["weights"][::-1], 1, rtol=1e-12)
    assert (lower["weights"] > 0).all() and (jaxem.intervals(found, 1 - 1e-9)[1]["weights"] < 1).all()
    with pytest.raises(ValueError, match="level must lie strictly between 0 and 1"):
        jaxem.intervals(found, 95)


def test_inside_jit_and_vmap(deaths):
    def errors(params, weight):
        return jaxem.standard_errors(jaxem.information(TWO, params, DEATHS, weight=weight))

    alone = jaxem.standard_errors(jaxem.information(TWO, deaths, DEATHS, weight=DAYS))
    # Twice the data: errors smaller by sqrt 2.
    both = jax.jit(jax.vmap(errors, (None, 0)))(deaths.params, jnp.stack([DAYS, 2 * DAYS]))
    np.testing.assert_allclose(three(jax.tree.map(lambda x: x[0], both)), three(alone), rtol=1e-9)
    np.testing.assert_allclose(three(jax.tree.map(lambda x: x[1], both)), three(alone) / math.sqrt(2), rtol=1e-9)


def test_an_empty_component_is_left_out(deaths):
    """A weight of zero, and the rate of which the data then say nothing; also a rate of zero."""
    params = {
        "weights": jnp.append(deaths.params["weights"], 0.0),
        "components": {"rate": jnp.append(deaths.params["components"]["rate"], 0.0)},
    }
    for method in ("observed", "louis"):
        found = jaxem.information(jaxem.Mixture(3, jaxem.Poisson()), params, DEATHS, weight=DAYS, method=method)
        assert found.boundary_leaves() == {"components.rate": 1, "weights": 1}
        errors = jaxem.standard_errors(found)
        assert np.isnan(errors["weights"][2]) and np.isnan(errors["components"]["rate"][2])
        two = jaxem.standard_errors(jaxem.information(TWO, deaths, DEATHS, weight=DAYS))
        np.testing.assert_allclose(three(errors), three(two), rtol=1e-9)
    np.testing.assert_allclose(jaxem.em_rate(found), 0.99566622, atol=1e-7)
    assert "left out: 1 of components.rate, 1 of weights" in str(found)


# --- Gaussian mixtures ------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def geyser(faithful):
    return jaxem.fit(jaxem.GaussianMixture(2), faithful, key=jax.random.key(0), stop=jaxem.Stop(None, None, 1e-12))


@pytest.mark.published
def test_gaussian_mixture_against_differences(faithful, geyser):
    model = geyser.model
    vector, back = chart(model.constraints, geyser.params)
    found = jaxem.information(model, geyser, faithful, block_size=64)
    step = 1e-3 / np.sqrt(np.diag(found.matrix))  # a thousandth of a standard error, other coordinates held

    @jax.jit
    def loglik(points):
        return jax.lax.map(lambda v: model.log_prob(back(v), faithful).sum(), points, batch_size=64)

    p = len(vector)
    i, j = np.triu_indices(p)
    e = np.eye(p) * step
    corners = np.stack([vector + a * e[i] + b * e[j] for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))])
    values = loglik(corners.reshape(-1, p)).reshape(4, -1)
    differences = (values[0] - values[1] - values[2] + values[3]) / (4 * step[i] * step[j])
    scaled = (np.asarray(found.matrix)[i, j] + differences) * step[i] * step[j] / 1e-6
    # Scaled to unit information. Rounding: 1e-13 of log-likelihoods of 1e3 over steps of 1e-6; truncation is 1e-6.
    np.testing.assert_allclose(scaled, 0, atol=5e-4)

    errors = jaxem.standard_errors(found)
    covariance = found.covariance()
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), ravel_pytree(errors)[0], rtol=1e-12)
    spread = errors["components"]["covariance"]
    np.testing.assert_array_equal(spread, jnp.swapaxes(spread, 1, 2))


@pytest.mark.published
def test_float32(faithful, geyser):
    """Offsets of hundreds of standard deviations, in single precision."""
    exact = jaxem.standard_errors(jaxem.information(geyser.model, geyser, faithful, block_size=64))
    offset = np.array([300.0, 5_000.0])
    params = jax.tree.map(np.array, geyser.params)
    params["components"]["mean"] += offset
    moved, params = jax.tree.map(lambda x: x.astype(np.float32), (faithful + offset, params))
    with jax.enable_x64(False):
        single = jaxem.information(geyser.model, params, moved, block_size=64)
        assert single.matrix.dtype == np.float32 and not single.boundary.any()
        got = np.asarray(ravel_pytree(jaxem.standard_errors(single))[0])
    # float32 rounds the moved data to 1e-3 of a within-cluster standard deviation.
    np.testing.assert_allclose(got, ravel_pytree(exact)[0], rtol=5e-3)


def test_a_component_at_its_floor_is_left_out(faithful, geyser):
    components = jax.tree.map(np.array, geyser.params["components"])
    components["covariance"][0] = 1e-9 * np.cov(faithful.T)
    params = {**geyser.params, "components": components}
    found = jaxem.information(geyser.model, params, faithful, block_size=64)
    assert found.boundary_leaves()["components.covariance"] == 3
    assert found.boundary[:6].tolist() == [True] * 3 + [False] * 3


# --- floors: what lies at one is left out, the rest keeps its errors --------------------------------
def test_one_exact_line_leaves_the_other_its_errors():
    rng = np.random.default_rng(0)
    inputs, first = rng.uniform(-1, 1, (200, 1)), rng.random(200) < 0.4
    line = np.where(first, 1 + 2 * inputs[:, 0], 9 - inputs[:, 0] + 0.5 * rng.normal(size=200))
    model, data = jaxem.Mixture(2, jaxem.LinearRegression(floor=1e-4)), {"y": line, "inputs": inputs}
    init = {
        "weights": np.array([0.4, 0.6]),
        "components": {
            "intercept": np.array([1.0, 9.0]), "coefficients": np.array([[2.0], [-1.0]]), "variance": np.array([1e-4, 0.25]),
        },
    }  # fmt: skip
    result = jaxem.fit(model, data, init=init, stop=jaxem.Stop(None, None, 1e-12))
    assert int(result.status) == jaxem.Status.DEGENERATE
    errors = jaxem.standard_errors(jaxem.information(model, result, data))
    np.testing.assert_array_equal(np.isnan(errors["components"]["variance"]), [True, False])
    own = errors["components"]
    # The lines lie far apart, so their errors are those of least squares: (Z^T Z)^-1 variance.
    for k, rows in enumerate((first, ~first)):
        z = np.stack([inputs[rows, 0], np.ones(rows.sum())], 1)
        wanted = np.sqrt(np.diag(np.linalg.inv(z.T @ z)) * result.params["components"]["variance"][k])
        np.testing.assert_allclose([own["coefficients"][k, 0], own["intercept"][k]], wanted, rtol=1e-6)
    spread = result.params["components"]["variance"][1]
    np.testing.assert_allclose(own["variance"][1], spread * math.sqrt(2 / (~first).sum()), rtol=1e-6)
    np.testing.assert_allclose(errors["weights"], math.sqrt(first.mean() * (1 - first.mean()) / 200), rtol=1e-6)


def test_an_exact_line_with_known_responses_keeps_the_errors_of_its_coefficients():
    inputs = np.random.default_rng(0).normal(size=(50, 1))
    y = 1 + 2 * inputs[:, 0]
    model, params = jaxem.CensoredRegression(floor=1e-2), {"coefficients": np.array([2.0, 1.0]), "variance": np.array(1e-2)}
    errors = jaxem.standard_errors(jaxem.information(model, params, {"lower": y, "upper": y, "inputs": inputs}))
    z = np.concatenate([inputs, np.ones((50, 1))], 1)
    np.testing.assert_allclose(errors["coefficients"], 0.1 * np.sqrt(np.diag(np.linalg.inv(z.T @ z))), rtol=1e-8)
    assert np.isnan(errors["variance"])


def test_one_noise_at_its_floor_leaves_the_others_their_errors():
    rng = np.random.default_rng(0)
    level = np.cumsum(rng.normal(size=(300, 1)), 0)
    y = level + rng.normal(size=(300, 2)) * [0.0, 1.0]
    fixed = {
        "transition": np.eye(1),
        "observation": np.ones((2, 1)),
        "initial_mean": np.zeros(1),
        "initial_covariance": np.eye(1),
    }
    model = jaxem.StateSpace(1, fixed=fixed, floor=1e-3)
    params = {**fixed, "state_noise": np.array([[1.0]]), "observation_noise": np.array([1e-3, 1.0])}
    found = jaxem.information(model, params, y)
    errors = jaxem.standard_errors(found)
    np.testing.assert_array_equal(np.isnan(errors["observation_noise"]), [True, False])
    # The state is seen all but exactly: what is left of the noise is seen 300 times, and so are the steps.
    np.testing.assert_allclose(errors["observation_noise"][1], math.sqrt(2 / 300), rtol=0.2)
    np.testing.assert_allclose(errors["state_noise"], math.sqrt(2 / 300), rtol=0.2)


def test_prior_is_part_of_it(deaths):
    """A Dirichlet prior on the weights adds its pseudo-counts to the complete data."""
    model = jaxem.Mixture(2, jaxem.Poisson(), jaxem.Dirichlet(51.0))
    plain = jaxem.information(TWO, deaths, DEATHS, weight=DAYS, method="louis")
    for method in ("observed", "louis"):
        with_prior = jaxem.information(model, deaths, DEATHS, weight=DAYS, method=method)
        p = deaths.params["weights"][0]
        added = np.asarray(with_prior.matrix - plain.matrix)
        np.testing.assert_allclose(added[2, 2], 100 * p * (1 - p), rtol=1e-8)
        np.testing.assert_allclose(np.delete(added.ravel(), 8), 0, atol=1e-9 * np.abs(plain.matrix).max())


# --- hidden Markov models ---------------------------------------------------------------------------
def test_structural_zeros_of_a_chain():
    rng = np.random.default_rng(0)
    states = (np.arange(60)[None] >= rng.geometric(0.05, 40)[:, None]).astype(int)
    x = rng.poisson(np.array([2.0, 9.0])[states]).astype(float)
    init = {
        "initial": np.array([1.0, 0.0]),
        "transition": np.array([[0.9, 0.1], [0.0, 1.0]]),
        "emission": {"rate": np.array([2.0, 9.0])},
    }
    data = jaxem.sequences(list(x))
    result = jaxem.fit(jaxem.HMM(2, jaxem.Poisson()), data, init=init, stop=jaxem.Stop(None, None, 1e-12))
    found = jaxem.information(result.model, result, data)
    assert found.boundary_leaves() == {"initial": 1, "transition": 1}
    errors = jaxem.standard_errors(found)
    np.testing.assert_array_equal(np.isnan(errors["transition"]), [[False, False], [True, True]])
    assert np.isnan(errors["initial"]).all()
    # Rates far apart: states are nearly seen, so nearly the binomial's and the Poisson's own errors.
    stay, n = float(result.params["transition"][0, 0]), (states[:, :-1] == 0).sum()
    np.testing.assert_allclose(errors["transition"][0], math.sqrt(stay * (1 - stay) / n), rtol=0.1)
    np.testing.assert_allclose(
        errors["emission"]["rate"][1] ** 2, result.params["emission"]["rate"][1] / states.sum(), rtol=0.1
    )


# --- what EM drives to zero without end ---------------------------------------------------------------
def test_a_chain_whose_transitions_creep_to_zero_has_errors():
    """Major earthquakes by year (Zucchini and MacDonald 2009), three states: an entry ends at 1e-23, others at 1e-64, 1e-180."""
    counts = read("earthquakes.csv")[:, -1]
    init = {
        "initial": np.full(3, 1 / 3),
        "transition": np.full((3, 3), 0.1) + 0.7 * np.eye(3),
        "emission": {"rate": np.array([13.0, 20.0, 30.0])},
    }
    model, data = jaxem.HMM(3, jaxem.Poisson()), jaxem.sequences([counts])
    result = jaxem.fit(model, data, init=init, stop=jaxem.Stop(loglik_rtol=1e-14))
    assert float(result.loglik) == pytest.approx(-328.5274833802, abs=1e-8)
    found = jaxem.information(model, result, data)
    assert found.boundary_leaves() == {"initial": 2, "transition": 1} and not found.flat_leaves()
    errors = jaxem.standard_errors(found)
    start, zero = found.params["initial"] > 0.5, found.params["transition"] < 1e-9
    np.testing.assert_array_equal(np.isnan(errors["transition"]), zero)

    # The same by a forward pass of its own and differences, in rates and all but the last free entry of each row.
    free = [np.flatnonzero(~row) for row in np.asarray(zero)]

    def loglik(theta):
        rate, rest, p = theta[:3], list(theta[3:]), np.zeros((3, 3))
        for i, columns in enumerate(free):
            p[i, columns[:-1]] = [rest.pop(0) for _ in columns[:-1]]
            p[i, columns[-1]] = 1 - p[i].sum()
        density, forward, total = stats.poisson.pmf(counts[:, None], rate), np.asarray(start, float), 0.0
        for t, now in enumerate(density):
            forward = (forward @ p if t else forward) * now
            total, forward = total + np.log(forward.sum()), forward / forward.sum()
        return total

    p = np.asarray(found.params["transition"])
    theta = np.concatenate([found.params["emission"]["rate"], *[p[i, columns[:-1]] for i, columns in enumerate(free)]])
    step = 1e-4 * np.abs(theta) * np.eye(len(theta))
    hessian = np.array([[
        loglik(theta + a + b) - loglik(theta + a - b) - loglik(theta - a + b) + loglik(theta - a - b) for b in step
    ] for a in step])  # fmt: skip
    wanted = np.sqrt(np.diag(np.linalg.inv(-hessian / np.outer(2 * step.sum(1), 2 * step.sum(1)))))
    got = [errors["emission"]["rate"], *[errors["transition"][i, columns[:-1]] for i, columns in enumerate(free)]]
    np.testing.assert_allclose(np.concatenate(got), wanted, rtol=1e-4)
    with pytest.raises(ValueError, match=r"got N=1: use method='observed', or jaxem\.bootstrap\(method='parametric'\)"):
        jaxem.information(model, result, data, method="empirical")


def test_a_chain_of_narrow_states_has_errors():
    """A first state at 1e-195, and a state so narrow that the densities of others underflow beside it."""
    x, mean = np.array([0.0, 0.1, 9, 8.99, 0.2, 9.01, -0.3, 9, 9.02, 0.4])[:, None], np.array([[0.0], [9.0]])
    params = {
        "initial": np.array([1.0, 1e-195]),
        "transition": np.array([[0.4, 0.6], [0.5, 0.5]]),
        "emission": {"mean": mean, "covariance": np.array([[[0.05]], [[1e-4]]])},
    }
    model, data = jaxem.HMM(2, jaxem.Gaussian()), jaxem.sequences([x, x])
    found = jaxem.information(model, params, data)
    assert np.isfinite(found.matrix).all() and found.boundary_leaves()["initial"] == 1
    # States are seen: each mean is that of its own steps.
    n = 2 * np.array([(x < 5).sum(), (x > 5).sum()])
    curvature = np.diagonal(found.matrix)[[i for i, name in enumerate(found._names()) if name == "emission.mean"]]
    np.testing.assert_allclose(curvature, n / np.array([0.05, 1e-4]), rtol=1e-9)


# --- flat directions: told as such, and what they leave alone has errors --------------------------
def test_two_columns_never_seen_together_are_flat():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)) @ np.linalg.cholesky(np.full((3, 3), 0.5) + 0.5 * np.eye(3)).T
    x[:150, 0] = x[150:, 2] = np.nan
    model = jaxem.MultivariateNormal()
    starts = [{"mean": np.zeros(3), "covariance": np.array([[1, 0.3, r], [0.3, 1, 0.3], [r, 0.3, 1]])} for r in (-0.5, 0.5)]
    result, other = (jaxem.fit(model, x, init=start) for start in starts)
    assert result.converged and other.converged
    assert abs(result.params["covariance"][0, 2] - other.params["covariance"][0, 2]) > 0.3
    found = jaxem.information(model, result, x)
    assert found.flat_leaves() == {"covariance": pytest.approx(1)}
    with pytest.raises(jaxem.SingularInformationError, match="log-likelihood flat in a direction of covariance: the data do"):
        jaxem.standard_errors(found)
    assert "flat in a direction of covariance" in str(found)
    # Of what each row shows there are errors, whichever of the maxima EM came to.
    pairs = lambda p: (p["mean"], p["covariance"][:2, :2], p["covariance"][1:, 1:])  # noqa: E731
    errors = jaxem.standard_errors(found, pairs)
    for a, b in zip(errors, jaxem.standard_errors(jaxem.information(model, other, x), pairs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.01)  # EM stopped that far from the maximum
    # The second column is seen whole.
    np.testing.assert_allclose(errors[0][1] ** 2, result.params["covariance"][1, 1] / 300, rtol=0.01)
    with pytest.raises(jaxem.SingularInformationError, match="covariance"):
        jaxem.standard_errors(found, lambda p: p["covariance"][0, 2])


def test_more_latent_classes_than_the_tables_can_tell_are_flat():
    table = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    weight, model = np.array([90.0, 40, 50, 120]), jaxem.Mixture(2, jaxem.Bernoulli())
    result = jaxem.fit(model, np.repeat(table, weight.astype(int), 0), key=jax.random.key(1))
    rows = np.repeat(table, 2, 0)  # more rows than coordinates
    found = jaxem.information(model, result, rows, weight=np.repeat(weight / 2, 2))
    assert found.flat_leaves().keys() == {"components.probs", "weights"}
    assert sum(found.flat_leaves().values()) == pytest.approx(2)  # five parameters, three free frequencies
    errors = jaxem.standard_errors(found, lambda p: p["weights"] @ p["components"]["probs"])
    share = weight @ table / 300
    np.testing.assert_allclose(errors, np.sqrt(share * (1 - share) / 300), rtol=1e-3)


def test_probabilities_next_to_zero_and_one_are_left_out():
    """An item that repeats another parts the classes: its probabilities end at the numbers next to 0 and 1."""
    item = np.array([0.0, 0, 0, 1, 1, 1] * 10)
    x = np.stack([item, item, np.arange(60) % 4 == 0], 1)
    probs = np.stack([np.array([2e-308, 2e-308, 0.2]), np.array([1 - 1e-16, 1 - 1e-16, 0.3])])
    probs[:, 2] = [x[item == 0, 2].mean(), x[item == 1, 2].mean()]
    model, params = jaxem.Mixture(2, jaxem.Bernoulli()), {"weights": np.full(2, 0.5), "components": {"probs": probs}}
    found = jaxem.information(model, params, x)
    assert found.boundary_leaves() == {"components.probs": 4}
    errors = jaxem.standard_errors(found)["components"]["probs"]
    np.testing.assert_allclose(errors[:, 2], np.sqrt(probs[:, 2] * (1 - probs[:, 2]) / 30), rtol=1e-8)


# --- what is singular, and bad input ----------------------------------------------------------------
def test_singular_information_is_named_and_not_inverted():
    model = jaxem.log_marginal(
        natural=lambda p: {"mean": p["a"] + p["b"], "square": -((p["a"] + p["b"]) ** 2) / 2, "known": p["c"]},
        log_marginal=lambda eta, x: x * eta["mean"] + eta["square"] - x**2 * eta["known"] ** 2 / 2 + jnp.log(eta["known"]),
        init={"a": 0.0, "b": 0.0, "c": 1.0},
    )
    x = np.random.default_rng(0).normal(size=50)
    params = {"a": 0.1, "b": 0.2, "c": 1.0}
    found = jaxem.information(model, params, x)
    assert bool(found.singular)
    with pytest.raises(jaxem.SingularInformationError, match=r"singular .* in a direction of a, b: "):
        jaxem.standard_errors(found)
    assert "in a direction of a, b" in str(found)
    errors = jax.jit(lambda p: jaxem.standard_errors(jaxem.information(model, p, x)))(jax.tree.map(jnp.asarray, params))
    assert all(np.isnan(e) for e in jax.tree.leaves(errors))


def test_a_saddle_is_no_maximum():
    equal = {"weights": np.array([0.5, 0.5]), "components": {"rate": np.full(2, 2.0)}}
    spread = np.array([200.0, 0, 0, 0, 0, 0, 0, 0, 0, 200.0])
    found = jaxem.information(TWO, equal, DEATHS, weight=spread)
    with pytest.raises(jaxem.SingularInformationError, match=r"not positive definite .* components\.rate"):
        jaxem.standard_errors(found)


def test_bad_input(deaths):
    with pytest.raises(ValueError, match="method must be one of observed, louis"):
        jaxem.information(TWO, deaths, DEATHS, method="fisher")
    with pytest.raises(TypeError, match="LDA has per-datum parameters or a bound"):
        jaxem.information(jaxem.LDA(2), {}, np.ones((3, 4)))
    with pytest.raises(ValueError, match="weight must have shape"):
        jaxem.information(TWO, deaths, DEATHS, weight=DAYS[:3])
    with pytest.raises(ValueError, match=r"params: components\.rate must be non-negative"):
        jaxem.information(TWO, {**deaths.params, "components": {"rate": np.array([-1.0, 1.0])}}, DEATHS)
    with pytest.raises(ValueError, match="params: weights must have shape"):
        jaxem.information(TWO, {**deaths.params, "weights": np.ones(3) / 3}, DEATHS)
