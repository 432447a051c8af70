"""Missing entries, summed out: densities of single components, mixtures and chains, imputation, and published figures."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from missing_rows import by_rows, gaps, stock_returns
from scipy import stats
from support import DATA, clusters

import jaxem
from jaxem import MultivariateNormal, MultivariateT

SHAPES = ("full", "tied", "diag", "spherical")


def components(covariance, rng, d=3):
    root = rng.normal(size=(2, d, d))
    full = root @ np.swapaxes(root, 1, 2) + np.eye(d)
    value = {"full": full, "tied": full[0], "diag": rng.uniform(0.5, 2, (2, d)), "spherical": rng.uniform(0.5, 2, 2)}
    wide = {"full": full, "tied": full[[0, 0]], "diag": value["diag"][:, None] * np.eye(d)}
    wide["spherical"] = value["spherical"][:, None, None] * np.eye(d)
    return rng.normal(size=(2, d)), value[covariance], wide[covariance]


# --- densities against SciPy -------------------------------------------------------------------
@pytest.mark.parametrize("covariance", SHAPES)
def test_mixtures_have_the_density_of_what_is_there(x64, covariance):
    rng = np.random.default_rng(1)
    x = gaps(rng.normal(size=(30, 3)))
    mean, value, wide = components(covariance, rng)
    weights = np.array([0.3, 0.7])
    normal = [
        by_rows(x, lambda v, on, k=k: stats.multivariate_normal.logpdf(v, mean[k][on], wide[k][np.ix_(on, on)])) for k in (0, 1)
    ]
    model = jaxem.GaussianMixture(2, covariance, missing="marginal")
    params = {"weights": jnp.asarray(weights), "components": {"mean": jnp.asarray(mean), "covariance": jnp.asarray(value)}}
    wanted = np.log(weights @ np.exp(normal))
    np.testing.assert_allclose(model.log_prob(params, jnp.asarray(x)), wanted, rtol=1e-11, atol=1e-11)
    table = model.prepared(x)
    assert table.family.patterns is not None  # type: ignore[attr-defined]
    np.testing.assert_allclose(table.log_prob(params, jnp.asarray(x)), wanted, rtol=1e-11, atol=1e-11)

    df = np.array([3.0, 8.0])
    t = [
        by_rows(x, lambda v, on, k=k: stats.multivariate_t.logpdf(v, mean[k][on], wide[k][np.ix_(on, on)], df[k]))
        for k in (0, 1)
    ]
    model = jaxem.Mixture(2, jaxem.StudentT(covariance, missing="marginal"))
    params["components"] = {"mean": jnp.asarray(mean), "scale": jnp.asarray(value), "df": jnp.asarray(df)}
    wanted = np.log(weights @ np.exp(t))
    np.testing.assert_allclose(model.log_prob(params, jnp.asarray(x)), wanted, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(model.prepared(x).log_prob(params, jnp.asarray(x)), wanted, rtol=1e-11, atol=1e-11)


def test_imputation_is_the_conditional_mean(x64):
    rng = np.random.default_rng(2)
    x = gaps(rng.normal(size=(20, 3)))
    mean, _, wide = components("full", rng)

    def filled(row, m, c):
        on = ~np.isnan(row)
        gain = c[:, on] @ np.linalg.inv(c[np.ix_(on, on)]) if on.any() else np.zeros((3, 0))
        return np.where(on, row, m + gain @ (row - m)[on])

    each = np.array([[filled(row, m, c) for row in x] for m, c in zip(mean, wide, strict=True)])
    one = {"mean": jnp.asarray(mean[0]), "covariance": jnp.asarray(wide[0])}
    np.testing.assert_allclose(MultivariateNormal().impute(one, x), each[0], atol=1e-11)
    one = {"mean": one["mean"], "scale": one["covariance"], "df": jnp.asarray(4.0)}
    np.testing.assert_allclose(MultivariateT().impute(one, x), each[0], atol=1e-11)
    model = jaxem.GaussianMixture(2, missing="marginal")
    both = {"mean": jnp.asarray(mean), "covariance": jnp.asarray(wide)}
    params = {"weights": jnp.asarray([0.4, 0.6]), "components": both}
    share = np.asarray(model.posterior(params, jnp.asarray(x)))
    np.testing.assert_allclose(model.impute(params, jnp.asarray(x)), np.einsum("nk,knd->nd", share, each), atol=1e-11)


# --- fits --------------------------------------------------------------------------------------
def test_an_empty_row_tells_nothing_and_complete_data_are_what_they_were(x64):
    x = clusters(60, 2, 1, seed=3)
    stop = jaxem.Stop(loglik_rtol=1e-14)
    whole = jaxem.fit(MultivariateNormal(), x, stop=stop)
    np.testing.assert_allclose(whole.params["mean"], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.params["covariance"], np.cov(x.T, bias=True), rtol=1e-10)
    wanted = stats.multivariate_normal.logpdf(x, x.mean(0), np.cov(x.T, bias=True)).sum()
    assert float(whole.loglik) == pytest.approx(wanted, rel=1e-12)
    empty = jaxem.fit(MultivariateNormal(), np.concatenate([x, np.full((5, 2), np.nan)]), stop=stop)
    assert float(empty.loglik) == pytest.approx(wanted, rel=1e-9)
    np.testing.assert_allclose(empty.params["mean"], x.mean(0), rtol=1e-5)


@pytest.mark.published
def test_mixtures_and_chains_learn_from_rows_with_gaps(x64):
    rng = np.random.default_rng(4)
    state = np.repeat(rng.integers(2, size=30), 10)
    x = np.array([[-2.0, 0, 1], [2, 1, -1]])[state] + rng.normal(size=(300, 3)) @ np.array(
        [[1, 0.8, 0], [0, 0.6, 0], [0, 0, 1]]
    )
    x[rng.random(x.shape) < 0.3] = np.nan
    model = jaxem.GaussianMixture(2, missing="marginal")
    result = jaxem.fit(model, x, key=jax.random.key(0), n_restarts=4)
    found = np.asarray(model.predict(result.params, jnp.asarray(x)))
    assert max((found == state).mean(), (found != state).mean()) > 0.9
    assert float(result.loglik) == pytest.approx(float(model.log_prob(result.params, jnp.asarray(x)).sum()), rel=1e-10)
    chain = jaxem.HMM(2, jaxem.Gaussian(missing="marginal"))
    sequences = jaxem.sequences(list(x.reshape(6, 50, 3)))
    result = jaxem.fit(chain, sequences, key=jax.random.key(0), n_restarts=4)
    found = np.asarray(chain.predict(result.params, sequences)).reshape(-1)
    assert max((found == state).mean(), (found != state).mean()) > 0.97
    assert float(result.loglik) == pytest.approx(float(chain.log_prob(result.params, sequences).sum()), rel=1e-10)


@pytest.mark.published
def test_a_prior_is_the_same_in_every_coordinate(x64):
    """Standardized columns or the data's own: a prior on a covariance must not notice."""
    x = gaps(clusters(40, 2, 1, seed=5) * [1.0, 30.0] + [0.0, 500.0], 0.2)
    prior = jaxem.NormalInverseWishart(np.array([0.0, 450.0]), 0.5, 6.0, np.array([[2.0, 3.0], [3.0, 900.0]]))
    stop = jaxem.Stop(loglik_rtol=1e-14, param_rtol=1e-10)
    fits = [jaxem.fit(MultivariateNormal(prior=prior), x, stop=stop, standardize=s) for s in (True, False)]
    assert float(fits[0].objective) == pytest.approx(float(fits[1].objective), rel=1e-9)
    np.testing.assert_allclose(fits[0].params["covariance"], fits[1].params["covariance"], rtol=1e-6)


