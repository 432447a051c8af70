"""Factor analysis and probabilistic principal components: densities, starts, Heywood cases, and published figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from missing_rows import by_rows, gaps, stock_returns
from scipy import stats
from support import read

import jaxem
from jaxem import PPCA, FactorAnalysis, Status

SURE = jaxem.Stop(loglik_rtol=1e-14, param_rtol=1e-9)


def parameters(rng, d=5, q=2, noise=(5,)):
    loadings, mean = rng.normal(size=(d, q)), rng.normal(size=d)
    return {"loadings": jnp.asarray(loadings), "mean": jnp.asarray(mean), "noise": jnp.asarray(rng.uniform(0.3, 1, noise))}


# --- the density, the posterior, imputation ----------------------------------------------------
@pytest.mark.parametrize("noise", ["diag", "isotropic"])
def test_density_posterior_and_imputation_of_what_is_there(x64, noise):
    rng = np.random.default_rng(0)
    x, params = gaps(rng.normal(size=(25, 5))), parameters(rng, noise=(5,) if noise == "diag" else ())
    model = FactorAnalysis(2, noise=noise)
    loadings, mean, covariance = params["loadings"], np.asarray(params["mean"]), np.asarray(model.covariance(params))
    np.testing.assert_allclose(covariance - np.diag(np.broadcast_to(params["noise"], 5)), loadings @ loadings.T, atol=1e-12)
    wanted = by_rows(x, lambda v, on: stats.multivariate_normal.logpdf(v, mean[on], covariance[np.ix_(on, on)]))
    np.testing.assert_allclose(model.log_prob(params, jnp.asarray(x)), wanted, atol=1e-10)

    posterior, filled = model.posterior(params, x), np.asarray(model.impute(params, x))
    for row, z, v, full in zip(x, posterior.mean, posterior.covariance, filled, strict=True):
        on = ~np.isnan(row)
        gain = np.asarray(loadings)[on].T @ np.linalg.inv(covariance[np.ix_(on, on)]) if on.any() else np.zeros((2, 0))
        np.testing.assert_allclose(z, gain @ (row - mean)[on], atol=1e-11)
        np.testing.assert_allclose(v, np.eye(2) - gain @ np.asarray(loadings)[on], atol=1e-11)
        np.testing.assert_allclose(full, np.where(on, row, mean + loadings @ z), atol=1e-11)


def test_rows_of_a_covariance_are_what_they_stand_for(x64):
    rng = np.random.default_rng(1)
    root = rng.normal(size=(3, 3))
    rows, weight = jaxem.rows_of_covariance(root @ root.T, 50, mean=[1.0, 2.0, 3.0])
    assert weight.sum() == pytest.approx(50)
    np.testing.assert_allclose(weight @ rows / 50, [1, 2, 3])
    np.testing.assert_allclose(np.cov(rows.T, bias=True), root @ root.T, rtol=1e-12)


def test_varimax(x64):
    """A simple structure, turned away, is found again; the criterion is at its maximum over angles."""
    simple = np.array([[0.9, 0], [0.8, 0.1], [0, 0.7], [0.1, 0.6], [0.7, 0]])
    turn = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
    found, rotation = jaxem.varimax(simple @ turn, normalize=False)
    np.testing.assert_allclose(simple @ turn @ rotation, found, atol=1e-12)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(found, simple, atol=0.05)

    def criterion(angle):
        c, s = np.cos(angle), np.sin(angle)
        return np.var((found @ np.array([[c, -s], [s, c]])) ** 2, axis=0).sum()

    assert criterion(0) >= max(criterion(a) for a in np.linspace(-0.8, 0.8, 201)) - 1e-9


# --- iris --------------------------------------------------------------------------------------
@pytest.mark.published
def test_principal_components_start_at_their_maximum(x64, iris):
    """Tipping and Bishop's closed form is the start: for complete data one map confirms it."""
    for q, wanted in ((1, -470.669458321), (2, -404.962780156)):
        result = jaxem.fit(PPCA(q), iris)
        assert float(result.loglik) == pytest.approx(wanted, abs=1e-8)
        assert bool(result.converged) and int(result.n_steps) <= 2
        assert jaxem.PPCA(q).n_free_params(iris) == {1: 9, 2: 12}[q]


