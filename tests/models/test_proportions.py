"""Shares behind reads, phenotypes, unphased genotypes and intervals: published figures, and EM written out in NumPy."""

import itertools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import DATA, read

import jaxem
from jaxem.data.configurations import configurations

TIGHT = jaxem.Stop(loglik_rtol=1e-14, param_rtol=1e-12)


def test_blood_groups(x64):
    """Counts of ABO phenotypes; frequencies and log-likelihood without the multinomial coefficient."""
    data, alleles = jaxem.genotypes({"A": ["AA", "AO"], "B": ["BB", "BO"], "AB": ["AB"], "O": ["OO"]})
    result = jaxem.fit(jaxem.Proportions(3), data, weight=[186, 38, 13, 284], stop=TIGHT)
    assert alleles == ["A", "B", "O"]
    np.testing.assert_allclose(result.params["shares"], [0.2135909391, 0.0501453288, 0.7362637320], atol=1e-9)
    np.testing.assert_allclose(result.loglik, -511.5714697, atol=1e-7)


def test_peppered_moths(x64):
    """Carbonaria C dominates insularia I, which dominates typica T (Givens and Hoeting 2013, example 4.2)."""
    data, alleles = jaxem.genotypes({"carbonaria": ["CC", "CI", "CT"], "insularia": ["II", "IT"], "typica": ["TT"]})
    result = jaxem.fit(jaxem.Proportions(3), data, weight=[85, 196, 341], stop=TIGHT)
    assert alleles == ["C", "I", "T"]
    np.testing.assert_allclose(result.params["shares"], [0.0708369, 0.1887365, 0.7404266], atol=1e-7)


@pytest.fixture(scope="module")
def reads():
    """Classes of reads, their counts and the effective lengths of the transcripts."""
    classes = json.loads((DATA / "equivalence_classes.json").read_text())
    lengths = np.loadtxt(DATA / "effective_lengths.csv", delimiter=",", skiprows=1, usecols=0)
    return [own for own, _ in classes], np.array([count for _, count in classes], float), lengths


@pytest.mark.published
def test_read_quantification(x64, reads):
    """At least the log-likelihood of a converged EM, which other programs stop short of."""
    classes, counts, lengths = reads
    model, data = jaxem.Proportions(len(lengths)), jaxem.equivalence_classes(classes, lengths)
    result = jaxem.fit(model, data, weight=counts, algorithm=jaxem.Squarem(), stop=jaxem.Stop(loglik_rtol=1e-13))
    assert result.loglik >= -1040358.992
    # The maximum of a concave function: no part would gain by a larger share (Karush, Kuhn, Tucker).
    explained = jnp.exp(data["log_weight"]) * (data["parts"][..., 0] >= 0)
    density = (explained * result.params["shares"][data["parts"][..., 0]]).sum(1)
    gain = jnp.zeros(len(lengths)).at[data["parts"][..., 0]].add(explained * (counts / density)[:, None]) / counts.sum()
    assert gain.max() < 1 + 1e-4


def test_hundred_bootstraps_are_one_call(x64, reads):
    classes, counts, lengths = reads
    model, data = jaxem.Proportions(len(lengths)), jaxem.equivalence_classes(classes, lengths)
    drawn = np.random.default_rng(0).multinomial(int(counts.sum()), counts / counts.sum(), 100).astype(float)
    arrays = jax.tree.map(jnp.asarray, model.validate(data))

    @jax.jit
    def estimate(arrays, weight):
        return jaxem.fit(model, arrays, weight=weight, max_steps=20).params["shares"]

    together = jax.jit(jax.vmap(estimate, (None, 0)))(arrays, jnp.asarray(drawn))
    single = np.stack([estimate(arrays, jnp.asarray(weight)) for weight in drawn])
    np.testing.assert_allclose(together, single, rtol=1e-9, atol=1e-14)
    assert np.unique(single, axis=0).shape[0] == 100


def hla():
    codes = read("hla3.csv").astype(int).reshape(-1, 3, 2)
    data, haplotypes, groups = jaxem.haplotype_pairs(codes)
    return jaxem.Proportions(len(haplotypes), groups=groups), data, haplotypes