def test_a_part_of_a_product_may_lack_columns(x64):
    """A part that takes missing entries itself takes them in a product too."""
    rng = np.random.default_rng(6)
    x = gaps(rng.normal(size=(20, 3)))
    x[1, 0] = 1.0
    mean, _, wide = components("full", rng)
    product = jaxem.Product((jaxem.Gaussian(missing="marginal"), jaxem.Gaussian()), ((0, 2), (1,)))
    pair = np.ix_([0, 1], [0, 2], [0, 2])
    params = (
        {"mean": jnp.asarray(mean[:, [0, 2]]), "covariance": jnp.asarray(wide[pair])},
        {"mean": jnp.asarray(mean[:, [1]]), "covariance": jnp.asarray(wide[:, 1:2, 1:2])},
    )
    model = jaxem.Mixture(2, product)
    got = model.log_prob({"weights": jnp.asarray([0.5, 0.5]), "components": params}, jnp.asarray(model.validate(x)))
    apart = wide.copy()
    apart[:, 1, [0, 2]] = apart[:, [0, 2], 1] = 0
    normal = [
        by_rows(x, lambda v, on, k=k: stats.multivariate_normal.logpdf(v, mean[k][on], apart[k][np.ix_(on, on)]))
        for k in (0, 1)
    ]
    np.testing.assert_allclose(got, np.log(np.mean(np.exp(normal), 0)), atol=1e-11)


