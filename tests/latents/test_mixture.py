"""`jaxem.latents` as a user meets it: local scores from any code, the built-in model's E-step and fit out of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammaln
from support import DATA

import jaxem
from jaxem.latents import chain, gaussian_chain, mixture, superposition, tree


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def poisson_scores(natural, counts):
    """(K, n, ...) of counts (n, ...)."""
    by_component = lambda x: x.reshape(-1, *[1] * counts.ndim)  # noqa: E731
    return by_component(natural["log_rate"]) * counts + by_component(natural["minus_rate"]) - gammaln(counts + 1)


def poisson_natural(rate):
    return {"log_rate": jnp.log(rate), "minus_rate": -rate}


def poisson_rate(stats):
    return stats["log_rate"] / stats["minus_rate"]


def mixture_model(init):
    return jaxem.log_marginal(
        natural=lambda p: {"log_weights": jnp.log(p["weights"]), **poisson_natural(p["rate"])},
        log_marginal=lambda eta, x: mixture.log_partition(poisson_scores(eta, x) + eta["log_weights"][:, None]),
        m_step=lambda t, p: {"weights": t["log_weights"] / t["log_weights"].sum(), "rate": poisson_rate(t)},
        init=init,
    )


def chain_model(init):
    relative = lambda t: t / t.sum(-1, keepdims=True)  # noqa: E731
    return jaxem.log_marginal(
        natural=lambda p: {
            "initial": jnp.log(p["initial"]), "transition": jnp.log(p["transition"]), **poisson_natural(p["rate"])
        },
        log_marginal=lambda eta, x: chain.log_partition(eta["initial"], eta["transition"], poisson_scores(eta, x)),
        m_step=lambda t, p: {
            "initial": relative(t["initial"]), "transition": relative(t["transition"]), "rate": poisson_rate(t)
        },
        init=init,
    )  # fmt: skip


def test_mixture_and_chain_fit_as_the_models_do():
    """Twelve EM steps from one start: the same parameters and log-likelihoods to rounding."""
    counts = np.loadtxt(DATA / "earthquakes.csv", skiprows=1)
    few = {"max_steps": 12, "stop": jaxem.Stop(None)}
    weights, rate = np.array([0.4, 0.6]), np.array([15.0, 25.0])
    ours = jaxem.fit(mixture_model({"weights": weights, "rate": rate}), counts, **few)
    theirs = jaxem.fit(
        jaxem.Mixture(2, jaxem.Poisson()), counts, init={"weights": weights, "components": {"rate": rate}}, **few
    )
    np.testing.assert_allclose(ours.history, theirs.history, rtol=1e-12)
    np.testing.assert_allclose(ours.params["rate"], theirs.params["components"]["rate"], rtol=1e-10)

    transition = np.array([[0.9, 0.1], [0.2, 0.8]])
    ours = jaxem.fit(chain_model({"initial": weights, "transition": transition, "rate": rate}), counts[None], **few)
    init = {"initial": weights, "transition": transition, "emission": {"rate": rate}}
    theirs = jaxem.fit(jaxem.HMM(2, jaxem.Poisson()), counts, init=init, **few)
    np.testing.assert_allclose(ours.history, theirs.history, rtol=1e-12)
    np.testing.assert_allclose(ours.params["transition"], theirs.params["transition"], rtol=1e-10)
    states = chain.posterior(
        jnp.log(theirs.params["initial"]), jnp.log(theirs.params["transition"]),
        poisson_scores(poisson_natural(theirs.params["emission"]["rate"]), counts[None]),
    )  # fmt: skip
    np.testing.assert_allclose(states[:, 0].T, jaxem.HMM(2, jaxem.Poisson()).posterior(theirs.params, counts), atol=1e-12)


def values_and_gradients(log_marginal, model, params, data):
    """Value and gradient of a user's log-marginal and of the model's, in the model's natural parameters."""
    natural = model.natural(params)
    theirs = jax.value_and_grad(lambda eta: model.log_marginal(model.pack(eta), data, jaxem.Rows()).sum())(natural)
    return jax.value_and_grad(lambda eta: log_marginal(eta, data).sum())(natural), theirs


