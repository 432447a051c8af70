"""Derivatives of fitted parameters equal central differences of refits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linkage import COUNTS, by_cells
from support import clusters

import jaxem
from jaxem import Status

STOP = jaxem.Stop(loglik_rtol=None, param_rtol=1e-12)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def total(params):
    """One number in which every parameter has a say of its own."""
    rng = np.random.default_rng(5)
    return sum((leaf * rng.normal(size=leaf.shape)).sum() for leaf in jax.tree.leaves(params))


def check(function, at, places, size=1e-5, rtol=1e-6):
    """Gradient of `function` at the array `centered` against central differences, in the places given."""
    compiled, at = jax.jit(function), jnp.asarray(at, float)
    gradient = jax.jit(jax.grad(function))(at)
    scale = float(jnp.abs(gradient).max())
    for place in places:
        step = jnp.zeros_like(at).at[place].set(size)
        difference = float(compiled(at + step) - compiled(at - step)) / (2 * size)
        assert float(gradient[place]) == pytest.approx(difference, rel=rtol, abs=rtol * scale)
    return gradient


MIXTURE = jaxem.GaussianMixture(2)
X = clusters(60, 2, 2, seed=3, spread=3)
START = {
    "weights": np.array([0.5, 0.5]),
    "components": {"mean": np.array([[-1.0, 0.0], [1.0, 0.0]]), "covariance": np.stack([np.eye(2), np.eye(2)])},
}


def mixture(x, weight=None, **options):
    return jaxem.fit(MIXTURE, x, init=START, stop=STOP, weight=weight, **options)


@pytest.mark.published
def test_gaussian_mixture_in_data_and_weights():
    by_data = check(lambda x: total(mixture(x).params), X, [(0, 0), (7, 1), (33, 0)])
    _, slope = jax.jit(jax.jvp, static_argnums=0)(lambda x: total(mixture(x).params), (X,), (np.ones_like(X),))
    assert float(slope) == pytest.approx(float(by_data.sum()), rel=1e-7)  # forward and reverse mode agree

    # The infinitesimal jackknife: a derivative in the weights predicts what leaving a datum out does.
    refit = jax.jit(lambda w: total(mixture(X, w).params))
    influence = check(lambda w: total(mixture(X, w).params), np.ones(60), [3, 40])
    left_out = np.array([float(refit(jnp.ones(60).at[i].set(0.0))) for i in range(12)])
    predicted = float(refit(jnp.ones(60))) - np.asarray(influence)[:12]
    change, wanted = predicted - float(refit(jnp.ones(60))), left_out - float(refit(jnp.ones(60)))
    assert np.corrcoef(change, wanted)[0, 1] > 0.99 and np.abs(change - wanted).max() < 0.2 * np.abs(wanted).max()


@pytest.mark.published
def test_log_likelihood_and_unrolled_steps():
    check(lambda x: mixture(x).loglik, X, [(2, 0), (9, 1)])
    implicit = jax.jit(jax.grad(lambda x: total(mixture(x).params)))(jnp.asarray(X))

    def through_steps(x):
        return total(jaxem.fit(MIXTURE, x, init=START, stop=jaxem.Stop(None), unroll=30).params)

    np.testing.assert_allclose(jax.jit(jax.grad(through_steps))(jnp.asarray(X)), implicit, atol=1e-7)


def test_poisson_chain_in_weights_and_a_prior():
    rng = np.random.default_rng(0)
    counts = [rng.poisson(np.where(np.arange(30) % 10 < 5, 3.0, 9.0)) for _ in range(6)]
    data = jaxem.sequences(counts)
    start = {
        "initial": np.array([0.5, 0.5]), "transition": np.array([[0.8, 0.2], [0.2, 0.8]]),
        "emission": {"rate": np.array([2.0, 10.0])},
    }  # fmt: skip

    def by(value):
        model = jaxem.HMM(2, jaxem.Poisson(prior=jaxem.GammaPrior(value[0], value[1])))
        # The first sequences start in one state, the others in the other: no probability at its boundary.
        return total(jaxem.fit(model, data, init=start, stop=STOP, weight=value[2:]).params)

    check(by, np.concatenate([[2.0, 0.5], np.ones(6)]), [0, 1, 2, 6])


def test_linkage_in_its_counts():
    """The estimate is a root of a quadratic, whose derivative is known."""
    model = by_cells()

    def pi(counts):
        return jaxem.fit(model, jnp.arange(4), weight=counts, stop=STOP).params["pi"]

    def root(n):
        b = -(n[0] - 2 * n[1] - 2 * n[2] - n[3])
        return (-b + jnp.sqrt(b**2 + 8 * n.sum() * n[3])) / (2 * n.sum())

    counts = jnp.asarray(COUNTS)
    np.testing.assert_allclose(jax.jit(jax.grad(pi))(counts), jax.grad(root)(counts), rtol=1e-7)


def line(params, row):
    scale = jnp.exp(params["log_scale"])
    means = jnp.stack([row["x"] @ params["coef"], jnp.zeros(())])
    scales = jnp.stack([scale, jnp.full_like(scale, 2.0)])
    return jnp.log(jnp.array([0.7, 0.3])) - jnp.log(scales) - ((row["y"] - means) / scales) ** 2 / 2


@pytest.mark.parametrize("dense", [True, False])
def test_penalised_model_in_the_strength(dense, monkeypatch):
    """A regression with outliers, ridge penalty; and the same by products with the Hessian only."""
    monkeypatch.setattr("jaxem.engine.implicit.DENSE", 256 if dense else 0)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 3))
    data = {"x": x, "y": x @ np.array([1.0, -2.0, 0.5]) + 0.4 * rng.normal(size=50)}
    model = jaxem.log_joint(line, init={"coef": np.zeros(3), "log_scale": 0.0})
    exact = jaxem.EM(jaxem.newton())  # the optimum to rounding: that is what a difference quotient needs

    def by(strength):
        penalty = jaxem.L2(strength[0], ("coef",))
        return total(jaxem.fit(model, data, penalty=penalty, algorithm=exact, stop=STOP).params)

    check(by, np.array([3.0]), [0])


@pytest.mark.published
def test_under_vmap_and_compiled_once():
    weights = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, (3, 60)))
    traces = []

    def one(w):
        traces.append(1)
        return total(mixture(X, w).params)

    together = jax.jit(jax.vmap(jax.grad(one)))
    batched = together(weights)
    np.testing.assert_allclose(batched[1], jax.jit(jax.grad(one))(weights[1]), rtol=1e-6, atol=1e-9)
    count = len(traces)
    together(weights * 1.1)
    assert len(traces) == count


def test_a_fit_that_did_not_converge_says_so():
    short = jax.jit(lambda x: mixture(x, max_steps=3))(X)
    assert int(short.status) == Status.MAX_STEPS and not bool(short.params_converged)
    assert bool(jax.jit(mixture)(X).params_converged)
    by_loglik = jax.jit(lambda x: jaxem.fit(MIXTURE, x, init=START))(X)
    assert bool(by_loglik.converged) and not bool(by_loglik.params_converged)


def test_per_datum_parameters_have_no_implicit_derivative():
    counts = np.random.default_rng(0).poisson(1.0, (6, 5)) + 1.0

    def topics(x):
        return jaxem.fit(jaxem.LDA(2), x, key=jax.random.key(0), max_steps=2).params["topics"].sum()

    with pytest.raises(TypeError, match="per-datum parameters"):
        jax.grad(topics)(jnp.asarray(counts))


@pytest.mark.published
def test_an_encoder_learns_through_an_inner_fit(optimised):  # else XLA's CPU backend makes NaN of one product here
    """The encoder is trained so that an inner mixture, fitted to what it encodes, tells two classes apart."""
    rng = np.random.default_rng(2)
    label = np.arange(40) % 2
    hidden = rng.normal(size=(40, 3)) * np.array([3.0, 1.0, 0.5])
    hidden[:, 1] += 4.0 * label
    start = {
        "weights": np.array([0.5, 0.5]),
        "components": {"mean": np.array([[-0.5], [0.5]]), "covariance": np.ones((2, 1))},
    }
    model = jaxem.GaussianMixture(2, "diag")
    stop = jaxem.Stop(loglik_rtol=None, param_rtol=1e-9)

    def loss(encoder):
        z = (hidden @ encoder)[:, None]
        z = (z - z.mean()) / z.std()
        result = jaxem.fit(model, z, init=start, stop=stop, max_steps=500, standardize=False)
        posterior = model.posterior(result.params, z)
        return -jnp.log(posterior[jnp.arange(40), label] + 1e-3).mean()

    optimizer = optax.adam(3e-2)
    traces = []

    @jax.jit
    def outer_step(encoder, state):
        traces.append(1)
        value, gradient = jax.value_and_grad(loss)(encoder)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(encoder, updates), state, value

    encoder = jnp.array([0.3, 1.0, 0.3])
    check(loss, encoder, [0, 1, 2], rtol=1e-5)
    state, losses = optimizer.init(encoder), []
    for _ in range(100):
        encoder, state, value = outer_step(encoder, state)
        losses.append(float(value))
    assert len(traces) == 1 and np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0] and abs(encoder[1]) > 2 * abs(encoder[0])