@pytest.mark.published
def test_haplotypes(x64):
    """Three HLA loci of 220 people, some alleles missing: haplo.stats reaches -1846.9170 with 10 tries."""
    model, data, haplotypes = hla()
    result = jaxem.fit(model, data, key=jax.random.key(0), n_restarts=500, stop=jaxem.Stop(loglik_rtol=1e-9))
    assert result.loglik >= -1846.9170
    first, second = np.argsort(-np.asarray(result.params["shares"]))[:2]
    np.testing.assert_array_equal(haplotypes[[first, second]], [[21, 3, 8], [62, 2, 7]])
    np.testing.assert_allclose(result.params["shares"][jnp.array([first, second])], [0.104, 0.050], atol=0.0015)


def test_missing_alleles_are_any(x64):
    """Groups of haplotypes give what an enumeration of all pairs gives."""
    codes = np.array([[[1, 2], [1, 1]], [[1, 0], [2, 1]], [[0, 0], [1, 2]], [[2, 2], [1, 2]], [[3, 1], [1, 1]]])
    data, haplotypes, groups = jaxem.haplotype_pairs(codes)
    model = jaxem.Proportions(len(haplotypes), groups=groups)
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(len(haplotypes)))
    got = model.log_prob({"shares": jnp.asarray(share)}, model.validate(data))

    def matches(first, second, person):
        fits = lambda a, b, pair: pair[0] in (0, a) and pair[1] in (0, b)  # noqa: E731
        return all(fits(a, b, pair) or fits(b, a, pair) for a, b, pair in zip(first, second, person, strict=True))

    for person, value in zip(codes, got, strict=True):
        pairs = [(i, j) for i in range(len(share)) for j in range(len(share)) if matches(haplotypes[i], haplotypes[j], person)]
        np.testing.assert_allclose(value, np.log(sum(share[i] * share[j] for i, j in pairs)), rtol=1e-12)


def test_haplotypes_that_others_stand_in_for_are_left_out(x64):
    """An untyped person brings none; the maximum is that over all products of alleles."""
    rng = np.random.default_rng(1)
    codes = rng.integers(1, 4, (12, 3, 2))
    codes[[2, 5], [0, 2]] = 0
    codes[7, 1, 0] = 0
    codes[11] = 0
    data, haplotypes, groups = jaxem.haplotype_pairs(codes)
    typed = jaxem.haplotype_pairs(codes[:11])[1]
    np.testing.assert_array_equal(haplotypes, typed)
    every = np.array(list(itertools.product((1, 2, 3), repeat=3)))
    assert len(haplotypes) < len(every)

    def fits(first, second, person):
        one = ((person == 0) | (person == np.stack([first, second], 1))).all(1)
        other = ((person == 0) | (person == np.stack([second, first], 1))).all(1)
        return (one | other).all()

    pairs = [[(i, j) for i in range(27) for j in range(27) if fits(every[i], every[j], person)] for person in codes]
    options = {"key": jax.random.key(0), "n_restarts": 4, "stop": jaxem.Stop(loglik_rtol=1e-11)}
    got = jaxem.fit(jaxem.Proportions(len(haplotypes), groups=groups), data, **options).loglik
    wanted = jaxem.fit(jaxem.Proportions(27), configurations(pairs), **options).loglik
    np.testing.assert_allclose(got, wanted, rtol=1e-8)