def test_tree_and_superposition_give_the_models_e_steps():
    rng = np.random.default_rng(0)
    parents = (5, 4, 4, 5, 5, -1)
    codes = jnp.asarray(rng.integers(-1, 4, (30, 4)))

    def sites(eta, codes):
        (transitions,), (log_weight,) = tree.transition_matrices(eta["log_jumps"], eta["exit"]), eta["log_weights"]
        partials = tree.leaf_partials(codes, 4, jnp.float64)
        return tree.log_partition(transitions, eta["log_root"], partials, parents) + log_weight

    def emitted(eta, data):
        mean = data["row"] @ jnp.exp(eta["log_rate"])
        return superposition.log_partition(data["y"], mean, -data["row"] @ eta["exposure"])

    seen = {"y": jnp.asarray(rng.poisson(3.0, 20)), "row": jnp.asarray(rng.gamma(1.0, size=(20, 3)))}
    cases = [
        (sites, jaxem.Substitution(parents), {"lengths": jnp.linspace(0.05, 0.3, 5)}, codes),
        (emitted, jaxem.Superposition(), {"rate": jnp.array([1.0, 0.5, 2.0])}, seen),
    ]
    for log_marginal, model, params, data in cases:
        ours, theirs = values_and_gradients(log_marginal, model, params, data)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), ours, theirs)


def test_a_gaussian_chain_is_one_large_normal_distribution():
    """Value and gradients of the log-partition against the precision of the whole path, written out."""
    rng, n_steps, k = np.random.default_rng(1), 4, 2
    move, push, start = rng.normal(size=(k, k)) / 2, rng.normal(size=(k, k)), rng.normal(size=k)
    noise, first = push @ push.T, np.eye(k)
    rows, target = rng.normal(size=(1, n_steps, 3, k)), rng.normal(size=(1, n_steps, 3))
    shift = rng.normal(size=(1, n_steps, k))

    def by_chain(rows, target, shift):
        chain_ = gaussian_chain.GaussianChain(*map(jnp.asarray, (start, first, move, shift, noise, rows, target)))
        return gaussian_chain.log_partition(chain_)[0]

    def whole(rows, target, shift):
        """The target is normal, with unit noise on top of what the path makes of its innovations."""
        to_path = jnp.zeros((n_steps * k, n_steps * k))
        for t in range(n_steps):
            for s in range(t + 1):
                power = jnp.linalg.matrix_power(jnp.asarray(move), t - s)
                to_path = to_path.at[t * k : (t + 1) * k, s * k : (s + 1) * k].set(power)
        mean = to_path @ jnp.concatenate([jnp.asarray(start), shift[0, 1:].reshape(-1)])
        spread = jax.scipy.linalg.block_diag(first, *[noise] * (n_steps - 1))
        seen = jax.scipy.linalg.block_diag(*rows[0])
        covariance = seen @ to_path @ spread @ to_path.T @ seen.T + jnp.eye(n_steps * 3)
        value = jax.scipy.stats.multivariate_normal.logpdf(target.reshape(-1), seen @ mean, covariance)
        return value + n_steps * 3 * math.log(2 * math.pi) / 2

    ours, wanted = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(rows, target, shift) for f in (by_chain, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), ours, wanted)


def test_a_partition_function_serves_any_loss():
    """Inside a larger program: a chain's log-partition under vmap, and Newton's view of it by a second derivative."""
    scores = jax.random.normal(jax.random.key(0), (4, 3, 2, 6))  # four sets of local scores
    initial, transition = jnp.log(jnp.full(3, 1 / 3)), jnp.log(jnp.full((3, 3), 1 / 3))
    batched = jax.vmap(lambda s: chain.log_partition(initial, transition, s))(scores)
    # Independent states: the chain falls apart into its steps.
    np.testing.assert_allclose(batched, (mixture.log_partition(jnp.moveaxis(scores, 1, 0)) - np.log(3)).sum(-1), rtol=1e-12)
    hessian = jax.hessian(lambda s: chain.log_partition(initial, transition, s.reshape(3, 1, 1))[0])(scores[0, :, 0, 0])
    p = mixture.posterior(scores[0, :, 0, :1])[:, 0]
    np.testing.assert_allclose(hessian, np.diag(p) - np.outer(p, p), atol=1e-12)