def test_a_heywood_case_is_degenerate(dtype, iris):
    result = jaxem.fit(FactorAnalysis(1), iris.astype(dtype))
    assert int(result.status) == Status.DEGENERATE
    # In float32 the noise stops at a floor that rounding sets.
    assert float(result.loglik) >= (-422.40 if dtype == np.float64 else -422.6)
    assert np.argmin(result.params["noise"]) == 2


# --- bad input ---------------------------------------------------------------------------------
def test_bad_input(x64, iris):
    with pytest.raises(ValueError, match="n_factors must be less than the number of columns, 4; got 4"):
        jaxem.fit(FactorAnalysis(4), iris)
    with pytest.raises(ValueError, match="n_factors must be an integer of at least 1; got 0"):
        jaxem.fit(FactorAnalysis(0), iris)
    with pytest.raises(ValueError, match="noise must be one of diag, isotropic; got 'full'"):
        jaxem.fit(FactorAnalysis(1, noise="full"), iris)
    with pytest.raises(ValueError, match=r"pattern must have shape \(4, 1\), columns by factors; got \(1, 4\)"):
        jaxem.fit(FactorAnalysis(1, pattern=np.ones((1, 4), bool)), iris)
    with pytest.raises(ValueError, match="every column; got only NaN in column 2"):
        jaxem.fit(FactorAnalysis(1), np.where(np.arange(4) == 2, np.nan, iris))
    with pytest.raises(ValueError, match=r"covariance must have shape \(D, D\); got \(150, 4\)"):
        jaxem.rows_of_covariance(iris, 150)
    with pytest.raises(ValueError, match="symmetric positive definite; its least eigenvalue is -1"):
        jaxem.rows_of_covariance(np.array([[1.0, 2.0], [2.0, 1.0]]), 10)
    with pytest.raises(ValueError, match="n must be positive; got 0"):
        jaxem.rows_of_covariance(np.eye(2), 0)


# --- factanal of R 4.2.2, factanal(covmat=R, factors=q, n.obs=n, nstart=10) -----------------------
FACTANAL = {
    ("ability_cor.csv", 112, 1): -853.758020695526,
    ("ability_cor.csv", 112, 2): -817.795670858585,
    ("harman74_cor.csv", 145, 1): -4444.51213372671,
    ("harman74_cor.csv", 145, 2): -4336.39387809248,
    ("harman74_cor.csv", 145, 3): -4269.67358048811,
    ("harman74_cor.csv", 145, 4): -4232.77923341958,
    ("harman74_cor.csv", 145, 5): -4211.48403657185,
}
#: Uniquenesses of ability.cov with one factor, as R prints them.
ABILITY = [0.534598918, 0.852578996, 0.748185649, 0.910127802, 0.231716114, 0.279741117]


@pytest.mark.published
@pytest.mark.parametrize("case", FACTANAL, ids=lambda case: f"{case[0][:-8]}-{case[2]}")
def test_factanal(x64, case):
    name, n, q = case
    data, weight = jaxem.rows_of_covariance(read(name), n)
    result = jaxem.fit(FactorAnalysis(q), data, weight=weight, stop=SURE)
    # factanal's optimizer stops at a relative change of 1e-8 or so of its own criterion.
    assert float(result.loglik) == pytest.approx(FACTANAL[case], abs=1e-7)
    assert bool(result.converged)
    if (name, q) == ("ability_cor.csv", 1):
        np.testing.assert_allclose(result.params["noise"], ABILITY, atol=1e-6)


