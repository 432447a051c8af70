"""Local false-discovery rates on a simulated expression study with known truth."""

import numpy as np
import pytest

import jaxem


def study(n_genes=8000, n_each=10, seed=0):
    """z-scores of two-sample tests of genes whose samples share a nuisance, so that the null is wider than N(0, 1)."""
    rng = np.random.default_rng(seed)
    changed = rng.random(n_genes) < 0.1
    effect = np.where(changed, rng.choice([-1, 1], n_genes) * rng.normal(1.6, 0.3, n_genes), 0)
    shared = 0.2 * rng.normal(size=(2 * n_each,))  # hits every gene with a loading of its own
    x = rng.normal(size=(n_genes, 2 * n_each)) + rng.normal(size=(n_genes, 1)) * shared
    x[:, n_each:] += effect[:, None]
    a, b = x[:, :n_each], x[:, n_each:]
    spread = np.sqrt((a.var(1, ddof=1) + b.var(1, ddof=1)) / 2 * 2 / n_each)
    from scipy import stats

    t = (b.mean(1) - a.mean(1)) / spread
    return stats.norm.ppf(stats.t(2 * n_each - 2).cdf(t)), changed


def gaps(z, changed):
    """By how much the mean local fdr of each of four bins exceeds the share of nulls in it, and its standard error.

    The standard error is what chance in the genes of a bin makes of it, were the local fdr exact.
    """
    local = np.asarray(jaxem.two_groups(z).local_fdr(z))
    inside = [(local >= low) & (local < high) for low, high in [(0, 0.1), (0.1, 0.4), (0.4, 0.8), (0.8, 1.01)]]
    error = [np.sqrt((local[i] * (1 - local[i])).sum()) / i.sum() for i in inside]
    return np.array([local[i].mean() - (~changed[i]).mean() for i in inside]), np.array(error)


@pytest.mark.published
def test_local_fdr_is_calibrated(x64):
    """Where effects are normal there is no bias; the spread of studies is the sampling error.

    It holds both chance in the shares of nulls and the error of the fitted densities.
    """
    each = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        changed = rng.random(8000) < 0.15
        effect = rng.choice([-3.0, 3.0], 8000)
        each.append(gaps(np.where(changed, effect, 0.1) + rng.normal(size=8000) * np.where(changed, 0.9, 1.2), changed)[0])
    error = np.std(each, 0, ddof=1) / np.sqrt(len(each))
    np.testing.assert_array_less(np.abs(np.mean(each, 0)), 3 * error)


@pytest.mark.published
def test_local_fdr_of_skewed_effects_is_on_the_safe_side(x64):
    """Scores of effects are skewed towards the null, and a normal component, which is not, leaves that tail to the null.

    So the local fdr is too high, by as much in studies of 8000 genes as in one so large that chance does not count.
    """
    misfit, chance = gaps(*study(300_000, seed=0))
    each = np.array([gaps(*study(8000, seed=seed))[0] for seed in range(1, 13)])
    error = each.std(0, ddof=1) / np.sqrt(len(each))
    assert (misfit > -3 * chance).all() and (each.mean(0) > -3 * error).all()
    np.testing.assert_array_less(np.abs(each.mean(0) - misfit), 3 * np.hypot(error, chance))


@pytest.mark.published
def test_discoveries(x64):
    """The rate of false ones among a tenth of 8000 genes; the share of nulls is known to 3 standard errors."""
    z, changed = study()
    found = jaxem.two_groups(z)
    discoveries = np.asarray(found.discoveries(z, 0.1))
    n = discoveries.sum()
    assert (~changed[discoveries]).mean() < 0.1 + 3 * np.sqrt(0.1 * 0.9 / n)
    assert changed[discoveries].sum() > 0.5 * changed.sum()
    spread = np.std([jaxem.two_groups(study(seed=seed)[0]).null["share"] for seed in range(1, 6)], ddof=1)
    assert abs(found.null["share"] - (~changed).mean()) < 3 * spread


def test_extreme_scores_do_not_hide_the_others(x64):
    """One score of 40 among 4 000 once took discoveries from 278 to 108; forty made a third of them false."""
    rng = np.random.default_rng(0)
    changed = rng.random(4000) < 0.1
    z = rng.normal(0, 1, 4000) + changed * 3 * rng.choice([-1, 1], 4000)
    for extreme in (0, 1, 40):
        scores = np.r_[z, np.full(extreme, 40.0)]
        found = jaxem.two_groups(scores)
        discoveries = np.asarray(found.discoveries(scores, 0.1))
        assert found.result.status == jaxem.Status.CONVERGED
        assert 270 <= discoveries.sum() <= 290 and discoveries[4000:].all()
        assert (discoveries[:4000] & ~changed).sum() <= 0.12 * discoveries[:4000].sum()


def test_pure_nulls_have_no_discoveries(x64):
    z = np.random.default_rng(0).normal(size=4000)
    found = jaxem.two_groups(z)
    assert found.result.status == jaxem.Status.CONVERGED and not np.asarray(found.discoveries(z)).any()


def test_the_null_is_empirical(x64):
    rng = np.random.default_rng(0)
    z = np.r_[rng.normal(0.3, 1.4, 9500), rng.normal(6, 1, 500)]
    null = jaxem.two_groups(z).null
    np.testing.assert_allclose([null["mean"], null["std"]], [0.3, 1.4], atol=0.06)


@pytest.mark.published
def test_nothing_is_found_where_nothing_is(x64):
    """Twenty studies of nulls alone: each may have discoveries with a probability of a tenth at most."""
    some = 0
    for seed in range(20):
        z = np.random.default_rng(seed).normal(size=2000)
        some += bool(jaxem.two_groups(z, max_steps=1000).discoveries(z, 0.1).any())
    assert some <= 2


def test_scores_that_repeat_are_no_group(x64):
    """Rounded scores: a component of its own for one of the values would be infinitely likely."""
    rng = np.random.default_rng(0)
    z = np.round(np.r_[rng.normal(size=900), rng.normal(4, 1, 100)])
    found = jaxem.two_groups(z)
    spread = np.sqrt(np.asarray(found.result.params["components"]["covariance"]).ravel())
    assert spread.min() > 0.4
    assert 0.8 < found.null["share"] < 0.95


@pytest.mark.parametrize(
    "z, message",
    [
        (np.zeros((200, 2)), "at least 100"),
        (np.zeros(5), "100"),
        (np.full(200, np.nan), "finite"),
        (np.r_[np.zeros(150), np.arange(50.0)], "z must differ: more than half of the 200 scores are 0.0"),
    ],
)
def test_bad_scores(z, message):
    with pytest.raises(ValueError, match=message):
        jaxem.two_groups(z)


def test_bad_rate():
    with pytest.raises(ValueError, match="rate must lie between 0 and 1; got 10"):
        jaxem.TwoGroups(None).discoveries(np.zeros(3), 10)