def test_improbable_pairs_are_left_out_and_the_loss_is_bounded(x64, monkeypatch):
    rng = np.random.default_rng(0)
    pool = rng.integers(1, 3, (5, 9))
    codes = pool[rng.integers(5, size=(40, 2))].transpose(0, 2, 1)
    codes[-1] = [1, 2]  # heterozygous throughout: 256 pairs
    whole, few = (jaxem.haplotype_pairs(codes, trim=trim) for trim in (0, 1e-9))
    assert whole[0]["parts"].shape[1] == 256 and few[0]["parts"].shape[1] < 64
    options = {"stop": jaxem.Stop(loglik_rtol=1e-12), "max_steps": 3000}
    results = [jaxem.fit(jaxem.Proportions(len(names)), data, **options) for data, names, _ in (whole, few)]
    np.testing.assert_allclose(results[1].loglik, results[0].loglik, atol=256 * 1e-9)
    monkeypatch.setattr("jaxem.data.haplotypes.FEW_PAIRS", 1)
    with pytest.warns(UserWarning, match=r"posteriors below trim=0\.01: .* log-likelihood is .* lower; trim=0 keeps all"):
        jaxem.haplotype_pairs(rng.integers(1, 3, (40, 5, 2)), trim=0.01)
    with pytest.raises(ValueError, match=r"trim must be a probability of at most \.01; got 1"):
        jaxem.haplotype_pairs(codes, trim=1)


@pytest.mark.published
def test_haplotypes_at_many_loci(x64):
    """Eighteen heterozygous SNPs of one person, among 200 of a population, and one nobody typed: seconds, not a minute."""
    rng = np.random.default_rng(0)
    pool = rng.integers(1, 3, (12, 18))
    codes = pool[rng.integers(12, size=(200, 2))].transpose(0, 2, 1)
    codes = np.concatenate([codes, np.tile([1, 2], (1, 18, 1)), np.zeros((1, 18, 2), int)])
    begin = time.process_time()
    data, haplotypes, groups = jaxem.haplotype_pairs(codes)
    assert time.process_time() - begin < 5
    assert len(haplotypes) < 100 and groups.shape == (1, len(haplotypes)) and groups.all()
    assert {tuple(row) for row in pool} <= {tuple(row) for row in haplotypes}
    assert data["parts"].shape[1] < 100


@pytest.mark.published
def test_allele_frequencies_of_many_sites(x64):
    """A hundred thousand sites in one call, against EM written out in NumPy."""
    rng = np.random.default_rng(0)
    n_sites, n = 100_000, 8
    frequency = rng.uniform(0.05, 0.95, n_sites)
    copies = rng.binomial(2, frequency[:, None], (n_sites, n))
    depth = rng.poisson(4, (n_sites, n))
    alternative = rng.binomial(depth, np.array([0.01, 0.5, 0.99])[copies])
    p = np.array([0.01, 0.5, 0.99])
    table = alternative[..., None] * np.log(p) + (depth - alternative)[..., None] * np.log1p(-p)
    model = jaxem.Proportions(2)

    @jax.jit
    def frequencies(table):
        site = lambda x: jaxem.fit(model, jaxem.genotype_likelihoods(x), max_steps=30).params["shares"][1]  # noqa: E731
        return jax.lax.map(site, table, batch_size=5_000)

    got = np.asarray(frequencies(jnp.asarray(table)))
    estimate = np.full(n_sites, 0.5)
    for _ in range(200):
        prior = np.stack([(1 - estimate) ** 2, 2 * estimate * (1 - estimate), estimate**2], -1)
        joint = np.exp(table) * prior[:, None]
        estimate = (joint @ [0, 1, 2] / joint.sum(-1)).mean(1) / 2
    assert np.quantile(np.abs(got - estimate), 0.99) < 1e-3
    assert np.abs(got - estimate).max() < 0.02


def test_turnbull(x64):
    """Interval-censored times of 46 patients, and an exact time at which a censored one cannot have ended."""
    rows = json.loads((DATA / "classics.json").read_text())["turnbull_intervals"]["left_open_right_closed"]
    left, right = (np.array([np.nan if x is None else x for x in side], float) for side in zip(*rows, strict=True))
    data, support = jaxem.time_intervals(left, right)
    result = jaxem.fit(jaxem.Proportions(len(support)), data, algorithm=jaxem.Squarem(), stop=jaxem.Stop(loglik_rtol=1e-14))
    np.testing.assert_allclose(result.loglik, -58.06002195, atol=1e-7)
    mass = {tuple(ends): float(p) for ends, p in zip(support.astype(int).tolist(), result.params["shares"], strict=True)}
    np.testing.assert_allclose([mass[4, 5], mass[38, 40], mass[46, 48]], [0.0463, 0.1209, 0.4656], atol=1e-4)