@pytest.mark.published
def test_stocks(x64):
    x = stock_returns()
    result = jaxem.fit(FactorAnalysis(3), x, stop=jaxem.Stop(loglik_rtol=1e-12))
    assert float(result.loglik) == pytest.approx(442782.2762, abs=1e-3)
    result = jaxem.fit(PPCA(3), x)
    assert float(result.loglik) == pytest.approx(426485.02085, abs=1e-4)


@pytest.mark.published
def test_missing_entries_and_random_starts(x64):
    """From data of which a third is missing every start finds the same maximum, as far from the truth as it should be."""
    rng = np.random.default_rng(3)
    params = parameters(rng, d=8, noise=(8,))
    x = gaps(FactorAnalysis(2).sample(jax.random.key(0), params, 3_000), 0.33)
    result = jaxem.fit(FactorAnalysis(2), x, key=jax.random.key(1), n_restarts=3, stop=jaxem.Stop(loglik_rtol=1e-11))
    np.testing.assert_allclose(result.restarts.loglik, float(result.loglik), atol=1e-3)
    model, n_free = FactorAnalysis(2), FactorAnalysis(2).n_free_params(x)
    ratio = 2 * (float(result.loglik) - float(model.log_prob(params, jnp.asarray(x)).sum()))
    assert stats.chi2.ppf(1e-4, n_free) < ratio < stats.chi2.ppf(1 - 1e-4, n_free)  # Wilks, against the truth


# --- standard errors -----------------------------------------------------------------------------
def expected_information(covariance, parts, n):
    """(P, P) of a normal density with P derivatives `parts` of its covariance."""
    solved = [np.linalg.solve(covariance, part) for part in parts]
    return np.array([[n / 2 * np.trace(a @ b) for b in solved] for a in solved])


def test_errors_of_factors_in_the_canonical_rotation(x64):
    """Where the sample covariance is the model's own, observed and expected information are equal: formulas hold exactly."""
    n, model = 400, FactorAnalysis(2)
    params = {**parameters(np.random.default_rng(2), 6, 2, (6,)), "mean": jnp.zeros(6)}
    rows, weight = jaxem.rows_of_covariance(model.covariance(params), n)
    found = jaxem.information(model, params, rows, weight=weight)
    assert found.flat_leaves() == {"loadings": pytest.approx(1)}
    loadings, noise = np.asarray(found.params["loadings"]), np.asarray(params["noise"])
    explained = loadings.T @ (loadings / noise[:, None])
    np.testing.assert_allclose(explained, np.diag(np.diagonal(explained)), atol=1e-12)
    assert explained[0, 0] > explained[1, 1] and (loadings.sum(0) > 0).all()
    np.testing.assert_allclose(model.covariance(found.params), model.covariance(params), atol=1e-12)
    errors = jaxem.standard_errors(found)

    # Uniquenesses: Lawley and Maxwell (1971), chapter 5.
    precise = np.diag(1 / noise)
    phi = precise - precise @ loadings @ np.linalg.solve(explained, loadings.T @ precise)
    np.testing.assert_allclose(errors["noise"], np.sqrt(np.diag(2 / n * np.linalg.inv(phi**2))), rtol=1e-7)
    np.testing.assert_allclose(errors["mean"], np.sqrt(np.diag(model.covariance(params)) / n), rtol=1e-10)

    # Loadings: the information bordered by the derivative of what the rotation sets to zero (Silvey 1959; Jennrich 1974).
    unit = np.eye(12).reshape(12, 6, 2)
    parts = [u @ loadings.T + loadings @ u.T for u in unit] + [np.diag(e) for e in np.eye(6)]
    border = [(u.T @ precise @ loadings + loadings.T @ precise @ u)[0, 1] for u in unit]
    border = np.array([*border, *(-(loadings[:, 0] * loadings[:, 1]) / noise**2)])
    whole = np.block([[expected_information(np.asarray(model.covariance(params)), parts, n), border[:, None]], [border, 0]])
    wanted = np.sqrt(np.diag(np.linalg.inv(whole)))[:12].reshape(6, 2)
    np.testing.assert_allclose(errors["loadings"], wanted, rtol=1e-6)

    # The rotation of the parameters given is of no matter; of the covariance errors are smaller than of that of the data.
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    turned = jaxem.information(model, {**params, "loadings": params["loadings"] @ turn}, rows, weight=weight)
    np.testing.assert_allclose(jaxem.standard_errors(turned)["loadings"], errors["loadings"], rtol=1e-6)
    v = np.asarray(model.covariance(params))
    saturated = np.sqrt((v**2 + np.outer(np.diag(v), np.diag(v))) / n)
    fitted = jaxem.standard_errors(found, model.covariance)
    assert (fitted <= saturated * (1 + 1e-8)).all() and (fitted > 0.3 * saturated).all()
    shares = jaxem.standard_errors(found, model.communalities)
    again = jaxem.standard_errors(turned, lambda p: 1 - p["noise"] / jnp.diag(model.covariance(p)))
    np.testing.assert_allclose(shares, again, rtol=1e-6)


