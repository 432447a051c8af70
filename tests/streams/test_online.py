"""Online EM: the recursion of Cappe and Moulines (2009) step by step, its averages, its state; figures against full EM."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import poisson
from support import clusters

import jaxem
from jaxem.streams import online
from jaxem.streams.sources import Array


def close(left, right, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), left, right)


# --- statistics that move --------------------------------------------------------------------
def mixture_of(family, data):
    model, data = jaxem.Mixture(2, family), jax.tree.map(jnp.asarray, data)
    n = len(jax.tree.leaves(data)[0])
    return lambda key: model.initialize(key, data, jnp.ones(n)), model, data


def moving_cases():
    x = clusters(60, 2, 2, seed=1)
    counts = np.random.default_rng(0).poisson(5.0, (60, 1)).astype(float)
    return {
        "full and counts": mixture_of(jaxem.Product((jaxem.Gaussian("full"), jaxem.NegativeBinomial()), ((0, 1), (2,))), np.hstack([x, counts])),
        "tied t": mixture_of(jaxem.StudentT("tied"), x),
        "mixtures of spherical": mixture_of(jaxem.FamilyMixture(2, jaxem.Gaussian("spherical")), x),
        "diagonal": mixture_of(jaxem.Gaussian("diag"), x),
        "regression": mixture_of(jaxem.LinearRegression(), {"y": x[:, 0], "inputs": x[:, 1:]}),
    }  # fmt: skip


#: Beyond what the default suite has time for.
MORE = pytest.mark.published


@pytest.mark.parametrize(
    "name", [pytest.param("full and counts", marks=MORE), "tied t", "mixtures of spherical", "diagonal", "regression"]
)
@pytest.mark.published
def test_moved_statistics_are_those_taken_about_the_new_origin(x64, name):
    start, model, data = moving_cases()[name]

    @jax.jit
    def both(here, there):
        def about(where):  # the posterior of `here`, moments about `where`
            at = model.centered(where)
            total = lambda eta: at.log_marginal(at.pack(eta), data, jaxem.Rows()).sum()  # noqa: E731
            return jax.grad(total)(at.natural(here))

        return model.centered(here).recentered(about(here), there), about(there)

    close(*both(start(jax.random.key(0)), start(jax.random.key(7))), 1e-8)


def test_a_model_that_cannot_move_its_statistics_says_so(x64):
    @jaxem.struct
    class Stubborn(jaxem.LDA):
        def centered(self, params):
            return self

    with pytest.raises(TypeError, match=r"Stubborn takes statistics about parameters .* no `recentered`"):
        Stubborn(2).recentered({}, {})


# --- the recursion ---------------------------------------------------------------------------
SETTINGS = online.OnlineEM(alpha=0.7, t0=1.0, warmup=3)


def counts(n=40, rows=25, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(np.where(rng.random((n, rows)) < 0.4, 3.0, 12.0)).astype(float)


START = {"weights": np.array([0.5, 0.5]), "components": {"rate": np.array([4.0, 8.0])}}


def by_hand(batches, settings):
    """Parameters after the last step, and from the average of the last half, of a Poisson mixture."""

    def statistics(batch, params):
        joint = params["weights"][:, None] * poisson.pmf(batch, params["components"]["rate"][:, None])
        r = joint / joint.sum(0)
        return np.stack([r.sum(1), r @ batch]) / len(batch)

    def maximized(s):
        return {"weights": s[0] / s[0].sum(), "components": {"rate": s[1] / s[0]}}

    params, s, path = START, statistics(batches[0], START), []
    for t, batch in enumerate(batches, 1):
        rate = (t + settings.t0) ** -settings.alpha
        s = (1 - rate) * s + rate * statistics(batch, params)
        path.append(s)
        params = maximized(s) if t > settings.warmup else params
    return params, path, maximized


def test_the_recursion_and_its_averages_against_numpy(x64):
    batches = counts()
    state = online.init(jaxem.Mixture(2, jaxem.Poisson()), batches[0], init=START, settings=SETTINGS)
    begun = SETTINGS.warmup
    for t, batch in enumerate(batches, 1):
        state = online.update(state, batch)
        if t >= 4 * begun:
            begun *= 2
        if t in (2, 3, 4, 11, 12, 13, 24, 40):
            params, path, maximized = by_hand(batches[:t], SETTINGS)
            close(state.params, params, 1e-10)
            # The mean of the last half to three quarters of the steps.
            mean = path[-1] if t <= begun else np.mean(path[begun:], 0)
            close(state.averaged, maximized(mean), 1e-10)
            assert t <= 2 * SETTINGS.warmup or t / 2 <= t - begun <= 3 * t / 4
    assert int(state.n_steps) == 40 and float(state.n_data) == 1000


@MORE
def test_a_rate_of_one_is_an_em_step(x64):
    x = clusters(200, 2, 2)
    state = online.init(jaxem.GaussianMixture(2), x, key=jax.random.key(0), settings=online.OnlineEM(t0=0.0, warmup=0))
    once = jaxem.fit(jaxem.GaussianMixture(2), x[50:], init=state.params, max_steps=1)
    close(online.update(state, x[50:]).params, once.params, 1e-8)


def test_weights_count_rows(x64):
    batch = counts()[0]
    state = online.init(jaxem.Mixture(2, jaxem.Poisson()), batch, init=START, settings=online.OnlineEM(warmup=0))
    weight = np.arange(25.0) % 3
    twice = np.repeat(batch, weight.astype(int))
    bad = np.where(weight == 0, np.nan, batch)
    close(online.update(state, bad, weight).params, online.update(state, twice).params, 1e-12)


def test_a_prior_counts_once(x64):
    batches = counts()
    model = jaxem.Mixture(2, jaxem.Poisson(), jaxem.Dirichlet(50.0))
    state = online.init(model, batches[0], init=START, settings=online.OnlineEM(alpha=1.0, t0=0.0, warmup=0, n_data=25.0))
    fitted = jaxem.fit(model, batches[1], init=START, max_steps=1)
    close(online.update(state, batches[1]).params, fitted.params, 1e-10)


# --- the state -------------------------------------------------------------------------------
def test_pure_in_a_scan_and_stored_leaf_by_leaf():
    batches = counts().astype(np.float32)
    begin = online.init(jaxem.Mixture(2, jaxem.Poisson()), batches[0], init=START, settings=SETTINGS)
    state = begin
    for batch in batches[:20]:
        state = online.update(state, batch)
    leaves, structure = jax.tree.flatten(state)
    stored = jax.tree.unflatten(structure, [np.array(x) for x in leaves])
    for batch in batches[20:]:
        state, stored = online.update(state, batch), online.update(stored, batch)
    jax.tree.map(np.testing.assert_array_equal, state, stored)
    scanned, _ = jax.lax.scan(lambda state, batch: (online.update(state, batch), None), begin, batches)
    close(scanned.params, state.params, 1e-5)


def test_a_batch_that_is_not_finite_is_left_out(x64):
    batches = counts()
    state = online.init(jaxem.Mixture(2, jaxem.Poisson()), batches[0], init=START, settings=SETTINGS)
    broken = batches[1].copy()
    broken[3] = np.nan
    after = online.update(state, broken)
    assert int(after.n_skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(after, n_skipped=state.n_skipped), state)
    with pytest.raises(ValueError, match=r"counts .non-negative integers.; got"):
        online.update(state, batches[1] + 0.5)
    with pytest.raises(ValueError, match=r"has shape .2,., data call for .2, 1."):
        online.update(state, batches[1][:, None].tolist())


def test_settings_are_numbers(x64):
    batches = counts()
    model = jaxem.Mixture(2, jaxem.Poisson())
    traced = jaxem.streams.online._update._cache_size
    online.update(online.init(model, batches[0], init=START, settings=SETTINGS), batches[1])
    before = traced()
    online.update(online.init(model, batches[0], init=START, settings=online.OnlineEM(0.9, 5.0, 0.1, 2)), batches[1])
    assert traced() == before + 1 or traced() == before  # Python floats and ints are weakly typed leaves
    online.update(online.init(model, batches[0], init=START, settings=online.OnlineEM(0.8, 4.0, 0.2, 3)), batches[1])
    assert traced() <= before + 1


def test_narrow_clusters_far_away_in_float32():
    rng = np.random.default_rng(0)
    x = (np.array([1000.0, 1001.0])[rng.integers(2, size=6000)] + 1e-3 * rng.normal(size=6000)).astype(np.float32)[:, None]
    state = online.init(jaxem.GaussianMixture(2, "diag"), x[:500], key=jax.random.key(0))
    state, _ = online.run(state, Array(x, batch_size=100))
    # float32 itself has steps of 6e-5 at 1000.
    np.testing.assert_allclose(np.sqrt(np.asarray(state.averaged["components"]["covariance"])), 1e-3, rtol=0.05)


def test_a_least_rate_follows_a_drift(x64):
    rng = np.random.default_rng(0)
    level = np.linspace(10, 40, 300)
    batches = rng.poisson(np.where(rng.random((300, 50)) < 0.5, level[:, None], 3.0)).astype(float)
    found = {}
    for least in (0.0, 0.1):
        settings = online.OnlineEM(alpha=1.0, least_rate=least)
        state = online.init(jaxem.Mixture(2, jaxem.Poisson()), batches[0], init=START, settings=settings)
        for batch in batches:
            state = online.update(state, batch)
        found[least] = float(state.params["components"]["rate"].max())
    assert abs(found[0.1] - 40) < 2 and found[0.0] < 35


# --- sources ---------------------------------------------------------------------------------
def test_run_reports_both_and_names_a_bad_batch(x64):
    batches = counts()
    model = jaxem.Mixture(2, jaxem.Poisson())
    state = online.init(model, batches[0], init=START, settings=SETTINGS)
    after, trace = online.run(state, iter(batches), held_out=batches[:4].ravel(), every=15)
    np.testing.assert_array_equal(trace.step, [15, 30, 40])
    for params, reported in ((after.params, trace.loglik[-1]), (after.averaged, trace.averaged[-1])):
        np.testing.assert_allclose(model.log_prob(params, jnp.asarray(batches[:4].ravel())).mean(), reported)
    twice, _ = online.run(state, list(batches), n_passes=2)
    assert int(twice.n_steps) == 80
    batches[17, 2] = -1
    with pytest.raises(jaxem.BatchError, match=r"batch 17: data must be .*non-negative"):
        online.run(state, list(batches))
    with pytest.raises(TypeError, match="iterator ends after the first"):
        online.run(state, iter(list(batches)), n_passes=2)


def test_what_cannot_be_averaged():
    model = jaxem.Mixture(2, jaxem.density(lambda p, x: -((x[0] - p["m"]) ** 2), init={"m": 0.0}))
    with pytest.raises(TypeError, match="online EM needs a model with finite sufficient statistics"):
        online.init(model, clusters(20, 1, 2), key=jax.random.key(0))
    with pytest.raises(ValueError, match="data must be finite"):
        online.init(jaxem.GaussianMixture(2), np.full((20, 2), np.nan), key=jax.random.key(0))


@MORE
def test_an_hmm_nears_its_optimum(x64):
    rng = np.random.default_rng(0)
    truth = {
        "initial": np.full(2, 0.5),
        "transition": np.array([[0.9, 0.1], [0.2, 0.8]]),
        "emission": {"rate": np.array([2.0, 9.0])},
    }
    model = jaxem.HMM(2, jaxem.Poisson())
    data = model.sample(jax.random.key(0), truth, 400, 20)
    start = {"initial": np.full(2, 0.5), "transition": np.full((2, 2), 0.5), "emission": {"rate": np.array([4.0, 6.0])}}
    state = online.init(model, jax.tree.map(lambda x: np.asarray(x[:20]), data), init=start)
    data = jax.tree.map(lambda x: np.asarray(x)[rng.permutation(400)], data)
    state, trace = online.run(state, Array(data, batch_size=20), n_passes=3, held_out=data, every=60)
    best = float(jaxem.fit(model, data, init=start).loglik) / 400
    assert trace.averaged[-1] == pytest.approx(best, rel=2e-3)


@MORE
def test_lda_nears_full_em(x64):
    rng = np.random.default_rng(0)
    topics = rng.dirichlet(np.full(15, 0.1), 3)
    documents = np.stack([rng.multinomial(50, rng.dirichlet(np.full(3, 0.3)) @ topics) for _ in range(600)]).astype(float)
    model, start = jaxem.LDA(3), {"topics": rng.dirichlet(np.full(15, 5.0), 3), "alpha": np.full(3, 1 / 3)}
    state = online.init(model, documents[:30], init=start)
    _, trace = online.run(state, Array(documents, batch_size=30), n_passes=3, held_out=documents, every=60)
    full = jaxem.fit(model, documents, init=start, max_steps=30)
    before, best = (float(model.log_prob(p, jnp.asarray(documents)).mean()) for p in (start, full.params))
    assert trace.averaged[-1] > best - 0.02 * (best - before)


# --- figures ---------------------------------------------------------------------------------
def three_starts(spread):
    """Held-out mean log-likelihoods by start: before, after 10 steps of full EM, at its end, online in 3 passes (both)."""
    x = clusters(30_000, 8, 8, seed=1, spread=spread).astype(np.float32)
    x, held_out = x[:20_000], x[20_000:]
    model = jaxem.GaussianMixture(8)
    score = jax.jit(lambda params: model.log_prob(params, held_out).mean())
    for seed in range(3):
        state = online.init(model, x[:2000], key=jax.random.key(seed), init=jaxem.init.KMeans(3))
        start = state.params
        ten = jaxem.fit(model, x, init=start, max_steps=10, stop=jaxem.Stop(loglik_rtol=None))
        full = jaxem.fit(model, x, init=start)
        order = np.random.default_rng(seed).permutation(len(x))
        _, trace = online.run(state, Array(x[order], batch_size=100), n_passes=3, held_out=held_out, every=600)
        before, after_ten, end = (float(score(p)) for p in (start, ten.params, full.params))
        yield before, after_ten, end, float(trace.loglik[-1]), float(trace.averaged[-1])


@pytest.mark.published
def test_well_separated_mixtures_within_a_half_per_mille_of_full_em(optimised):
    for before, _, full, _, averaged in three_starts(3.0):
        assert before < full - 0.01 * abs(full)  # there was something to do
        assert averaged > full - 5e-4 * abs(full)


@pytest.mark.published
def test_overlapping_mixtures_at_least_as_good_as_ten_passes_of_full_em(optimised):
    for before, after_ten, _, last, averaged in three_starts(0.6):
        assert before < after_ten - 0.05
        assert averaged >= after_ten and last >= after_ten
