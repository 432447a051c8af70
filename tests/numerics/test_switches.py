"""JAX's own debugging switches, as people leave them on who embed EM in a larger model, change nothing and break nothing."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import clusters

import jaxem

RNG = np.random.default_rng(0)
PLANE = clusters(40, 2, 2)
WIDE = clusters(40, 5, 2)
COUNTS = RNG.poisson(4.0, (40, 2)).astype(float)
CODES = RNG.integers(0, 3, (40, 4))
BITS = RNG.integers(0, 2, (40, 4)).astype(float)
POSITIVE = RNG.gamma(3.0, 1.0, 40)
LINE = {"y": RNG.normal(size=40), "inputs": RNG.normal(size=(40, 1))}
HOLES = np.where(RNG.random((40, 2)) < 0.2, np.nan, PLANE)
SERIES = jaxem.sequences([RNG.normal(size=(12, 2)), RNG.normal(size=(9, 2))])
STEPS = jaxem.sequences([RNG.normal(size=12), RNG.normal(size=9)])
CHAIN = jaxem.sequences([RNG.poisson(3.0, 12).astype(float), RNG.poisson(6.0, 9).astype(float)])
LETTERS = jaxem.sequences([RNG.integers(0, 3, 12), RNG.integers(0, 3, 9)])
MATRIX = RNG.random((12, 3))


MODELS = {
    "full": (jaxem.GaussianMixture(2), PLANE),
    "diag": (jaxem.GaussianMixture(2, "diag"), PLANE),
    "missing": (jaxem.GaussianMixture(2, missing="marginal"), HOLES),
    "t": (jaxem.Mixture(2, jaxem.StudentT()), PLANE),
    "poisson": (jaxem.Mixture(2, jaxem.Poisson()), COUNTS),
    "negative-binomial": (jaxem.Mixture(2, jaxem.NegativeBinomial()), COUNTS),
    "gamma": (jaxem.Mixture(2, jaxem.Gamma()), POSITIVE),
    "bernoulli": (jaxem.Mixture(2, jaxem.Bernoulli()), BITS),
    "categorical": (jaxem.Mixture(2, jaxem.Categorical(3)), CODES),
    "multinomial": (jaxem.Mixture(2, jaxem.Multinomial()), RNG.multinomial(9, [0.2, 0.3, 0.5], 40).astype(float)),
    "von-mises": (jaxem.Mixture(2, jaxem.VonMises()), RNG.vonmises(0.0, 2.0, 40)),
    "regression": (jaxem.Mixture(2, jaxem.LinearRegression()), LINE),
    "normal": (jaxem.MultivariateNormal(), PLANE),
    "multivariate-t": (jaxem.MultivariateT(), PLANE),
    "factors": (jaxem.FactorAnalysis(1), WIDE),
    "ppca": (jaxem.PPCA(1), WIDE),
    "hmm": (jaxem.HMM(2, jaxem.Gaussian()), SERIES),
    "poisson-hmm": (jaxem.HMM(2, jaxem.Poisson()), CHAIN),
    "autoregression": (jaxem.MarkovAutoregression(2, 1), STEPS),
    "local-level": (jaxem.LocalLevel(10.0), STEPS),
    "state-space": (jaxem.StateSpace(1), SERIES),
    "item-response": (jaxem.ItemResponse(), BITS),
    "superposition": (jaxem.Superposition(), {"y": RNG.poisson(MATRIX @ [5.0, 9.0, 2.0]).astype(float), "row": MATRIX}),
    "topics": (jaxem.LDA(2), RNG.poisson(1.0, (10, 6)).astype(float)),
    "plsa": (jaxem.PLSA(2), RNG.poisson(1.0, (10, 6)).astype(float)),
}

#: Compiled for each: five in the default suite.
DEFAULT = {"full", "poisson", "hmm", "local-level", "topics"}
GRID = [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.published) for name in MODELS]


def switched_on():
    """All of them at once."""
    stack = contextlib.ExitStack()
    stack.enter_context(jax.debug_nans(True))
    stack.enter_context(jax.numpy_rank_promotion("raise"))
    stack.enter_context(jax.numpy_dtype_promotion("strict"))
    stack.enter_context(jax.transfer_guard("disallow"))
    return stack


@pytest.mark.parametrize("name", GRID)
def test_a_fit_and_what_follows_it(name, x64):
    model, data = MODELS[name]
    key = jax.random.key(0)  # JAX makes a key by a transfer that is not explicit
    with switched_on():
        result = jaxem.fit(model, data, key=key, n_restarts=2, max_steps=3)
        for method in ("predict", "posterior", "log_prob"):
            if getattr(model, method, None) is not None:
                getattr(model, method)(result.params, data)
        if name != "superposition":  # whose rows are those of data
            model.sample(key, result.params, 3)


def test_a_fit_inside_jit(x64):
    model, data, keys = jaxem.Mixture(2, jaxem.Poisson()), jnp.asarray(COUNTS), jax.random.split(jax.random.key(0), 2)

    def fit(data, key):
        return jaxem.fit(model, data, key=key, max_steps=20)

    with jax.debug_nans(True):
        many = jax.jit(jax.vmap(fit, (None, 0)))(data, keys)
        assert many.history.shape[0] == 2 and not jnp.isnan(many.history).any()
        assert jnp.isfinite(jax.grad(lambda x: fit(x, keys[0]).loglik)(data)).all()
        one = jax.lax.scan(lambda carry, key: (carry, fit(data, key).loglik), 0, keys)[1]
    np.testing.assert_allclose(one, many.loglik, rtol=1e-12)
