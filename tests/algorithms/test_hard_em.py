"""Hard assignments are handed down by keyword: to a family's own latent values, and to a user's function that takes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import poisson

import jaxem
from jaxem.latents import mixture

COUNTS = np.random.default_rng(0).poisson([[2.0], [9.0]], (2, 20)).reshape(-1).astype(float)


def test_parts_of_a_component_are_latent_too(x64):
    """A mixture of mixtures, alone and within a product: each row counts its most probable component and part."""
    rate, weights = np.array([[1.0, 3.0], [8.0, 12.0]]), np.array([[0.3, 0.7], [0.6, 0.4]])
    joint = poisson(rate).logpmf(COUNTS[:, None, None]) + np.log(weights) + np.log(0.5)
    family = jaxem.FamilyMixture(2, jaxem.Poisson())
    own = {"weights": weights, "parts": {"rate": rate.reshape(-1)}}
    fit = {"algorithm": jaxem.HardEM(), "max_steps": 0}
    one = jaxem.fit(jaxem.Mixture(2, family), COUNTS, init={"weights": np.full(2, 0.5), "components": own}, **fit)
    np.testing.assert_allclose(one.loglik, joint.max((1, 2)).sum(), rtol=1e-12)

    # Next to a column that tells nothing, with leaves of a trailing axis as columns have.
    column = {"weights": weights, "parts": {"rate": rate.reshape(-1, 1)}}
    product = jaxem.Product((family, jaxem.Poisson()), ((0,), (1,)))
    init = {"weights": np.full(2, 0.5), "components": (column, {"rate": np.ones((2, 1))})}
    two = jaxem.fit(jaxem.Mixture(2, product), np.stack([COUNTS, np.zeros_like(COUNTS)], 1), init=init, **fit)
    np.testing.assert_allclose(two.loglik, joint.max((1, 2)).sum() - len(COUNTS), rtol=1e-12)


def scores(natural, data):
    """(2, n) log-densities of two Poisson components of equal weight, less log y!."""
    return natural["log_rate"][:, None] * data - natural["rate"][:, None] + jnp.log(0.5)


USER = {
    "natural": lambda p: {"log_rate": jnp.log(p["rate"]), "rate": p["rate"]},
    "init": {"rate": jnp.array([1.0, 8.0])},
    "constraints": {"rate": jaxem.constraints.Positive()},
}


def test_a_users_function_takes_the_keyword(x64):
    def log_marginal(natural, data, hard=False):
        return mixture.log_partition(scores(natural, data), hard=hard)

    model = jaxem.log_marginal(log_marginal=log_marginal, **USER)
    result = jaxem.fit(model, COUNTS, algorithm=jaxem.HardEM(), max_steps=0)
    joint = scores(USER["natural"]({"rate": jnp.array([1.0, 8.0])}), COUNTS)
    np.testing.assert_allclose(result.loglik, joint.max(0).sum(), rtol=1e-12)
    soft = jaxem.fit(model, COUNTS, max_steps=0)
    np.testing.assert_allclose(soft.loglik, jax.scipy.special.logsumexp(joint, 0).sum(), rtol=1e-12)


def test_a_users_function_that_does_not_is_refused():
    model = jaxem.log_marginal(log_marginal=lambda natural, data: mixture.log_partition(scores(natural, data)), **USER)
    told = r"discrete latent values that hands `rows.hard` \(for log_marginal: a keyword `hard`\) on to jaxem.latents; got LogMarginal"
    with pytest.raises(TypeError, match=f"HardEM needs a model with {told}"):
        jaxem.fit(model, COUNTS.astype(np.float32), algorithm=jaxem.HardEM())


@pytest.mark.parametrize(
    "model, data",
    [
        (jaxem.LocalLevel(), np.arange(6.0)),
        (jaxem.Superposition(), {"y": np.ones(3), "row": np.ones((3, 2))}),
    ],
)
def test_hard_em_needs_discrete_latent_values(x64, model, data):
    with pytest.raises(TypeError, match=f"HardEM needs a model with discrete latent values .* got {type(model).__name__}"):
        jaxem.fit(model, data, algorithm=jaxem.HardEM())
