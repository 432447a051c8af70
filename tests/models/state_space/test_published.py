"""What takes EM to the end: known entries in every block, dynamic factors of US macro data, long series in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

pytestmark = [pytest.mark.published, pytest.mark.usefixtures("optimised")]
nan = np.nan


def test_what_is_fixed_stays_and_the_rest_is_the_maximum(x64):
    """Known entries in every block, noise that correlates rows: EM ends where the gradient in what is free vanishes."""
    rng = np.random.default_rng(2)
    fixed = {
        "initial_mean": np.array([nan, 0.5]),
        "initial_covariance": np.array([[nan, 0.0], [0.0, 2.0]]),
        "transition": np.array([[nan, 0.3], [0.0, nan]]),
        "transition_input": np.array([[nan], [0.0]]),
        "state_noise": np.array([[nan, nan], [nan, nan]]),
        "observation": np.array([[1.0, 0.0], [nan, 1.0], [0.5, nan]]),
        "observation_input": np.array([[0.0], [nan], [nan]]),
        "observation_noise": np.array([[nan, nan, 0.0], [nan, nan, 0.0], [0.0, 0.0, 0.7]]),
    }
    model = jaxem.StateSpace(2, fixed=fixed, observation_noise="full")
    truth = model.with_known({
        "initial_mean": jnp.array([1.0, 0.5]), "initial_covariance": 2 * jnp.eye(2),
        "transition": jnp.array([[0.8, 0.3], [0.0, 0.5]]), "transition_input": jnp.array([[0.5], [0.0]]),
        "state_noise": jnp.array([[1.0, 0.4], [0.4, 0.6]]), "observation": jnp.array([[1.0, 0.0], [0.6, 1.0], [0.5, -1.0]]),
        "observation_input": jnp.array([[0.0], [0.7], [-0.4]]),
        "observation_noise": jnp.array([[0.8, 0.3, 0.0], [0.3, 0.6, 0.0], [0.0, 0.0, 0.7]]),
    })  # fmt: skip
    data = model.sample(jax.random.key(0), truth, 12, inputs=jnp.asarray(rng.normal(size=(12, 12, 1))))
    y = np.where(rng.random(data.x["y"].shape) < 0.15, nan, data.x["y"])
    data = jaxem.Sequences({**data.x, "y": y}, np.full(12, 12))
    result = jaxem.fit(model, data, max_steps=5000, stop=jaxem.Stop(loglik_rtol=None, param_rtol=1e-8))
    assert result.converged and (np.diff(result.history) > -1e-9).all()
    for name, value in fixed.items():
        known = ~np.isnan(value)
        np.testing.assert_array_equal(np.asarray(result.params[name])[known], value[known])
    slope = jax.jit(jax.grad(lambda p: model.log_prob(p, data).sum()))(result.params)
    for name, value in fixed.items():
        assert np.abs(np.asarray(slope[name])[np.isnan(value)]).max() < 1e-3, name
    assert model.n_free_params(data) == 1 + 1 + 2 + 1 + 3 + 2 + 2 + 3


def macro():
    """(202, 8) quarterly growth rates, 1959:2 to 2009:3, standardised, a tenth of the entries missing."""
    macrodata = pytest.importorskip("statsmodels.datasets").macrodata
    table = macrodata.load_pandas().data
    levels = table[["realgdp", "realcons", "realinv", "realgovt", "realdpi", "cpi", "m1"]].to_numpy()
    y = np.column_stack([100 * np.diff(np.log(levels), axis=0), np.diff(table["unemp"])])
    y = (y - y.mean(0)) / y.std(0)
    y[np.random.default_rng(0).random(y.shape) < 0.1] = np.nan
    return y


def statsmodels_factors(y):
    """statsmodels' model of two factors, and a function from its parameters to ours."""
    factors = pytest.importorskip("statsmodels.tsa.statespace.dynamic_factor")
    theirs, template = factors.DynamicFactor(y, k_factors=2, factor_order=1), jaxem.DynamicFactor(2).template(y)
    theirs.ssm.initialize_known(np.zeros(2), np.eye(2))

    def ours(vector):
        theirs.update(vector)
        found = {"transition": theirs["transition"], "observation": theirs["design"]}
        found = {name: jnp.array(x) for name, x in found.items()}
        return {**template, **found, "observation_noise": jnp.array(np.diag(theirs["obs_cov"]))}

    return theirs, ours


