"""What holds of components of every family: densities of SciPy, refits, precisions, weights, empty components, the laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from components import KEY, MATRICES, angles, bits, cast, heavy, overdispersed, scores, start, tables
from scipy import stats

import jaxem
from jaxem.check import LAWS

TIGHT = jaxem.Stop(loglik_rtol=1e-15)
FAMILIES = {
    "bernoulli": (jaxem.Bernoulli(), bits),
    "multinomial": (jaxem.Multinomial(n_trials=20), tables),
    "negative-binomial": (jaxem.NegativeBinomial(), overdispersed),
    "von-mises": (jaxem.VonMises(), angles),
    **{f"t-{kind}": (jaxem.StudentT(kind), heavy) for kind in ("full", "tied", "diag", "spherical")},
    "t-of-given-df": (jaxem.StudentT(df=4.0), heavy),
}
#: The shapes of a scale beside the full one, whose algebra is the Gaussian's: left to the slow suite.
SHAPES = ("t-tied", "t-diag", "t-spherical")
EVERY = [pytest.param(name, marks=pytest.mark.slow) if name in SHAPES else name for name in FAMILIES]


def wanted_bernoulli():
    p = np.array([[0.2, 0.9, 0.5, 0.01], [0.7, 0.3, 0.99, 0.5]])
    return {"probs": p}, stats.bernoulli(p).logpmf(bits()[:, None]).sum(-1)


def wanted_multinomial():
    p = np.array([[0.2, 0.3, 0.5], [0.7, 0.2, 0.1]])
    return {"probs": p}, stats.multinomial(20, p).logpmf(tables()[:, None])


def wanted_negative_binomial():
    mean, size = np.array([[2.0, 30.0], [7.0, 3.0]]), np.array([[0.1, 3.0], [400.0, 1.0]])
    return {"mean": mean, "size": size}, stats.nbinom(size, size / (size + mean)).logpmf(overdispersed()[:, None]).sum(-1)


def wanted_von_mises():
    mean, concentration = np.array([[0.3, -2.0], [9.0, 1.0]]), np.array([[1e-3, 4.0], [300.0, 1.0]])
    return {"mean": mean, "concentration": concentration}, stats.vonmises(concentration, mean).logpdf(angles()[:, None]).sum(-1)


def wanted_t(kind):
    value, matrices = MATRICES[kind]
    mean, df = np.array([[0.5, -1.0], [3.0, 2.0]]), np.array([0.7, 40.0])
    density = [stats.multivariate_t(m, s, d).logpdf(heavy()) for m, s, d in zip(mean, matrices(value), df)]
    return {"mean": mean, "scale": value, "df": df}, np.stack(density, 1)


WANTED = {
    "bernoulli": wanted_bernoulli,
    "multinomial": wanted_multinomial,
    "negative-binomial": wanted_negative_binomial,
    "von-mises": wanted_von_mises,
    **{f"t-{kind}": lambda kind=kind: wanted_t(kind) for kind in MATRICES},
}


@pytest.mark.parametrize("name", WANTED)
def test_scores_are_log_densities_of_scipy(x64, name):
    family, data = FAMILIES[name]
    params, wanted = WANTED[name]()
    np.testing.assert_allclose(scores(family, params, data()), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["bernoulli", "negative-binomial", "von-mises"])
def test_one_column_is_a_vector(x64, name):
    family, data = FAMILIES[name]
    params = WANTED[name]()[0]
    first = {key: leaf[:, 0] for key, leaf in params.items()}
    column = {key: leaf[:, :1] for key, leaf in params.items()}
    x = data()
    np.testing.assert_allclose(scores(family, first, x[:, 0]), scores(family, column, x[:, :1]), rtol=1e-12)


# --- two components --------------------------------------------------------------------------
TRUTH = {
    "bernoulli": {"probs": [[0.1, 0.2, 0.8, 0.1, 0.5], [0.9, 0.7, 0.2, 0.8, 0.6]]},
    "multinomial": {"probs": [[0.7, 0.2, 0.1], [0.1, 0.4, 0.5]]},
    "negative-binomial": {"mean": [[3.0, 2.0], [30.0, 15.0]], "size": [[2.0, 1.0], [5.0, 8.0]]},
    "von-mises": {"mean": [[0.5, -1.0], [2.5, 2.0]], "concentration": [[3.0, 2.0], [6.0, 4.0]]},
    "t-full": {"mean": [[-4.0, 0.0], [4.0, 1.0]], "scale": MATRICES["full"][0], "df": [3.0, 6.0]},
    "t-tied": {"mean": [[-4.0, 0.0], [4.0, 1.0]], "scale": MATRICES["tied"][0], "df": [3.0, 6.0]},
    "t-diag": {"mean": [[-4.0, 0.0], [4.0, 1.0]], "scale": MATRICES["diag"][0], "df": [3.0, 6.0]},
    "t-spherical": {"mean": [[-4.0, 0.0], [4.0, 1.0]], "scale": MATRICES["spherical"][0], "df": [3.0, 6.0]},
}


@pytest.mark.parametrize("name", [name for name in EVERY if name != "t-of-given-df"])
def test_refit_of_a_sample_recovers_the_truth(x64, name):
    model = jaxem.Mixture(2, FAMILIES[name][0])
    truth = start(2, **TRUTH[name]) | {"weights": np.array([0.3, 0.7])}
    x = model.sample(jax.random.key(1), jax.tree.map(jnp.asarray, truth), 8_000)
    result = jaxem.fit(model, x, key=KEY, n_restarts=2)
    order = np.argsort(np.asarray(result.params["weights"]))
    got = jax.tree.map(
        lambda leaf: np.asarray(leaf)[order] if name != "t-tied" or leaf.ndim == 1 else np.asarray(leaf), result.params
    )
    if name == "t-tied":
        got["components"]["mean"] = got["components"]["mean"][order]
    df, wanted = got["components"].pop("df", 1.0), truth["components"].pop("df", 1.0)
    np.testing.assert_allclose(df, wanted, rtol=0.25)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.15, atol=0.05), got, truth)


@pytest.mark.published
@pytest.mark.parametrize("name", EVERY)
def test_precisions_agree_and_keep_their_dtype(name):
    family, data = FAMILIES[name]
    found, model, options = {}, jaxem.Mixture(2, family), dict(max_steps=10, stop=jaxem.Stop(loglik_rtol=None))
    with jax.enable_x64(True):
        # A random start is another in each precision.
        init = jaxem.fit(model, data(), key=KEY, max_steps=2).params
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            x = data().astype(dtype)
            result = jaxem.fit(model, x, init=cast(init, dtype), **options)
            assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(result.params))
            found[dtype] = float(result.loglik)
    assert found[np.float32] == pytest.approx(found[np.float64], rel=1e-4)
    params = result.params
    with jax.enable_x64(True):
        exact = np.asarray(jaxem.Mixture(2, family).log_prob(params, x))
    with jax.enable_x64(False):
        single = np.asarray(jaxem.Mixture(2, family).log_prob(cast(params, np.float32), x.astype(np.float32)))
    np.testing.assert_allclose(single, exact, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", EVERY)
def test_a_component_without_data_keeps_its_parameters(x64, name):
    family, data = FAMILIES[name]
    model, x = jaxem.Mixture(2, family), data()
    params = jaxem.fit(model, x, key=KEY, max_steps=2).params
    before = jax.tree.map(jnp.asarray, {**params, "weights": jnp.asarray([1.0, 0.0])})

    @jax.jit
    def step(params, x):
        about = model.centered(params)
        loglik = lambda eta: about.log_marginal(about.pack(eta), x, jaxem.Rows()).sum()  # noqa: E731
        return about.m_step(jax.grad(loglik)(about.natural(params)), params)

    after = step(before, jnp.asarray(x))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    for key, leaf in after["components"].items():
        if leaf.ndim and not (name == "t-tied" and key == "scale"):
            np.testing.assert_array_equal(leaf[1], before["components"][key][1])


@pytest.mark.published
@pytest.mark.parametrize("name", EVERY)
def test_weights_are_counts_and_zero_is_absence(x64, name):
    family, data = FAMILIES[name]
    model, x = jaxem.Mixture(2, family), data(120)
    weight = np.arange(120) % 3
    init = jaxem.fit(model, x, key=KEY, max_steps=2).params
    options = dict(init=init, max_steps=5, stop=jaxem.Stop(loglik_rtol=None))
    one = jaxem.fit(model, x, weight=weight, **options)
    two = jaxem.fit(model, np.repeat(x, weight, 0), **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), one.params, two.params)


@pytest.mark.parametrize("name", EVERY)
def test_objective_rises_in_single_precision(name):
    family, data = FAMILIES[name]
    with jax.enable_x64(False):
        result = jaxem.fit(jaxem.Mixture(2, family), data().astype(np.float32), key=KEY, max_steps=300)
    assert int(result.status) in (jaxem.Status.CONVERGED, jaxem.Status.MAX_STEPS)
    history = np.asarray(result.history, float)
    assert (np.diff(history) > -1e-5 * np.abs(history[-1])).all()


def test_sample_moments(dtype):
    zeros = jnp.zeros(40_000, int)
    x = np.asarray(
        jaxem.NegativeBinomial().sample(KEY, {"mean": jnp.asarray([6.0], dtype), "size": jnp.asarray([2.0], dtype)}, zeros)
    )
    assert x.dtype == dtype
    assert (x.mean(), x.var()) == (pytest.approx(6, rel=0.03), pytest.approx(6 + 36 / 2, rel=0.05))
    x = np.asarray(jaxem.Bernoulli().sample(KEY, {"probs": jnp.asarray([0.3], dtype)}, zeros))
    assert x.mean() == pytest.approx(0.3, abs=0.01) and set(x) == {0, 1} and x.dtype == dtype
    x = np.asarray(jaxem.Multinomial(n_trials=7).sample(KEY, {"probs": jnp.asarray([[0.5, 0.5, 0.0]], dtype)}, zeros))
    assert (x.sum(1) == 7).all() and (x[:, 2] == 0).all() and x.dtype == dtype
    assert x[:, 0].var() == pytest.approx(7 / 4, rel=0.05)
    params = {"mean": np.array([[1.0, -2.0]]), "scale": np.array([[[2.0, 0.5], [0.5, 1.0]]]), "df": np.array([9.0])}
    x = np.asarray(jaxem.StudentT().sample(KEY, jax.tree.map(jnp.asarray, cast(params, dtype)), zeros))
    assert x.dtype == dtype
    np.testing.assert_allclose(x.mean(0), [1, -2], atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), np.array([[2.0, 0.5], [0.5, 1.0]]) * 9 / 7, rtol=0.1, atol=0.05)


# --- the boundary ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("family", "x", "message"),
    [
        (jaxem.Bernoulli(), [0.0, 0.5], "data must be 0 or 1; got 0.5 in row 1"),
        (jaxem.Bernoulli(), [[0.0, np.nan]], "data must be 0 or 1; got nan in row 0, column 1"),
        (jaxem.Multinomial(), [[1.0, 0.5]], "counts .* got 0.5 in row 0, column 1"),
        (jaxem.Multinomial(), [[1.0, -1.0]], "counts .* got -1.0 in row 0, column 1"),
        (jaxem.Multinomial(), [1.0, 2.0], r"shape \(N, D\)"),
        (jaxem.Multinomial(n_trials=0), [[1.0, 2.0]], "n_trials"),
        (jaxem.NegativeBinomial(), [0.0, 1.5], "counts .* got 1.5 in row 1"),
        (jaxem.VonMises(), [0.0, np.inf], "finite"),
        (jaxem.StudentT(), [0.0, 1.0], r"x\[:, None\]"),
        (jaxem.StudentT(df=-1.0), [[0.0], [1.0]], "df must be None or positive and finite; got -1.0"),
        (lambda: jaxem.StudentT("round"), [[0.0], [1.0]], "covariance must be one of"),
    ],
)
def test_bad_input_is_refused(x64, family, x, message):
    with pytest.raises(ValueError, match=message):
        jaxem.fit(jaxem.Mixture(1, family() if callable(family) else family), np.array(x), key=KEY)


# --- derivatives -----------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", ["negative-binomial", "von-mises", "t-full"])
def test_gradient_of_a_fit_is_that_of_refits(x64, name):
    """The M-step's root has a derivative: without it the implicit derivative of the optimum would be another."""
    family, data = FAMILIES[name]
    model, x = jaxem.Mixture(2, family), jnp.asarray(data(150))
    init = jaxem.fit(model, x, key=KEY, max_steps=200).params
    stop = jaxem.Stop(loglik_rtol=None, param_rtol=1e-12)

    @jax.jit
    def total(weight):
        params = jaxem.fit(model, x, init=init, stop=stop, weight=weight, max_steps=20_000).params
        rng = np.random.default_rng(5)
        return sum((leaf * rng.normal(size=leaf.shape)).sum() for leaf in jax.tree.leaves(params))

    weight = jnp.ones(150)
    gradient = jax.jit(jax.grad(total))(weight)
    for i in (0, 7):
        step = jnp.zeros(150).at[i].set(1e-4)
        difference = float(total(weight + step) - total(weight - step)) / 2e-4
        assert float(gradient[i]) == pytest.approx(difference, rel=1e-6, abs=1e-6 * float(jnp.abs(gradient).max()))


# --- all laws --------------------------------------------------------------------------------
DERIVED = {"fisher", "e-step-matches-derived", "local", "device-count"}
PLAIN = DERIVED | {"variants-agree", "change-of-coordinates"}
SKIPPED = {
    "bernoulli": PLAIN,
    "multinomial": PLAIN,
    "von-mises": PLAIN,
    "negative-binomial": DERIVED | {"change-of-coordinates"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_laws(x64, name):
    family, data = FAMILIES[name]
    report = jaxem.check_model(jaxem.Mixture(2, family), data(200))
    assert set(report.skipped) == SKIPPED.get(name, DERIVED)
    assert report.ran == [law.name for law in LAWS if law.name not in report.skipped]
