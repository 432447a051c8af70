"""Chains of discrete states against sums over all paths, hard cases for rounding, and one another."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from jaxem.latents import chain, forward_backward

#: MANY and FEW of the recursions.
PATHS = {"short": (1 << 30, 16), "long": (0, 16), "many states": (0, 0)}


@pytest.fixture(params=PATHS)
def recursion(request, monkeypatch):
    """Likelihoods exponentiated step by step, as for short chains; all at once, as for long ones; products with sums."""
    many, few = PATHS[request.param]
    monkeypatch.setattr(forward_backward, "MANY", many)
    monkeypatch.setattr(forward_backward, "FEW", few)


def problem(k=3, lengths=(6, 4, 1), seed=0, zeros=True):
    """Log-probabilities of a chain with structural zeros, and scores of ragged sequences."""
    rng = np.random.default_rng(seed)
    initial, transition = rng.dirichlet(np.ones(k)), rng.dirichlet(np.ones(k), k)
    if zeros:
        initial[-1] = 0
        transition[0, -1] = transition[-1, 0] = 0
        initial, transition = initial / initial.sum(), transition / transition.sum(1, keepdims=True)
    scores = 3 * rng.normal(size=(k, len(lengths), max(lengths)))
    valid = np.arange(max(lengths)) < np.array(lengths)[:, None]
    with np.errstate(divide="ignore"):
        return np.log(initial), np.log(transition), scores, valid


def all_paths(log_initial, log_transition, scores, n_steps, b):
    """Every path of one sequence with its log-joint."""
    paths = np.array(list(itertools.product(range(len(log_initial)), repeat=n_steps)))
    joint = log_initial[paths[:, 0]] + scores[paths, b, np.arange(n_steps)].sum(1)
    return paths, joint + log_transition[paths[:, :-1], paths[:, 1:]].sum(1)


def test_everything_equals_the_sum_over_all_paths(x64, recursion):
    log_initial, log_transition, scores, valid = args = problem()
    k = len(scores)

    @jax.jit
    def everything(*args):
        of_all = jax.value_and_grad(lambda *a: chain.log_partition(*a, args[3]).sum(), (0, 1, 2))(*args[:3])
        return of_all, chain.filtered(*args), chain.pairwise(*args), chain.viterbi(*args), chain.posterior(*args)

    found = jax.tree.map(np.asarray, everything(*args))
    (value, (starts, moves, visits)), (filtered, surprise), pairs, path, posterior = found
    total, wanted_starts, wanted_moves = 0.0, np.zeros(k), np.zeros((k, k))
    for b, length in enumerate(valid.sum(1)):
        paths, joint = all_paths(log_initial, log_transition, scores, length, b)
        total += logsumexp(joint)
        share = np.exp(joint - logsumexp(joint))
        for i in range(k):
            wanted_starts[i] += share[paths[:, 0] == i].sum()
            for t in range(length):
                np.testing.assert_allclose(visits[i, b, t], share[paths[:, t] == i].sum(), atol=1e-12)
            for j, t in itertools.product(range(k), range(length - 1)):
                both = share[(paths[:, t] == i) & (paths[:, t + 1] == j)].sum()
                wanted_moves[i, j] += both
                np.testing.assert_allclose(pairs[i, j, b, t], both, atol=1e-12)
        for t in range(length):
            heads, early = all_paths(log_initial, log_transition, scores, t + 1, b)
            early = np.exp(early - logsumexp(early))
            np.testing.assert_allclose(filtered[:, b, t], [early[heads[:, t] == i].sum() for i in range(k)], atol=1e-12)
        np.testing.assert_allclose(surprise[b].sum(), logsumexp(joint), rtol=1e-12)
        assert (path[b, :length] == paths[joint.argmax()]).all()
        assert not np.asarray(visits[:, b, length:]).any() and not np.asarray(pairs[:, :, b, length - 1 :]).any()
    np.testing.assert_allclose(value, total, rtol=1e-12)
    np.testing.assert_allclose(starts, wanted_starts, atol=1e-12)
    np.testing.assert_allclose(moves, wanted_moves, atol=1e-12)
    assert moves[0, -1] == 0 and starts[-1] == 0
    np.testing.assert_allclose(posterior, visits, atol=1e-12)


def test_derivatives_of_both_modes_and_second_order(x64, recursion):
    """Against plain automatic differentiation of the recursion in logarithms."""
    log_initial, log_transition, scores, valid = problem(zeros=False, lengths=(5, 3))

    def in_logs(log_transition, scores):
        total = 0.0
        for b, length in enumerate(valid.sum(1)):
            belief = log_initial + scores[:, b, 0]
            for t in range(1, length):
                belief = jax.nn.logsumexp(belief[:, None] + log_transition, axis=0) + scores[:, b, t]
            total += jax.nn.logsumexp(belief)
        return total

    def ours(log_transition, scores):
        return chain.log_partition(log_initial, log_transition, scores, valid).sum()

    far = scores - 400.0 * (np.arange(3) == 1)[:, None, None]  # a state so unlikely that the square of its likelihood is zero
    backward_twice = lambda f, i: jax.jacrev(jax.jacrev(f, i), i)  # noqa: E731
    for derivative, i in [(jax.jacfwd, 1), (jax.hessian, 0), (jax.hessian, 1), (backward_twice, 0)]:
        got, wanted = (jax.jit(derivative(f, i)) for f in (ours, in_logs))
        for each in (scores, far):
            args = jnp.asarray(log_transition), jnp.asarray(each)
            np.testing.assert_allclose(got(*args), wanted(*args), atol=1e-11)


def test_any_number_of_blocks_in_time(x64):
    """Ragged, and blocks that do not divide T; down to one step a block."""
    log_initial, log_transition, scores, valid = problem(4, (37, 20, 1))

    @partial(jax.jit, static_argnums=3)
    def smoothed(log_initial, log_transition, scores, n_blocks):
        def total(*args):
            return chain.log_partition(*args, valid, n_blocks).sum()

        return jax.value_and_grad(total, (0, 1, 2))(log_initial, log_transition, scores)

    wanted = smoothed(log_initial, log_transition, scores, 1)
    for n_blocks in (2, 3, 6, 17, 37):
        got = smoothed(log_initial, log_transition, scores, n_blocks)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), got, wanted)


@pytest.mark.parametrize(("e", "wanted"), [(1e-6, -14.508666), (1e-9, -21.416413), (1e-12, -28.324168)])
def test_a_move_that_hardly_ever_happens(dtype, recursion, e, wanted):
    scores = jnp.asarray(np.array([[0, -200]] * 5 + [[-200, 0]] * 5).T[:, None], dtype)
    transition = jnp.log(jnp.asarray([[1 - e, e], [e, 1 - e]], dtype))
    start = jnp.log(jnp.full(2, 0.5, dtype))
    value, moves = jax.value_and_grad(lambda a: chain.log_partition(start, a, scores).sum())(transition)
    assert value.dtype == dtype
    np.testing.assert_allclose(value, wanted, atol=1e-6 if dtype == np.float64 else 4e-6)
    np.testing.assert_allclose(moves, [[4, 1], [0, 4]], atol=1e-5)


@pytest.mark.parametrize("n_blocks", [1, 2, 4])
def test_left_to_right_where_the_best_score_is_out_of_reach(dtype, recursion, n_blocks):
    scores = jnp.asarray(np.array([[-150, -5, 0]] * 3 + [[0, -1, -2]] * 3).T[:, None], dtype)
    with np.errstate(divide="ignore"):
        transition = jnp.asarray(np.log([[0.9, 0.1, 0], [0, 0.9, 0.1], [0, 0, 1]]), dtype)
        start = jnp.asarray(np.log([1.0, 0, 0]), dtype)
    value, moves = jax.value_and_grad(lambda a: chain.log_partition(start, a, scores, None, n_blocks).sum())(transition)
    np.testing.assert_allclose(value, -164.939842, rtol=1e-6 if dtype == np.float32 else 1e-8)
    np.testing.assert_allclose(moves, [[0, 1, 0], [0, 1.9003, 0.5435], [0, 0, 1.5562]], atol=1e-4)
    assert (np.asarray(moves)[np.isinf(transition)] == 0).all()


def test_a_hundred_thousand_steps_in_float32():
    """Expected transitions add up to T - 1, and the log-likelihood is that of float64, both within 1e-6."""
    rng, n_steps, k = np.random.default_rng(0), 100_000, 3
    transition = np.array([[0.98, 0.01, 0.01], [0.02, 0.97, 0.01], [0.05, 0.05, 0.9]])
    scores = np.log(rng.gamma(1.0, 1.0, (k, 1, n_steps)))
    found = {}
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            args = [jnp.asarray(a, dtype) for a in (np.log(np.full(k, 1 / k)), np.log(transition), scores)]
            value, moves = jax.value_and_grad(lambda i, a, s: chain.log_partition(i, a, s).sum(), 1)(*args)
            found[dtype] = float(value), np.asarray(moves, np.float64)
    assert abs(found[np.float32][1].sum() / (n_steps - 1) - 1) < 1e-6
    np.testing.assert_allclose(found[np.float32][0], found[np.float64][0], rtol=1e-6)
    np.testing.assert_allclose(found[np.float32][1], found[np.float64][1], rtol=1e-4)


def test_impossible_is_minus_infinity_with_finite_gradients(dtype, recursion):
    log_initial, log_transition, scores, _ = (jnp.asarray(x, dtype) for x in problem(lengths=(5, 5)))
    scores = scores.at[:, 1, 3].set(-jnp.inf)
    value, grads = jax.value_and_grad(lambda *a: chain.log_partition(*a)[0], (0, 1, 2))(log_initial, log_transition, scores)
    both = chain.log_partition(log_initial, log_transition, scores)
    assert np.isfinite(value) and both[1] == -np.inf
    total = jax.grad(lambda *a: jnp.where(jnp.isfinite(both), chain.log_partition(*a), 0).sum(), (0, 1, 2))
    for leaf in jax.tree.leaves((grads, total(log_initial, log_transition, scores))):
        assert np.isfinite(leaf).all()


def test_entries_of_vmap_are_independent(x64, recursion):
    """vmap over parameters and scores: each entry as by itself, a hopeless one included."""
    entries = [problem(3, (8, 5), seed) for seed in range(4)]
    log_initial, log_transition, scores = (np.stack([entry[i] for entry in entries]) for i in range(3))
    scores[2] = -np.inf
    valid = entries[0][3]
    run = jax.value_and_grad(lambda *a: chain.log_partition(*a, valid).sum(), (0, 1, 2))
    together = jax.vmap(run)(log_initial, log_transition, scores)
    for i in range(4):
        alone = run(log_initial[i], log_transition[i], scores[i])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i], b, rtol=1e-12, atol=1e-13), together, alone)  # noqa: B023


@pytest.mark.parametrize("k", [3, forward_backward.FEW + 2])
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_vmap_of_vmap(x64, recursion, k, n_blocks):
    """vmap over scores within vmap over transitions, the initial distribution shared: each entry as by itself."""
    pairs = [problem(k, (8, 5), seed) for seed in range(2)]
    log_transition, valid = np.stack([pair[1] for pair in pairs]), pairs[0][3]
    scores = np.stack([problem(k, (8, 5), 10 + seed)[2] for seed in range(3)])
    log_initial = pairs[0][0]

    def run(log_transition, scores):
        total = lambda *a: chain.log_partition(log_initial, *a, valid, n_blocks).sum()  # noqa: E731
        return jax.value_and_grad(total, (0, 1))(log_transition, scores)

    together = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(log_transition, scores)
    for i, j in itertools.product(range(2), range(3)):
        alone = jax.jit(run)(log_transition[i], scores[j])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i, j], b, rtol=1e-12, atol=1e-13), together, alone)  # noqa: B023


def test_second_derivatives_under_vmap(x64):
    entries = [problem(3, (5, 3), seed, zeros=False)[:3] for seed in range(2)]
    log_initial, log_transition, scores = (np.stack(x) for x in zip(*entries, strict=True))

    def curvature(log_initial, log_transition, scores):
        return jax.hessian(lambda a: chain.log_partition(log_initial, a, scores).sum())(log_transition)

    together = jax.jit(jax.vmap(curvature))(log_initial, log_transition, scores)
    for i in range(2):
        np.testing.assert_allclose(together[i], curvature(*entries[i]), rtol=1e-11, atol=1e-12)


def test_one_step_at_a_time_is_the_filter(x64):
    log_initial, log_transition, scores, _ = problem(3, (7, 7))
    wanted, surprise = chain.filtered(log_initial, log_transition, scores)
    belief, first = forward_backward.absorb(np.exp(log_initial)[:, None] * np.ones((3, 2)), scores[:, :, 0])

    def step(belief, s):
        belief, log_prob = chain.update(belief, log_transition, s)
        return belief, (belief, log_prob)

    _, (beliefs, log_probs) = jax.lax.scan(step, belief, np.moveaxis(scores[:, :, 1:], 2, 0))
    np.testing.assert_allclose(np.moveaxis(beliefs, 0, 2), wanted[:, :, 1:], atol=1e-13)
    np.testing.assert_allclose(np.concatenate([first[None], log_probs]).T, surprise, atol=1e-12)


def test_sampled_paths_have_the_posterior(x64):
    """Frequencies of states and moves over 20 000 paths, within five standard errors of a frequency."""
    args = problem(3, (6, 4))
    paths = np.asarray(chain.sample_posterior(jax.random.key(0), *args, n_samples=20_000))
    posterior, pairs = np.asarray(chain.posterior(*args)), np.asarray(chain.pairwise(*args))
    for i in range(3):
        share = (paths == i).mean(0)
        assert np.abs(share - posterior[i])[args[3]].max() < 5 * 0.5 / 20_000**0.5
        for j in range(3):
            both = ((paths[:, :, :-1] == i) & (paths[:, :, 1:] == j)).mean(0)
            assert np.abs(both - pairs[i, j])[args[3][:, 1:]].max() < 5 * 0.5 / 20_000**0.5
            assert not both[pairs[i, j] == 0][args[3][:, 1:][pairs[i, j] == 0]].any()


def test_forecasts_and_the_stationary_distribution(x64):
    _, log_transition, _, _ = problem(3, zeros=False)
    transition = np.exp(log_transition)
    belief = np.array([[1.0, 0.2], [0, 0.3], [0, 0.5]])
    ahead = chain.forecast(belief, log_transition, 4)
    for h in range(4):
        np.testing.assert_allclose(ahead[:, :, h], np.linalg.matrix_power(transition, h + 1).T @ belief, rtol=1e-12)
    pi = chain.stationary(transition)
    np.testing.assert_allclose(pi @ transition, pi, rtol=1e-12)
    np.testing.assert_allclose(chain.stationary(np.array([[0.9, 0.1], [0.3, 0.7]])), [0.75, 0.25], rtol=1e-12)


def in_logs(log_initial, log_transition, scores):
    """Log-likelihood, (T, K) posterior and (K, K) expected moves of one sequence (K, T), in float64."""
    k, n_steps = scores.shape
    ahead, back = np.empty((n_steps, k)), np.zeros((n_steps, k))
    ahead[0] = log_initial + scores[:, 0]
    for t in range(1, n_steps):
        ahead[t] = logsumexp(ahead[t - 1][:, None] + log_transition, axis=0) + scores[:, t]
    for t in range(n_steps - 2, -1, -1):
        back[t] = logsumexp(log_transition + scores[:, t + 1] + back[t + 1], axis=1)
    total = logsumexp(ahead[-1])
    onward = (scores.T + back)[1:]
    return total, np.exp(ahead + back - total), np.exp(ahead[:-1, :, None] + log_transition + onward[:, None] - total).sum(0)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.2])
@pytest.mark.parametrize("entries", [1, 3])
def test_however_far_scores_lie_apart(dtype, recursion, share, entries):
    """Two states of four can be reached in each step; likelihoods spread over `share` of the numbers that the dtype has."""
    rng = np.random.default_rng(0)
    k, n_steps = 4, 60
    transition = np.kron(np.eye(2)[::-1], rng.dirichlet(np.ones(2), 2))
    spread = -share * np.log(np.finfo(dtype).tiny)
    with np.errstate(divide="ignore"):
        log_initial, log_transition = np.log([0.5, 0.5, 0, 0]), np.log(transition)
    given = [np.asarray(x, dtype) for x in (log_initial, log_transition, spread * rng.normal(size=(entries, k, 1, n_steps)))]

    def run(log_initial, log_transition, scores):
        return jax.value_and_grad(lambda *a: chain.log_partition(*a).sum(), (1, 2))(log_initial, log_transition, scores)

    together = jax.jit(jax.vmap(run, (None, None, 0)))(*given)
    # Differences of scores, up to eight spreads, are rounded in the dtype; what is wanted, sums of all steps, in float64.
    rounding = spread * (8 * np.finfo(dtype).eps + n_steps * np.finfo(np.float64).eps)
    close = {"rtol": 10 * rounding, "atol": 10 * rounding}
    for entry in range(entries):
        total, posterior, wanted = in_logs(*(x.astype(np.float64) for x in given[:2]), given[2][entry, :, 0].astype(np.float64))
        value, (moves, visits) = jax.tree.map(lambda x: x[entry], together)  # noqa: B023
        np.testing.assert_allclose(value, total, rtol=rounding)
        np.testing.assert_allclose(visits[:, 0].T, posterior, **close)
        np.testing.assert_allclose(moves, wanted, **close)


@pytest.mark.parametrize("n_steps", [1, 2, 8, 9, 21])
def test_moves_of_single_chains_under_vmap(x64, n_steps):
    """Sums over eighths of time and what is left over."""
    entries = [problem(3, (n_steps,), seed)[:3] for seed in range(2)]
    run = jax.grad(lambda *a: chain.log_partition(*a).sum(), 1)
    together = jax.jit(jax.vmap(run))(*(np.stack(x) for x in zip(*entries, strict=True)))
    for got, entry in zip(together, entries, strict=True):
        np.testing.assert_allclose(got, in_logs(*entry[:2], entry[2][:, 0])[2], atol=1e-12)
        np.testing.assert_allclose(got.sum(), n_steps - 1, rtol=1e-12)