def test_dynamic_factors_of_macro_data(x64):
    """Likelihood and smoother are statsmodels'; from its start EM reaches its optimum, but for 2e-3 of a Heywood case.

    Along the way consumption's noise goes to zero, at L-BFGS's end 8e-10 (log-likelihood -1737.62693). EM nears a zero
    variance ever more slowly, and is at 7e-5 after 3000 maps (-1737.6276).
    """
    y, model = macro(), jaxem.DynamicFactor(2)
    theirs, ours = statsmodels_factors(y)
    log_prob, data = jax.jit(model.log_prob), model.validate(y)
    start = ours(theirs.start_params)
    found = theirs.smooth(theirs.start_params, cov_type="none")
    np.testing.assert_allclose(log_prob(start, data), [found.llf], rtol=1e-10)
    path = jax.jit(model.posterior)(start, data)
    np.testing.assert_allclose(path.mean[0], found.smoothed_state.T, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(path.covariance[0], np.moveaxis(found.smoothed_state_cov, -1, 0), rtol=1e-8, atol=1e-8)

    best = theirs.fit(method="lbfgs", maxiter=2000, disp=False, cov_type="none")
    end = ours(best.params)
    assert end["observation_noise"][1] < 1e-6
    assert abs(float(log_prob(end, data)[0]) - best.llf) < 1e-6
    assert abs(best.llf + 1737.626926) < 1e-4
    for variance in (1e-7, 1e-10, 0.0):
        theirs["obs_cov", 1, 1] = variance
        sharp = {**end, "observation_noise": end["observation_noise"].at[1].set(variance)}
        np.testing.assert_allclose(log_prob(sharp, data), [theirs.ssm.loglike()], rtol=1e-10)

    # Quasi-Newton jumps so near a zero variance that EM takes thousands of steps to leave it.
    stop = jaxem.Stop(loglik_rtol=1e-12)
    result = jaxem.fit(model, y, init=start, algorithm=jaxem.Squarem(), stop=stop, max_steps=3000)
    assert float(result.loglik) > best.llf - 2e-3


def test_dynamic_factors_without_a_heywood_case(x64):
    """Without consumption no noise vanishes: from its own start EM ends no lower than statsmodels' L-BFGS from its own.

    There are several optima: from statsmodels' start EM ends at -1563.436, L-BFGS at -1536.402.
    """
    y, model = np.delete(macro(), 1, 1), jaxem.DynamicFactor(2)
    theirs, ours = statsmodels_factors(y)
    best = theirs.fit(method="lbfgs", maxiter=2000, disp=False, cov_type="none")
    stop = jaxem.Stop(loglik_rtol=1e-10)
    result = jaxem.fit(model, y, algorithm=jaxem.QuasiNewton(), stop=stop, max_steps=1500)
    assert result.converged and float(result.loglik) >= best.llf
    assert min(float(ours(best.params)["observation_noise"].min()), float(result.params["observation_noise"].min())) > 0.01
    # The same optimum, and its likelihood: factors may be turned, so that only the noise is comparable.
    np.testing.assert_allclose(result.params["observation_noise"], ours(best.params)["observation_noise"], atol=2e-3)
    assert abs(float(result.loglik) - best.llf) < 1e-3


def test_a_hundred_thousand_steps_in_float32():
    """A level that wanders, its slope, two observations, gaps: float32 agrees with float64; EM rises and finds the larger noise."""
    n_steps, rng = 100_000, np.random.default_rng(0)
    transition, observation = np.array([[1.0, 1.0], [0.0, 0.9]]), np.array([[1.0, 0.0], [0.5, 3.0]])
    noise, variance = np.array([1e-1, 1e-4]), np.array([1.0, 0.25])
    y, state = np.zeros((n_steps, 2)), np.zeros(2)
    pushes, errors = np.sqrt(noise) * rng.normal(size=(n_steps, 2)), np.sqrt(variance) * rng.normal(size=(n_steps, 2))
    for t in range(n_steps):
        state = transition @ state + pushes[t]
        y[t] = observation @ state + errors[t]
    y[rng.random(y.shape) < 0.05] = np.nan
    known = {"transition": np.array([[1.0, 1.0], [0.0, np.nan]]), "observation": observation}
    truth = {"transition": transition, "state_noise": noise, "observation": observation, "observation_noise": variance}
    found = {}
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            model = jaxem.StateSpace(2, fixed=known, state_noise="diag", initial="diffuse")
            data = model.validate(y.astype(dtype))
            params = {name: jnp.asarray(x, dtype) for name, x in truth.items()}
            about = model.centered(params)
            ask = jax.jit(about.e_step)
            loglik, stats = ask(params, data, jnp.ones(1, dtype), jaxem.Rows())
            after = jax.jit(about.m_step)(stats, params)
            found[dtype] = jax.tree.map(lambda x: np.asarray(x, np.float64), (loglik, after))
            if dtype == np.float32:
                result = jaxem.fit(model, y.astype(dtype), max_steps=30)
    (single, after), (double, wanted) = found[np.float32], found[np.float64]
    np.testing.assert_allclose(single, double, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, wanted)
    # Thirty steps from the model's own start: the objective rose; the slope, which EM learns slowly, is not there yet.
    assert result.status in (jaxem.Status.CONVERGED, jaxem.Status.MAX_STEPS)
    history = np.asarray(result.history)
    assert (np.diff(history) > -1e-5 * np.abs(history[-1])).all()
    np.testing.assert_allclose(result.params["observation_noise"][0], variance[0], rtol=0.05)