def test_kaplan_meier(x64):
    """Exact and right-censored times: the product-limit estimate."""
    time, censored = np.array([1.0, 2, 2, 3, 4, 5, 6]), np.array([0, 0, 1, 0, 1, 0, 0], bool)
    data, support = jaxem.time_intervals(time, np.where(censored, np.inf, time))
    result = jaxem.fit(jaxem.Proportions(len(support)), data, stop=TIGHT)
    expected, left = {}, 1.0
    for t in np.unique(time[~censored]):
        step = left * (time[~censored] == t).sum() / (time >= t).sum()
        expected[t], left = step, left - step
    np.testing.assert_allclose(result.params["shares"], list(expected.values()), atol=1e-8)
    np.testing.assert_allclose(support[:, 0], list(expected))


def test_label_shift(x64):
    """Class proportions of new data from a classifier trained at others (Saerens, Latinne and Decaestecker 2002)."""
    rng = np.random.default_rng(0)
    trained, now = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
    z = rng.choice(3, 4000, p=now)
    x = rng.normal(np.array([0.0, 2.0, 4.0])[z], 1.0)
    density = np.exp(-((x[:, None] - np.array([0.0, 2.0, 4.0])) ** 2) / 2)
    posterior = density * trained / (density * trained).sum(1, keepdims=True)
    model = jaxem.Proportions()
    result = jaxem.fit(model, np.log(posterior / trained))
    np.testing.assert_allclose(result.params["shares"], now, atol=0.03)  # three standard errors of a share
    adjusted = np.asarray(model.predict(result.params, jnp.log(posterior / trained)))
    assert (adjusted == z).mean() > (posterior.argmax(1) == z).mean() + 0.03


def test_dirichlet_prior(x64):
    """The maximum a posteriori of plain counts is known."""
    table = np.where(np.eye(3), 0.0, -np.inf)
    model = jaxem.Proportions(prior=jaxem.Dirichlet(2.0))
    result = jaxem.fit(model, table, weight=[5.0, 3.0, 0.0])
    np.testing.assert_allclose(result.params["shares"], np.array([6, 4, 1]) / 11, rtol=1e-12)
    result = jaxem.fit(model, table[[0, 0, 0, 1, 1]])  # rows may exclude parts, with weights or without
    np.testing.assert_allclose(result.params["shares"], np.array([4, 3, 1]) / 8, rtol=1e-12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: jaxem.fit(jaxem.Proportions(3), np.zeros((4, 2))), "must have n_parts=3 columns; got 2"),
        (lambda: jaxem.fit(jaxem.Proportions(), np.array([[0.0, 1.0], [-np.inf, -np.inf]])), "row 1 has none"),
        (lambda: jaxem.fit(jaxem.Proportions(), np.array([[0.0, np.nan]])), "must hold finite numbers or -inf"),
        (lambda: jaxem.fit(jaxem.Proportions(2), jaxem.equivalence_classes([[0], [2]], np.ones(3))), "must be in 0..1.*row 1"),
        (lambda: jaxem.fit(jaxem.Proportions(), jaxem.equivalence_classes([[0]], [1.0])), "n_parts must be"),
        (lambda: jaxem.equivalence_classes([[0], []], [1.0]), "datum 1 has none"),
        (lambda: jaxem.equivalence_classes([[3]], [1.0]), r"in 0..0; got \[3\] in class 0"),
        (lambda: jaxem.equivalence_classes([[0]], [0.0]), "lengths must be"),
        (lambda: jaxem.genotypes({"A": ["AAA"]}), "genotypes must be pairs"),
        (lambda: jaxem.haplotype_pairs(np.zeros((3, 2, 2))), "locus 0 is missing throughout"),
        (lambda: jaxem.haplotype_pairs(np.ones((3, 4))), r"shape \(N, loci, 2\)"),
        (lambda: jaxem.time_intervals([1.0, 3.0], [2.0, 2.0]), "row 1"),
        (lambda: jaxem.time_intervals([1.0, np.nan], [2.0, 2.0]), "left must hold numbers, .*got NaN in row 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
