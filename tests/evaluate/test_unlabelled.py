"""Texts of which few are labelled: the weight of the others, on pseudo-words."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.evaluate import unlabelled

MODEL = jaxem.Mixture(2, jaxem.Multinomial(prior=jaxem.Dirichlet(2.0)), prior=jaxem.Dirichlet(2.0))


def texts(n, separation, seed=0, rival=0.0):
    """Word counts of n texts in two classes, whose words also follow a theme that has nothing to do with the class."""
    rng = np.random.default_rng(seed)
    z, theme = rng.integers(2, size=n), rng.integers(2, size=n)
    own, other = rng.normal(size=(2, 200)), rng.normal(size=(2, 200))
    logits = separation * own[z] + rival * other[theme]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return np.stack([rng.multinomial(40, p) for p in probs]).astype(float), z


def few_labels(z, each, seed):
    labels = np.full(len(z), -1)
    for k in (0, 1):
        labels[np.random.default_rng(seed).choice(np.flatnonzero(z == k), each, replace=False)] = k
    return labels


def accuracy(params, x, z, labels):
    return float((np.asarray(MODEL.predict(params, MODEL.validate(x))) == z)[labels < 0].mean())


def test_zero_weight_is_the_supervised_estimate(x64):
    x, z = texts(60, 0.5)
    labels = few_labels(z, 5, 0)
    params = jaxem.fit_labelled(MODEL, MODEL.validate(x), jnp.asarray(labels), 0.0).params
    counts = np.stack([x[labels == k].sum(0) + 1 for k in (0, 1)])
    np.testing.assert_allclose(params["components"]["probs"], counts / counts.sum(1, keepdims=True), rtol=1e-10)


@pytest.mark.published
def test_plain_calls_take_whole_numbers():
    """Counts and labels as they come, without x64, which must not be truncated with a warning."""
    x, z = texts(30, 0.5)
    labels = few_labels(z, 5, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = jaxem.fit_labelled(MODEL, x.astype(int), list(labels), 1.0, max_steps=3).params
    assert params["components"]["probs"].dtype == np.float32


@pytest.mark.published
def test_changed_numbers_compile_nothing():
    x, z = texts(30, 0.5)
    x = x.astype(np.float32)
    programs = []
    for attempt in range(2):
        labels = few_labels(z, 4, attempt)
        options = {"candidates": (0.0, 0.5 + attempt), "n_folds": 2, "max_steps": 2 + attempt}
        jaxem.unlabelled_weight(MODEL, x, labels, key=jax.random.key(attempt), **options)
        programs.append((unlabelled._held_out._cache_size(), unlabelled._refit._cache_size()))
    assert programs[0] == programs[1]


@pytest.mark.published
def test_unlabelled_texts_help(x64):
    x, z = texts(400, 0.5)
    labels = few_labels(z, 4, 1)
    found = jaxem.unlabelled_weight(MODEL, x, labels, key=jax.random.key(0), candidates=(0.0, 0.1, 1.0), n_folds=4)
    supervised = jaxem.fit_labelled(MODEL, MODEL.validate(x), jnp.asarray(labels), 0.0)
    assert found.chosen > 0
    assert accuracy(found.result.params, x, z, labels) > accuracy(supervised.params, x, z, labels) + 0.03


@pytest.mark.published
def test_weight_goes_to_zero_where_they_mislead(x64):
    """A theme stronger than the classes: what EM finds in the unlabelled texts is the theme."""
    x, z = texts(400, 0.4, rival=1.5)
    labels = few_labels(z, 40, 0)
    found = jaxem.unlabelled_weight(MODEL, x, labels, key=jax.random.key(0), candidates=(0.0, 1.0), n_folds=4)
    assert found.accuracy[0] > found.accuracy[1] + 0.1
    assert found.chosen == 0


#: Words of much the same frequency. "prince" against "roman" is a pair that EM serves badly.
PAIRS = [("pope", "prince"), ("film", "pope"), ("clinton", "prince"), ("british", "pope"), ("pope", "clinton"),
         ("pope", "france"), ("minister", "roman"), ("minister", "pope")]  # fmt: skip


@pytest.mark.published
def test_pseudo_words(x64):
    """Which of two words stood there? 5 + 5 labels; with the unlabelled texts no worse in 8 of 10 draws for most pairs."""
    corpus = pytest.importorskip("lda.datasets")
    counts, vocabulary = corpus.load_reuters().astype(float), np.array(corpus.load_reuters_vocab())
    estimate = jax.jit(lambda x, labels, weight: jaxem.fit_labelled(MODEL, x, labels, weight, max_steps=30).params)
    good = 0
    for pair in PAIRS:
        column = [int(np.flatnonzero(vocabulary == word)[0]) for word in pair]
        holds = counts[:, column] > 0
        one = holds[:, 0] ^ holds[:, 1]
        x, z = np.delete(counts[one], column, 1), np.where(holds[one, 0], 0, 1)
        # One shape for all pairs: rows without words tell nothing.
        x, z = np.pad(x, ((0, 200 - len(x)), (0, 0))), np.pad(z, (0, 200 - len(z)), constant_values=-1)
        wins = 0
        for draw in range(10):
            labels = few_labels(z, 5, draw)
            hit = {}
            for weight in (0.0, 1.0):
                params = estimate(jnp.asarray(x), jnp.asarray(labels), weight)
                test = (labels < 0) & (z >= 0)
                hit[weight] = (np.asarray(MODEL.predict(params, jnp.asarray(x))) == z)[test].mean()
            wins += hit[1.0] >= hit[0.0]
        good += wins >= 8
    assert good > len(PAIRS) / 2


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(labels=np.zeros(3, int)), "labels must be integers of shape"),
        (dict(labels=np.r_[0, 1, 1, [-1] * 17]), "at least twice; got counts"),
        (dict(candidates=(-1.0,)), "non-negative weights"),
        (dict(n_folds=1), "n_folds must be"),
    ],
)
def test_bad_input(changes, message):
    x, z = texts(20, 0.5)
    arguments = {"labels": few_labels(z, 3, 0), "key": jax.random.key(0), **changes}
    with pytest.raises(ValueError, match=message):
        jaxem.unlabelled_weight(MODEL, x, arguments.pop("labels"), **arguments)
