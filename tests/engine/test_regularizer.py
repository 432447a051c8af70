"""Penalties, priors, frozen and tied leaves, on models with and without a closed M-step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import clusters

import jaxem
from jaxem.constraints import Positive, Simplex
from jaxem.fitting import segments, solve
from jaxem.numerics.logs import safe_log

TIGHT = jaxem.Stop(loglik_rtol=None, param_rtol=1e-9)


@pytest.fixture
def regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6)) @ (np.eye(6) + 0.3 * rng.normal(size=(6, 6)))
    y = x @ np.array([2.0, 0, -1, 0, 0, 0.5]) + 1 + rng.normal(size=80)
    return {"x": x, "y": y}


def one_regression(params, row):
    """A single Gaussian regression of unit variance: a mixture of one."""
    return -((row["y"] - row["x"] @ params["coef"] - params["intercept"]) ** 2)[None] / 2


START = {"coef": np.zeros(6), "intercept": 0.0}


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0])
def test_l1_is_the_lasso(x64, regression, alpha):
    linear = pytest.importorskip("sklearn.linear_model")
    lasso = linear.Lasso(alpha=alpha, tol=1e-14, max_iter=1_000_000).fit(regression["x"], regression["y"])
    model = jaxem.log_joint(one_regression, init=START)
    result = jaxem.fit(model, regression, penalty=jaxem.L1(80 * alpha, ("coef",)), stop=TIGHT)
    assert bool(result.converged)
    np.testing.assert_allclose(result.params["coef"], lasso.coef_, atol=1e-7)
    np.testing.assert_allclose(result.params["intercept"], lasso.intercept_, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(result.params["coef"]) == 0, lasso.coef_ == 0)
    wanted = float(result.loglik) - 80 * alpha * np.abs(lasso.coef_).sum()
    assert float(result.objective) == pytest.approx(wanted, abs=1e-5)


def test_l1_in_float32(regression):
    with jax.enable_x64(False):
        data = {name: x.astype(np.float32) for name, x in regression.items()}
        model = jaxem.log_joint(one_regression, init=START)
        result = jaxem.fit(model, data, penalty=jaxem.L1(24.0, ("coef",)), max_steps=20)
        assert result.params["coef"].dtype == np.float32 and (np.asarray(result.params["coef"])[[1, 4, 5]] == 0).all()


def test_strengths_are_numbers_and_penalties_add_up(x64, regression):
    linear = pytest.importorskip("sklearn.linear_model")
    model = jaxem.log_joint(one_regression, init=START)

    def fit(l1, l2):
        both = (jaxem.L1(l1, ("coef",)), jaxem.L2(l2, ("coef",)))
        return jaxem.fit(model, regression, penalty=both, stop=TIGHT)

    fit(1.0, 2.0)
    sizes = solve.begin_jit._cache_size(), segments.run_segment._cache_size()
    result = fit(40.0, 20.0)
    assert (solve.begin_jit._cache_size(), segments.run_segment._cache_size()) == sizes
    # scikit-learn: |y - Xw|^2 / (2 n) + alpha * ratio * |w|_1 + alpha * (1 - ratio) / 2 * |w|^2
    net = linear.ElasticNet(alpha=60 / 80, l1_ratio=40 / 60, tol=1e-14, max_iter=1_000_000)
    np.testing.assert_allclose(result.params["coef"], net.fit(regression["x"], regression["y"]).coef_, atol=1e-7)


@pytest.mark.published
def test_a_log_prior_equals_the_conjugate_one(x64):
    x = clusters(120, 1, 2, seed=2, spread=1)
    start = {
        "weights": np.array([0.5, 0.5]),
        "components": {"mean": np.array([[-1.0], [1.0]]), "covariance": np.ones((2, 1, 1))},
    }
    prior = jaxem.GaussianMixture(2, weights_prior=jaxem.Dirichlet(5.0))
    one = jaxem.fit(prior, x, init=start, stop=TIGHT)
    two = jaxem.fit(jaxem.GaussianMixture(2), x, init=start, log_prior=lambda p: 4 * safe_log(p["weights"]).sum(), stop=TIGHT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one.params, two.params)
    three = jaxem.fit(jaxem.GaussianMixture(2), x, init=start, penalty=lambda p: -4 * safe_log(p["weights"]).sum(), stop=TIGHT)
    assert float(two.objective) == pytest.approx(float(three.objective), abs=1e-8)


# --- frozen ------------------------------------------------------------------------------------
@pytest.mark.published
@pytest.mark.parametrize("algorithm", [jaxem.EM(), jaxem.Squarem(), jaxem.ECM(), jaxem.GEM()])
def test_frozen_means_of_a_mixture(x64, algorithm):
    """A closed form would give covariances about its own means; about frozen ones the M-step is another."""
    x = clusters(150, 2, 2, seed=1, spread=1)
    start = {
        "weights": np.array([0.4, 0.6]),
        "components": {"mean": x[:2] * 0.5, "covariance": np.stack([np.eye(2), 2 * np.eye(2)])},
    }
    model = jaxem.GaussianMixture(2)
    result = jaxem.fit(
        model, x, init=start, frozen={"weights": False, "components": {"mean": True, "covariance": False}},
        algorithm=algorithm, stop=jaxem.Stop(None, param_rtol=1e-6), max_steps=500, standardize=False,
    )  # fmt: skip
    np.testing.assert_array_equal(result.params["components"]["mean"], start["components"]["mean"])
    assert (np.diff(np.asarray(result.history)) > -1e-9).all()
    # Stationary: weighted second moments about the frozen means, weights the mean responsibilities.
    r = np.asarray(model.posterior(result.params, x))
    residual = x[:, None] - start["components"]["mean"]
    moments = np.einsum("nk,nkd,nke->kde", r, residual, residual) / r.sum(0)[:, None, None]
    tolerance = 2e-2 if isinstance(algorithm, jaxem.GEM) else 1e-4
    np.testing.assert_allclose(result.params["components"]["covariance"], moments, atol=tolerance)
    np.testing.assert_allclose(result.params["weights"], r.mean(0), atol=tolerance)


def test_frozen_transition_of_a_chain(x64):
    counts = np.random.default_rng(0).poisson(np.repeat([4.0, 9.0, 4.0, 9.0], 25))
    start = {
        "initial": np.array([0.5, 0.5]), "transition": np.array([[0.9, 0.1], [0.2, 0.8]]),
        "emission": {"rate": np.array([3.0, 10.0])},
    }  # fmt: skip
    result = jaxem.fit(jaxem.HMM(2, jaxem.Poisson()), jaxem.sequences([counts]), init=start, frozen=("transition",))
    np.testing.assert_array_equal(result.params["transition"], start["transition"])
    assert bool(result.converged) and not np.allclose(result.params["emission"]["rate"], [3, 10])


# --- tied --------------------------------------------------------------------------------------
def two_lines(params, row):
    """A mixture of two regressions, each with its own deviation."""
    means = jnp.stack([params["first"]["slope"] * row["x"], params["second"]["slope"] * row["x"]])
    scales = jnp.stack([params["first"]["scale"], params["second"]["scale"]])
    return safe_log(params["weights"]) - jnp.log(scales) - ((row["y"] - means) / scales) ** 2 / 2


def shared_scale(params, row):
    scale = params["scale"]
    return two_lines({**params, "first": {"slope": params["slopes"][0], "scale": scale},
                      "second": {"slope": params["slopes"][1], "scale": scale}}, row)  # fmt: skip


@pytest.mark.parametrize("tied", [(("first.scale", "second.scale"),), {"first": {"scale": 1}, "second": {"scale": 1}}])
def test_tied_leaves_are_one_parameter(x64, tied):
    rng = np.random.default_rng(0)
    x = rng.normal(size=120)
    data = {"x": x, "y": np.where(rng.random(120) < 0.4, 2.0, -1.0) * x + 0.3 * rng.normal(size=120)}
    weights = np.array([0.5, 0.5])
    line = {"slope": sets_real(), "scale": Positive()}
    apart = jaxem.log_joint(
        two_lines, constraints={"weights": Simplex(), "first": line, "second": line},
        init={"weights": weights, "first": {"slope": 1.0, "scale": 0.5}, "second": {"slope": -0.5, "scale": 1.5}},
    )  # fmt: skip
    together = jaxem.log_joint(
        shared_scale, constraints={"weights": Simplex(), "slopes": sets_real(), "scale": Positive()},
        init={"weights": weights, "slopes": np.array([1.0, -0.5]), "scale": 1.0},
    )  # fmt: skip
    one = jaxem.fit(apart, data, tied=tied, stop=jaxem.Stop(loglik_rtol=1e-13))
    two = jaxem.fit(together, data, stop=jaxem.Stop(loglik_rtol=1e-13))
    assert float(one.params["first"]["scale"]) == float(one.params["second"]["scale"])
    assert float(one.loglik) == pytest.approx(float(two.loglik), abs=1e-7)
    np.testing.assert_allclose(one.params["first"]["scale"], two.params["scale"], atol=1e-4)


def sets_real():
    return jaxem.constraints.Real()


# --- bad input ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"penalty": jaxem.L1(1.0, ("beta",))}, ValueError, r"L1.leaves must name leaves .* coef, intercept; got 'beta'"),
        ({"penalty": 3}, TypeError, "penalty must be a function of the parameters; got int"),
        ({"log_prior": "flat"}, TypeError, "log_prior must be a function of the parameters; got str"),
        ({"frozen": ("slope",)}, ValueError, r"frozen must name leaves .* coef, intercept; got 'slope'"),
        ({"frozen": {"coef": 1}}, TypeError, "frozen must be names of leaves or a prefix tree of bools"),
        ({"tied": (("coef", "slope"),)}, ValueError, "tied must name leaves .* got 'slope'"),
        ({"tied": (("coef", "intercept"),)}, ValueError, "tied leaves must have equal shapes"),
        ({"tied": ("coef", "intercept")}, TypeError, "tied must be groups of names"),
    ],
)
def test_bad_input(x64, regression, options, error, message):
    compiled = segments.run_segment._cache_size()
    with pytest.raises(error, match=message):
        jaxem.fit(jaxem.log_joint(one_regression, init=START), regression, **options)
    assert segments.run_segment._cache_size() == compiled


def test_l1_needs_real_leaves(x64):
    with pytest.raises(ValueError, match=r"L1.leaves must be real-valued leaves; weights is constrained to Simplex"):
        jaxem.fit(jaxem.GaussianMixture(2), clusters(30, 1, 2), key=jax.random.key(0), penalty=jaxem.L1(1.0, ("weights",)))