def test_errors_of_principal_components(x64):
    """Of eigenvalues and eigenvectors of a covariance (Anderson 1963)."""
    d, q, n, noise = 6, 2, 400, 0.5
    vectors, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))
    values = np.array([5.0, 3.0] + [noise] * (d - q))
    vectors = vectors * np.where(vectors.sum(0) < 0, -1, 1)
    rows, weight = jaxem.rows_of_covariance(vectors * values @ vectors.T, n)
    params = {"loadings": vectors[:, :q] * np.sqrt(values[:q] - noise), "mean": np.zeros(d), "noise": np.array(noise)}
    found = jaxem.information(PPCA(q), params, rows, weight=weight)
    errors = jaxem.standard_errors(found)
    np.testing.assert_allclose(errors["noise"] ** 2, 2 * noise**2 / (n * (d - q)), rtol=1e-8)
    for k in range(q):
        gap = np.delete(values, k) / np.square(values[k] - np.delete(values, k))
        turning = values[k] / n * (np.delete(vectors, k, 1) * gap @ np.delete(vectors, k, 1).T)
        length = (2 * values[k] ** 2 / n + 2 * noise**2 / (n * (d - q))) / (4 * (values[k] - noise))
        wanted = (values[k] - noise) * turning + length * np.outer(vectors[:, k], vectors[:, k])
        np.testing.assert_allclose(errors["loadings"][:, k] ** 2, np.diag(wanted), rtol=1e-6)


def test_refits_are_turned_to_one_rotation(x64):
    model, params = FactorAnalysis(2), parameters(np.random.default_rng(2))
    rows = model.sample(jax.random.key(0), params, 60)
    refits = jaxem.bootstrap(model, params, rows, key=jax.random.key(1), n_samples=3, method="weighted", max_steps=2)
    for loadings, noise in zip(np.asarray(refits.params["loadings"]), np.asarray(refits.params["noise"]), strict=True):
        explained = loadings.T @ (loadings / noise[:, None])
        np.testing.assert_allclose(explained, np.diag(np.diagonal(explained)), atol=1e-10)
        assert explained[0, 0] > explained[1, 1] and ((loadings * refits.estimate["loadings"]).sum(0) > 0).all()
    np.testing.assert_allclose(refits.estimate["loadings"], model.canonical(params)["loadings"], rtol=1e-10)
    shares = np.array([model.communalities(jax.tree.map(lambda x, b=b: x[b], refits.params)) for b in range(3)])
    np.testing.assert_allclose(jaxem.standard_errors(refits, model.communalities), shares.std(0, ddof=1), rtol=1e-10)


@pytest.mark.parametrize(("model", "n"), [(FactorAnalysis(4), 20), (FactorAnalysis(2), 19), (PPCA(4), 20), (PPCA(1), 11)])
def test_no_more_free_parameters_than_a_covariance_has(model, n):
    assert model.n_free_params(np.zeros((9, 5))) == n
