"""Rows of two kinds for components of every family, starts, and EM written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

import jaxem


def start(k, **components):
    return {"weights": np.full(k, 1 / k), "components": {name: np.asarray(v, float) for name, v in components.items()}}


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), tree)


def counts(n=400, seed=0):
    """(n, 3) counts of two kinds of rows."""
    rng = np.random.default_rng(seed)
    rates = np.array([[2.0, 5.0, 1.0], [7.0, 4.0, 3.0]])
    return rng.poisson(rates[rng.integers(2, size=n)]).astype(float)


def durations(n=500, seed=0):
    """(n, 2) positive data of two kinds of rows."""
    rng = np.random.default_rng(seed)
    z = rng.random(n) < 0.4
    return np.where(z[:, None], rng.gamma([2.0, 5.0], [0.5, 1.0], (n, 2)), rng.gamma([9.0, 3.0], [0.6, 0.4], (n, 2)))


def answers(n=500, seed=0):
    """(n, 4) codes 0..2 of two latent classes."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(3), (2, 4))
    z = rng.integers(2, size=n)
    return (rng.random((n, 4, 1)) > probs[z].cumsum(-1)[..., :-1]).sum(-1)


def plain_em(x, params, log_density, estimate, steps):
    """EM as textbooks write it: `log_density` gives (N, K), `estimate` the components from responsibilities."""
    weights, components = params["weights"], params["components"]
    for _ in range(steps):
        joint = np.log(weights) + log_density(components, x)
        responsibilities = np.exp(joint - special.logsumexp(joint, axis=1, keepdims=True))
        weights, components = responsibilities.mean(0), estimate(responsibilities, x)
    loglik = special.logsumexp(np.log(weights) + log_density(components, x), axis=1).sum()
    return {"weights": weights, "components": components}, loglik


def poisson_density(components, x):
    return stats.poisson(components["rate"]).logpmf(x[:, None, :]).sum(-1)


def poisson_estimate(responsibilities, x):
    return {"rate": responsibilities.T @ x / responsibilities.sum(0)[:, None]}


def class_density(components, x):
    columns = np.arange(x.shape[1])
    return np.log(components["probs"][:, columns, x]).sum(-1).T


def class_estimate(responsibilities, x):
    one_hot = (x[..., None] == np.arange(3)).astype(float)
    return {"probs": np.einsum("nk,ndv->kdv", responsibilities, one_hot) / responsibilities.sum(0)[:, None, None]}


def class_start():
    return start(2, probs=np.random.default_rng(5).dirichlet(np.full(3, 5.0), (2, 4)))


CASES = {
    "poisson": (jaxem.Poisson(), counts(), start(2, rate=[[1, 4, 1], [6, 6, 6]]), poisson_density, poisson_estimate),
    "categorical": (jaxem.Categorical(3), answers(), class_start(), class_density, class_estimate),
}


KEY = jax.random.key(0)


def labels(n, rng, share=0.4):
    return rng.random(n) < share


def bits(n=400, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.random((n, 4)) < np.where(labels(n, rng)[:, None], [0.1, 0.2, 0.8, 0.3], [0.9, 0.7, 0.3, 0.8])).astype(float)


def tables(n=400, seed=0):
    rng = np.random.default_rng(seed)
    first, second = rng.multinomial(20, [0.6, 0.3, 0.1], n), rng.multinomial(20, [0.1, 0.4, 0.5], n)
    return np.where(labels(n, rng)[:, None], first, second).astype(float)


def overdispersed(n=400, seed=0):
    rng = np.random.default_rng(seed)
    first, second = rng.gamma(2, 1.5, (n, 2)), rng.gamma(8, 3, (n, 2))
    return rng.poisson(np.where(labels(n, rng)[:, None], first, second)).astype(float)


def angles(n=400, seed=0):
    rng = np.random.default_rng(seed)
    return np.where(labels(n, rng)[:, None], rng.vonmises(0.5, 3, (n, 2)), rng.vonmises(3.0, 5, (n, 2)))


def heavy(n=400, seed=0):
    rng = np.random.default_rng(seed)
    center = np.where(labels(n, rng)[:, None], [-4.0, 1.0], [4.0, 0.0])
    noise = rng.normal(size=(n, 2)) @ np.array([[1.0, 0.4], [0.0, 0.7]])
    return center + noise / np.sqrt(rng.gamma(2, 0.5, n))[:, None]


MATRICES = {
    "full": (np.array([[[2.0, 0.5], [0.5, 1.0]], [[0.7, -0.2], [-0.2, 0.4]]]), lambda s: s),
    "tied": (np.array([[2.0, 0.5], [0.5, 1.0]]), lambda s: np.stack([s, s])),
    "diag": (np.array([[2.0, 1.0], [0.7, 0.4]]), lambda s: np.stack([np.diag(v) for v in s])),
    "spherical": (np.array([2.0, 0.4]), lambda s: s[:, None, None] * np.eye(2)),
}


@jax.jit
def scores_by_form(family, params, x):
    variants = family.centered(params).variants(params)[1]
    return [variant.scores(variant.pack(variant.natural(params)), x).T for variant in variants]


def scores(family, params, x):
    """(N, K) log-densities, the same in every variant of the family."""
    which = scores_by_form(family, params, jnp.asarray(x))
    for other in which[1:]:
        np.testing.assert_allclose(other, which[0], atol=1e-10)
    return np.asarray(which[0])


def fit_one(family, x, **options):
    return jaxem.fit(jaxem.Mixture(1, family), x, key=KEY, **options)