@pytest.mark.published
def test_inside_jit_and_vmap(x64):
    """There no table of patterns can be made: the same fit, row by row, with the weights of two bootstraps side by side."""
    x = gaps(clusters(40, 2, 1, seed=9), 0.2)
    weight = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), 2).astype(float)
    stop = jaxem.Stop(loglik_rtol=None, param_rtol=1e-9)
    both = jax.jit(jax.vmap(lambda w: jaxem.fit(MultivariateNormal(), jnp.asarray(x), weight=w, stop=stop)))(
        jnp.asarray(weight)
    )
    for i in range(2):
        alone = jaxem.fit(MultivariateNormal(), x, weight=weight[i], stop=stop)
        assert float(both.loglik[i]) == pytest.approx(float(alone.loglik), rel=1e-8)
        np.testing.assert_allclose(both.params["mean"][i], alone.params["mean"], atol=1e-6)


BAD = {
    "a column that is missing whole": (np.array([[1.0, np.nan], [2.0, np.nan]]), r"every column; got only NaN in column 1"),
    "an infinity": (
        np.array([[1.0, np.inf], [2.0, 1.0]]),
        r"finite, or NaN where an entry is missing; got inf in row 0, column 1",
    ),
    "one column as a vector": (np.array([1.0, np.nan]), r"shape \(N, D\); got shape \(2,\); for one feature pass x\[:, None\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data(x64, name):
    data, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        jaxem.fit(MultivariateNormal(), data)


def test_bad_options(x64):
    parts = jaxem.Product((jaxem.Gaussian("diag"),) * 2, ((0,), (1,)))
    with pytest.raises(ValueError, match="data must be finite, or NaN where an entry is missing; got inf in row 1, column 0"):
        jaxem.fit(jaxem.Mixture(1, parts), np.array([[1.0, 2.0], [np.inf, 1.0]]), key=jax.random.key(0))
    x = np.array([[1.0, 2.0], [np.nan, 1.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match=r"finite; NaN or inf in 1 row\(s\): 1"):
        jaxem.fit(MultivariateNormal(missing=None), x)
    with pytest.raises(ValueError, match="missing must be None or 'marginal'; got 'mean'"):
        jaxem.fit(MultivariateNormal(missing="mean"), x)
    with pytest.raises(ValueError, match="'full', 'diag' or 'spherical' for a single density; got 'tied'"):
        jaxem.fit(MultivariateNormal("tied"), x)
    with pytest.raises(ValueError, match="df must be None or positive and finite; got -1"):
        jaxem.fit(MultivariateT(df=-1.0), x)
    frame = pytest.importorskip("pandas").DataFrame({"a": [1.0, 2.0], "empty": [np.nan, np.nan]})
    with pytest.raises(ValueError, match=r"only NaN in column 1 \(empty\)"):
        jaxem.fit(MultivariateNormal(), frame)


# --- published figures -------------------------------------------------------------------------
SURE = jaxem.Stop(loglik_rtol=1e-14, param_rtol=1e-9)


def with_gaps(name):
    return np.genfromtxt(DATA / name, delimiter=",", skip_header=1)


@pytest.mark.published
def test_murray(x64):
    """Twelve rows, two maxima and a saddle between them (Murray 1977)."""
    x, model = with_gaps("murray.csv"), MultivariateNormal()
    saddle = jaxem.fit(model, x, stop=SURE)
    assert float(saddle.params["covariance"][0, 1]) == pytest.approx(0, abs=1e-9)
    found = jaxem.information(model, saddle, x)
    assert bool(found.singular)
    with pytest.raises(
        jaxem.SingularInformationError, match=r"not positive definite .* direction of covariance: params is no maximum"
    ):
        found.standard_errors()
    stop = jaxem.Stop(loglik_rtol=None, param_rtol=1e-10)
    signs = set()
    for seed in range(4):
        result = jaxem.fit(model, x, key=jax.random.key(seed), stop=stop)
        assert float(result.loglik) == pytest.approx(-29.974286410, abs=1e-8)
        covariance = np.asarray(result.params["covariance"])
        rho = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        assert abs(rho) == pytest.approx(0.5, abs=1e-6)
        signs.add(np.sign(rho))
    assert signs == {-1.0, 1.0}
    assert not bool(jaxem.information(model, result, x).singular)


@pytest.mark.published
def test_africa(x64):
    x = with_gaps("africa5.csv")
    x = (x - np.nanmean(x, 0)) / np.nanstd(x, 0, ddof=1)
    assert float(jaxem.fit(MultivariateNormal(), x, stop=SURE).loglik) == pytest.approx(-728.0374826142, abs=1e-8)


@pytest.mark.published
def test_hald(x64):
    """Little and Rubin 2002, example 7.3; the likelihood is flat, so that means agree to the digits printed."""
    result = jaxem.fit(MultivariateNormal(), with_gaps("hald_monotone.csv"), stop=SURE, algorithm=jaxem.Squarem())
    assert float(result.loglik) == pytest.approx(-132.92525045, abs=1e-7)
    np.testing.assert_allclose(result.params["mean"], [6.65517, 49.96526, 11.76923, 27.04709, 95.42308], atol=2e-5)


def ragged_returns():
    with gzip.open(DATA / "ragged_returns.csv.gz", "rt") as lines:
        return np.genfromtxt(lines, delimiter=",", skip_header=1)[:, 1:]


def monotone_maximum(x):
    """Log-likelihood at the maximum of monotone data: a chain of regressions (Anderson 1957; Stambaugh 1997)."""
    order = np.argsort(np.isnan(x).sum(0), kind="stable")
    x, total = x[:, order], 0.0
    for j in range(x.shape[1]):
        rows = ~np.isnan(x[:, j])
        design = np.column_stack([np.ones(rows.sum()), x[rows, :j]])
        rest = x[rows, j] - design @ np.linalg.lstsq(design, x[rows, j], rcond=None)[0]
        total -= len(rest) / 2 * (np.log(2 * np.pi * np.mean(rest**2)) + 1)
    return total


@pytest.mark.published
def test_stambaughs_ragged_returns(x64):
    x = ragged_returns()
    assert monotone_maximum(x) == pytest.approx(70113.959063, abs=1e-5)
    result = jaxem.fit(MultivariateNormal(), x, stop=SURE, algorithm=jaxem.QuasiNewton())
    assert float(result.loglik) == pytest.approx(70113.959063, abs=1e-5)


@pytest.mark.published
def test_t_density_of_stocks(x64):
    x = stock_returns()
    assert x.shape == (8312, 20)
    result = jaxem.fit(MultivariateT(), x, stop=jaxem.Stop(loglik_rtol=1e-12))
    assert float(result.loglik) == pytest.approx(467921.470155, abs=1e-3)
    assert float(result.params["df"]) == pytest.approx(3.71007, abs=1e-4)
