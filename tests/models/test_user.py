"""Models from functions: genetic linkage (Dempster, Laird and Rubin 1977, section 1)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.special import gammaln
from linkage import CELLS, COUNTS, PI, by_cells, by_counts, m_step, natural

import jaxem
from jaxem.check import LAWS
from jaxem.constraints import Positive, Simplex, UnitInterval
from jaxem.engine import m_step as maximization
from jaxem.fitting import segments, solve
from jaxem.numerics.logs import lse


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_log_joint():
    model = by_cells()
    stop = jaxem.Stop(None, None, 1e-12)
    result = jaxem.fit(model, CELLS, weight=COUNTS, stop=stop)
    assert result.converged and abs(float(result.params["pi"]) - PI) < 1e-8
    blocks = jaxem.fit(model, CELLS, weight=COUNTS, stop=stop, block_size=3)
    assert abs(float(blocks.params["pi"]) - PI) < 1e-8
    assert model.n_free_params(CELLS) == 1
    np.testing.assert_allclose(model.posterior(result.params, CELLS)[0], [2 / (2 + PI), PI / (2 + PI)], atol=1e-8)
    np.testing.assert_array_equal(model.predict(result.params, CELLS), 0)
    np.testing.assert_allclose(COUNTS @ model.log_prob(result.params, CELLS), result.loglik, rtol=1e-12)


@pytest.mark.parametrize("closed", [m_step, None])
def test_log_marginal(closed):
    model = by_counts(closed)
    result = jaxem.fit(model, COUNTS[None], stop=jaxem.Stop(None, None, 1e-12))
    assert result.converged and abs(float(result.params["pi"]) - PI) < 1e-8
    assert model.n_free_params(COUNTS[None]) == 1


def test_rate_of_convergence():
    model = by_counts(m_step)
    errors = []
    for n_steps in (4, 5, 6):
        result = jaxem.fit(model, COUNTS[None], max_steps=n_steps, stop=jaxem.Stop(None))
        errors.append(float(result.params["pi"]) - 0.62682149787098)
    np.testing.assert_allclose(np.divide(errors[1:], errors[:-1]), 0.13277873, atol=1e-4)


def test_labels_exclude():
    model = by_cells()
    # The first cell's count is known to be of the first class: pi is then 34 / 72.
    result = jaxem.fit(model, CELLS, weight=COUNTS, labels=np.array([0, -1, -1, -1]), stop=jaxem.Stop(None, None, 1e-12))
    np.testing.assert_allclose(result.params["pi"], 34 / 72, atol=1e-8)


# --- closed forms for some parameters ----------------------------------------------------------
def poisson_rates(params, x):
    return x * jnp.log(params["rate"]) - params["rate"] - gammaln(x + 1)


MIXED = {
    "natural": lambda p: {"log_weights": jnp.log(p["weights"])},
    "linear": lambda eta, x: eta["log_weights"],
    "init": {"weights": np.array([0.5, 0.5]), "rate": np.array([3.0, 8.0])},
    "constraints": {"weights": Simplex(), "rate": Positive()},
}


def relative_weights(stats, params):
    del params
    return {"weights": stats["log_weights"] / stats["log_weights"].sum()}


def counts():
    rng = np.random.default_rng(0)
    return np.where(rng.random(300) < 0.4, rng.poisson(2.0, 300), rng.poisson(9.0, 300)).astype(float)


@pytest.fixture(scope="module")
def optimum():
    """The log-likelihood of the built-in mixture, whose M-step is closed."""
    with jax.enable_x64(True):
        init = {"weights": MIXED["init"]["weights"], "components": {"rate": MIXED["init"]["rate"]}}
        return float(jaxem.fit(jaxem.Mixture(2, jaxem.Poisson()), counts(), init=init, stop=jaxem.Stop(1e-13)).loglik)


def test_closed_form_for_some_parameters():
    """Weights in closed form, rates by Optax: the Poisson mixture, step for step; and nothing moves the closed part."""
    y, stop = counts(), jaxem.Stop(None, None, 1e-10)
    part = jaxem.log_joint(poisson_rates, m_step=relative_weights, **MIXED)
    assert part.without_closed_form == {"weights": False, "rate": True}
    ours = jaxem.fit(part, y, stop=stop)
    init = {"weights": MIXED["init"]["weights"], "components": {"rate": MIXED["init"]["rate"]}}
    theirs = jaxem.fit(jaxem.Mixture(2, jaxem.Poisson()), y, init=init, stop=stop)
    assert ours.converged
    np.testing.assert_allclose(ours.history[:20], theirs.history[:20], rtol=1e-12)
    np.testing.assert_allclose(ours.params["rate"], theirs.params["components"]["rate"], rtol=1e-8)

    one = jaxem.fit(part, y, max_steps=1, stop=jaxem.Stop(None)).params["weights"]
    np.testing.assert_allclose(one, part.posterior(MIXED["init"], jnp.asarray(y)).mean(0), rtol=1e-13)
    wanted = ["m-step-stationary", "q-rises"]
    report = jaxem.check_model(part, y[:60], skip={law.name for law in LAWS} - set(wanted))
    assert report.ran == wanted


@pytest.mark.parametrize(
    "partial",
    [lambda t, p: {**relative_weights(t, p), "rate": None}, lambda t, p: {"weights": None, "rate": None}, lambda t, p: {}],
)
def test_none_and_a_missing_key_are_for_optax(partial, optimum):
    model = jaxem.log_joint(poisson_rates, m_step=partial, **MIXED)
    result = jaxem.fit(model, counts(), stop=jaxem.Stop(1e-12))
    assert abs(float(result.loglik) - optimum) < 1e-5


def test_log_marginal_with_a_closed_form_for_some(optimum):
    def marginal(eta, x):
        return lse(x[None] * eta["log_rate"][:, None] + (eta["minus_rate"] + eta["log_weights"])[:, None], 0) - gammaln(x + 1)

    model = jaxem.log_marginal(
        natural=lambda p: {"log_weights": jnp.log(p["weights"]), "log_rate": jnp.log(p["rate"]), "minus_rate": -p["rate"]},
        log_marginal=marginal, m_step=relative_weights, init=MIXED["init"], constraints=MIXED["constraints"],
    )  # fmt: skip
    result = jaxem.fit(model, counts(), stop=jaxem.Stop(1e-12))
    assert abs(float(result.loglik) - optimum) < 1e-5


def test_batched_is_the_same_model():
    y = counts()
    rows = {
        **MIXED,
        "linear": lambda eta, x: jnp.broadcast_to(eta["log_weights"], (x.shape[0], 2)),
    }
    batched = jaxem.log_joint(lambda p, x: poisson_rates(p, x[:, None]), m_step=relative_weights, batched=True, **rows)
    single = jaxem.log_joint(poisson_rates, m_step=relative_weights, **MIXED)
    few = {"max_steps": 5, "stop": jaxem.Stop(None), "block_size": 70}
    ours, theirs = jaxem.fit(batched, y, **few), jaxem.fit(single, y, **few)
    np.testing.assert_allclose(ours.history, theirs.history, rtol=1e-13)
    np.testing.assert_array_equal(batched.predict(ours.params, y), single.predict(theirs.params, y))


@pytest.mark.published
def test_kept_and_recomputed_posteriors_agree(monkeypatch):
    """Whether an M-step keeps posteriors is arithmetic, never a result."""
    model = jaxem.log_joint(
        lambda p, x: poisson_rates(p, x) + jnp.log(p["weights"]), init=MIXED["init"], constraints=MIXED["constraints"]
    )
    y, few = counts(), {"max_steps": 4, "stop": jaxem.Stop(None), "block_size": 70}
    kept = jaxem.fit(model, y, **few)
    monkeypatch.setattr(maximization, "KEPT_POSTERIORS", 0)
    jax.clear_caches()
    recomputed = jaxem.fit(model, y, **few)
    np.testing.assert_allclose(kept.history, recomputed.history, rtol=1e-13)


# --- a neural network as a parameter -------------------------------------------------------------
def network(layers, x):
    hidden = jnp.tanh(x * layers[0]["kernel"] + layers[0]["bias"])
    return hidden @ layers[1]["kernel"] + layers[1]["bias"]


def experts(params, datum):
    """Two experts whose means a small network gives: log N(y; f_k(x), sigma_k^2)."""
    residual = (datum["y"] - network(params["network"], datum["x"])) / params["sigma"]
    return -(residual**2) / 2 - jnp.log(params["sigma"]) - jnp.log(2 * jnp.pi) / 2


def test_mixture_of_experts_with_a_network():
    """Two curves: a network finds what no pair of lines could, with the weights in closed form."""
    rng = np.random.default_rng(1)
    x = rng.uniform(-2, 2, 400)
    which = rng.random(400) < 0.3
    y = np.where(which, 1 + np.sin(2 * x), -1 - x / 2) + 0.1 * rng.normal(size=400)
    init = {
        "weights": np.array([0.5, 0.5]),
        "sigma": np.array([0.5, 0.5]),
        "network": [
            {"kernel": rng.normal(size=12), "bias": rng.normal(size=12)},
            {"kernel": 0.5 * rng.normal(size=(12, 2)), "bias": np.array([0.5, -0.5])},
        ],
    }
    model = jaxem.log_joint(
        experts, natural=MIXED["natural"], linear=MIXED["linear"], m_step=relative_weights, init=init,
        constraints={"weights": Simplex(), "sigma": Positive(), "network": None},
    )  # fmt: skip
    result = jaxem.fit(model, {"x": x, "y": y}, max_steps=60)
    assert (np.diff(result.history) > -1e-8).all()
    # The curves that made the data have a log-likelihood that a fit passes by half its number of parameters, were it
    # ever to end; 60 steps may stay a little short of it.
    truth = np.stack([1 + np.sin(2 * x), -1 - x / 2])
    density = np.exp(-(((y - truth) / 0.1) ** 2) / 2) / 0.1 / np.sqrt(2 * np.pi)
    assert float(result.loglik) > np.log(np.array([0.3, 0.7]) @ density).sum() - 20
    # Standard errors: weights sqrt(.3 .7 / 400) = .023; sigma .1 / sqrt(2 . 120) = .0065, and less for a curve overfitted.
    order = np.argsort(result.params["weights"])
    np.testing.assert_allclose(np.asarray(result.params["weights"])[order], [0.3, 0.7], atol=0.05)
    np.testing.assert_allclose(np.asarray(result.params["sigma"])[order], [0.1, 0.1], atol=0.03)
    np.testing.assert_allclose(jax.vmap(lambda t: network(result.params["network"], t))(x).T[order], truth, atol=0.35)


@pytest.mark.published
def test_a_start_for_every_restart(optimum):
    """A function of the key gives each restart its own start, inside jit too; restart i depends on (key, i) alone."""

    def random_start(key):
        return {"weights": jnp.full(2, 0.5), "rate": jax.random.uniform(key, (2,), minval=0.5, maxval=12.0)}

    model = jaxem.log_joint(poisson_rates, m_step=relative_weights, **{**MIXED, "init": random_start})
    options = {"key": jax.random.key(0), "stop": jaxem.Stop(1e-12)}
    few, many = (jaxem.fit(model, counts(), n_restarts=r, **options) for r in (2, 5))
    assert len(np.unique(np.asarray(many.restarts.history[:, 0]))) == 5
    np.testing.assert_allclose(few.restarts.loglik, many.restarts.loglik[:2], rtol=1e-10)
    assert abs(float(many.loglik) - optimum) < 1e-5
    inside = jax.jit(lambda y: jaxem.fit(model, y, n_restarts=5, **options).restarts.loglik)(counts())
    np.testing.assert_allclose(inside, many.restarts.loglik, rtol=1e-10)
    assert model.n_free_params(counts()) == 3
    with pytest.raises(ValueError, match="key must be a JAX random key because the initialisation is random"):
        jaxem.fit(model, counts())


@pytest.mark.published
def test_one_optimizer_one_compilation():
    """An optimizer is built once, by its owner: later fits, other data and other starts run what is compiled."""
    model = by_cells()
    for algorithm in (jaxem.EM(optax.adam(1e-2), 5), jaxem.GEM(optax.adam(1e-2)), jaxem.ECM(), jaxem.EM(jaxem.newton())):
        jaxem.fit(model, CELLS, weight=COUNTS, algorithm=algorithm, max_steps=3)
        programs = solve.begin_jit._cache_size(), segments.run_segment._cache_size()
        for start in (0.3, 0.7):
            jaxem.fit(model, CELLS, weight=COUNTS + start, algorithm=algorithm, init={"pi": np.float64(start)}, max_steps=3)
        compiled_again = solve.begin_jit._cache_size() - programs[0]
        assert compiled_again <= 1  # a start that was given instead of the model's own
        assert segments.run_segment._cache_size() == programs[1]


# --- what is wrong is said before anything is compiled -------------------------------------------
def nothing(eta, x):
    return jnp.zeros(2)


@pytest.mark.parametrize(
    "model, data, message",
    [
        (lambda: by_cells(constraints={"phi": UnitInterval()}), CELLS, r"parameters, which are \['pi'\]; got \['phi'\]"),
        (lambda: by_cells(init={"pi": 1.5}), CELLS, "init: pi must be strictly between"),
        (by_cells, {"a": np.ones(3), "b": np.ones(4)}, "lead with one N"),
        (lambda: by_cells(fn=lambda p, x: p["pi"] * 1.0), CELLS, r"fn must be .params, x. -> .K,., .*got float64 of shape \(\)"),
        (lambda: by_cells(fn=lambda p, x: jnp.ones((2, 2))), CELLS, r"got float64 of shape \(2, 2\)"),
        (lambda: by_cells(fn=lambda p, x: jnp.arange(2)), CELLS, "floats; got int64"),
        (lambda: by_cells(fn=lambda p, x: {"a": p["pi"]}), CELLS, "floats; got dict"),
        (lambda: by_cells(batched=True), CELLS, None),
        (lambda: by_cells(fn=lambda p, x: jnp.ones(2), batched=True), CELLS, r"\(params, rows\) -> \(n, K\)"),
        (lambda: by_cells(natural=lambda p: {}), CELLS, "natural and linear must be given together; got natural alone"),
        (lambda: by_cells(m_step=lambda t, p: p), CELLS, "m_step must come with natural and linear"),
        (
            lambda: by_cells(natural=lambda p: {}, linear=lambda e, x: jnp.zeros(3)), CELLS,
            r"linear and fn must give one shape; got \(3,\) and \(2,\)",
        ),
        (
            lambda: by_cells(natural=lambda p: {}, linear=nothing, m_step=lambda t, p: {"phi": p["pi"]}), CELLS,
            r"m_step must give parameters among the keys \['pi'\]; got keys \['phi'\]",
        ),
        (
            lambda: by_cells(natural=lambda p: {}, linear=nothing, m_step=lambda t, p: {"pi": jnp.ones(2)}), CELLS,
            r"m_step must give pi the shape \(\); got \(2,\)",
        ),
        (
            lambda: jaxem.log_marginal(natural=natural, log_marginal=lambda eta, x: eta["log_pi"], init={"pi": 0.5}),
            COUNTS[None], r"log_marginal must be \(natural, data\) -> \(N,\) floats; got float64 of shape \(\)",
        ),
    ],
)  # fmt: skip
def test_bad_input(model, data, message):
    if message is None:
        assert jaxem.fit(model(), data, max_steps=1).n_steps == 1
        return
    with pytest.raises(ValueError, match=message):
        jaxem.fit(model(), data)


def test_nan_at_the_start_names_the_rows():
    model = by_cells(fn=lambda p, x: jnp.stack([jnp.log(x - 2) + p["pi"], jnp.log(x - 2)]))
    with pytest.raises(jaxem.FitError, match=r"starting values .* log-density is nan: row\(s\) 0, 1, 2$"):
        jaxem.fit(model, np.arange(4.0))


@pytest.mark.parametrize("kind", [jaxem.EM, jaxem.GEM, jaxem.ECM])
def test_an_optimizer_must_be_optaxs(kind):
    with pytest.raises(TypeError, match=r"optimizer must be an optax.GradientTransformation, .* got str"):
        kind(optimizer="adam")
    with pytest.raises(TypeError, match="got function"):
        kind(optimizer=optax.adam)


def test_an_algorithm_must_be_one():
    for wrong, got in ((optax.adam(1e-2), "GradientTransformation"), (jaxem.EM, "the class EM")):
        with pytest.raises(TypeError, match=rf"algorithm must be a jaxem.Algorithm, .* got {got}"):
            jaxem.fit(by_cells(), CELLS, algorithm=wrong)
