"""What `fit` promises whatever the model: statuses, restarts, weights, blocks, composition, no recompilation."""

import dataclasses
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import clusters

import jaxem
from jaxem import Status
from jaxem.evaluate import selection
from jaxem.fitting import layout, solve

TIGHT = jaxem.Stop(loglik_rtol=1e-13)
NEVER = jaxem.Stop(loglik_rtol=None)


def start(x, k=3, seed=0):
    rng = np.random.default_rng(seed)
    d = x.shape[1]
    means = np.asarray(x)[rng.choice(len(x), k, replace=False)]
    return {
        "weights": np.full(k, 1 / k, x.dtype),
        "components": {
            "mean": means,
            "covariance": (np.cov(np.asarray(x).T) * np.ones((k, 1, 1))).reshape(k, d, d).astype(x.dtype),
        },
    }


# --- coherence and stopping ------------------------------------------------------------------
def test_loglik_is_that_of_the_parameters(dtype):
    x = clusters(200, 2, 3).astype(dtype)
    for steps in (0, 1, 5):
        result = jaxem.fit(jaxem.GaussianMixture(3), x, init=start(x), max_steps=steps, stop=NEVER)
        total = np.asarray(result.model.log_prob(result.params, x), np.float64).sum()
        assert float(result.loglik) == pytest.approx(total, rel=1e-5 if dtype == np.float32 else 1e-12)
        assert int(result.n_steps) == steps and int(result.status) == Status.MAX_STEPS
        assert len(result.history) == steps + 1
        assert float(result.history[-1]) == float(result.objective)


def test_history_keeps_the_last_thousand(x64):
    x = clusters(40, 1, 2)
    result = jaxem.fit(jaxem.GaussianMixture(2), x, init=start(x, 2), max_steps=1_500, stop=NEVER)
    assert len(result.history) == 1_000 and int(result.n_steps) == 1_500
    assert float(result.history[-1]) == float(result.objective)
    assert (np.diff(np.asarray(result.history)) > -1e-9).all()


def test_an_m_step_that_fails_is_named(x64):
    astray = jaxem.log_marginal(
        natural=lambda params: {"mean": params["mean"]},
        log_marginal=lambda natural, x: natural["mean"] * x - natural["mean"] ** 2 / 2,
        m_step=lambda stats, params: {"mean": jnp.nan * stats["mean"]},
        init={"mean": np.zeros(())},
    )
    with pytest.raises(jaxem.FitError, match="an M-step makes the objective infinite or NaN"):
        jaxem.fit(astray, np.arange(5.0))


@pytest.mark.parametrize(
    "stop, reason",
    [
        (jaxem.Stop(loglik_rtol=1e-6), "loglik_rtol"),
        (jaxem.Stop(loglik_rtol=None, loglik_atol=1e-4), "loglik_atol"),
        (jaxem.Stop(loglik_rtol=None, param_rtol=1e-5), "param_rtol"),
    ],
)
def test_each_criterion_stops_where_it_says(x64, stop, reason):
    x = clusters(200, 2, 3)
    # Parameters as `fit` compares them: standardize=False keeps the data's own coordinates.
    options = dict(init=start(x), standardize=False)
    result = jaxem.fit(jaxem.GaussianMixture(3), x, stop=stop, **options)
    assert result.stop_reason == reason and bool(result.converged)
    n = int(result.n_steps)
    steps = [jaxem.fit(jaxem.GaussianMixture(3), x, stop=NEVER, max_steps=m, **options) for m in (n - 2, n - 1, n)]

    def met(a, b):
        change = abs(float(b.objective) - float(a.objective))
        moved = max(
            float((jnp.abs(q - p) / (1 + jnp.abs(p))).max()) for p, q in zip(*map(jax.tree.leaves, (a.params, b.params)))
        )
        return {"loglik_rtol": change <= 1e-6 * (1 + abs(float(b.objective))), "loglik_atol": change <= 1e-4,
                "param_rtol": moved <= 1e-5}[reason]  # fmt: skip

    assert met(steps[1], steps[2]) and not met(steps[0], steps[1])


@pytest.mark.parametrize("nothing", [None, 0, 0.0])
def test_no_criterion_never_fires(x64, nothing):
    """At a fixed point the objective stops moving altogether; a tolerance of zero must not take that for convergence."""
    x = np.array([[0.0], [1.0], [10.0], [11.0]])
    stop = jaxem.Stop(loglik_rtol=nothing, loglik_atol=nothing, param_rtol=nothing)
    result = jaxem.fit(jaxem.GaussianMixture(2), x, init=start(x, 2), stop=stop, max_steps=200)
    assert int(result.n_steps) == 200 and result.stop_reason == "none"


# --- statuses --------------------------------------------------------------------------------
@jaxem.struct
class Falling(jaxem.Mixture):
    """A Gaussian mixture whose M-step walks away once the means pass a threshold."""

    def m_step(self, stats, params):
        new = super().m_step(stats, params)
        return {**new, "components": {**new["components"], "mean": new["components"]["mean"] + 5.0}}


def test_decreased_keeps_the_last_sound_state(x64):
    x = clusters(200, 1, 2)
    result = jaxem.fit(Falling(2, jaxem.Gaussian()), x, init=start(x, 2), max_steps=50)
    assert int(result.status) == Status.DECREASED and not bool(result.converged)
    assert float(result.history[-1]) == float(result.objective)
    total = float(result.model.log_prob(result.params, x).sum())
    assert float(result.loglik) == pytest.approx(total)


def test_a_restart_in_trouble_spoils_no_other(x64):
    x = clusters(300, 2, 3)
    good, bad = start(x, seed=1), start(x, seed=2)
    bad["components"]["mean"] = bad["components"]["mean"] + 1e200  # finite, and its likelihood is not
    both = jax.tree.map(lambda *leaf: np.stack(leaf), bad, good)
    result = jaxem.fit(jaxem.GaussianMixture(3), x, init=jaxem.init.Each(both), n_restarts=2, stop=TIGHT)
    alone = jaxem.fit(jaxem.GaussianMixture(3), x, init=good, stop=TIGHT)
    assert np.asarray(result.restarts.status).tolist() == [Status.NONFINITE, Status.CONVERGED]
    assert float(result.loglik) == pytest.approx(float(alone.loglik), abs=1e-9)
    with pytest.raises(jaxem.FitError, match=r"every restart failed: \{'NONFINITE': 1\}"):
        jaxem.fit(jaxem.GaussianMixture(3), x, init=bad)
    inside = jax.jit(lambda x: jaxem.fit(jaxem.GaussianMixture(3), x, init=bad))(x)
    assert int(inside.status) == Status.NONFINITE


@pytest.mark.parametrize(
    "x",
    [
        np.stack([np.arange(30.0), np.ones(30)], 1),  # a constant column
        np.repeat([[0.0, 0.0], [1.0, 2.0]], 15, 0),  # fewer distinct rows than components
        np.ones((10, 2)),
    ],
)
@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_flat_data_end_with_a_status(dtype, x, covariance):
    result = jaxem.fit(
        jaxem.GaussianMixture(3, covariance), x.astype(dtype), key=jax.random.key(0), n_restarts=2, max_steps=100
    )
    # Only one variance for both columns finds some in the constant one.
    sound = covariance == "spherical" and x[:, 0].std() > x[:, 1].std() == 0
    wanted = (Status.CONVERGED, Status.MAX_STEPS) if sound else (Status.DEGENERATE,)
    assert all(int(status) in wanted for status in result.restarts.status)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


# --- restarts --------------------------------------------------------------------------------
def test_restart_i_depends_on_key_and_i_alone(x64):
    x = clusters(200, 2, 4)
    few = jaxem.fit(jaxem.GaussianMixture(4), x, key=jax.random.key(7), n_restarts=3)
    many = jaxem.fit(jaxem.GaussianMixture(4), x, key=jax.random.key(7), n_restarts=20)
    np.testing.assert_allclose(many.restarts.loglik[:3], few.restarts.loglik, rtol=1e-9)
    assert float(many.loglik) >= float(few.loglik) - 1e-9
    # A degenerate restart may lie higher and still not win.
    sound = np.asarray(many.restarts.status) == Status.CONVERGED
    assert float(many.loglik) == float(np.asarray(many.restarts.loglik)[sound].max())


def test_queue_equals_all_restarts_at_once(x64, monkeypatch):
    x = clusters(200, 2, 4, seed=3)

    def run(width):
        monkeypatch.setattr(layout, "restarts_at_once", lambda n, r, w, b: min(width, r))
        solve.begin_jit.clear_cache()
        return jaxem.fit(jaxem.GaussianMixture(4), x, key=jax.random.key(0), n_restarts=17)

    queue, together = run(4), run(17)
    solve.begin_jit.clear_cache()
    np.testing.assert_allclose(queue.restarts.loglik, together.restarts.loglik, rtol=1e-9)
    np.testing.assert_array_equal(queue.restarts.n_steps, together.restarts.n_steps)
    np.testing.assert_array_equal(queue.restarts.status, together.restarts.status)
    np.testing.assert_allclose(queue.history, together.history, rtol=1e-9)


def test_same_key_same_bits(dtype):
    x = clusters(200, 2, 3).astype(dtype)
    runs = [jaxem.fit(jaxem.GaussianMixture(3), x, key=jax.random.key(5), n_restarts=9) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, runs[0].params, runs[1].params)


@pytest.mark.published
@pytest.mark.parametrize("rounds", [pytest.param(None, marks=pytest.mark.slow), jaxem.Rounds()])
def test_more_restarts_only_match_or_beat_fewer(x64, rounds):
    x = clusters(250, 2, 6, seed=4, spread=1)
    best = [
        float(jaxem.fit(jaxem.GaussianMixture(6), x, key=jax.random.key(2), n_restarts=r, rounds=rounds, max_steps=300).loglik)
        for r in (1, 4, 16)
    ]
    assert best[1] >= best[0] - 1e-8 and best[2] >= best[1] - 1e-8


def test_rounds_count_all_steps_of_the_winner(x64):
    x = clusters(200, 2, 3, seed=4)
    result = jaxem.fit(jaxem.GaussianMixture(3), x, key=jax.random.key(2), n_restarts=8, rounds=jaxem.Rounds(), stop=TIGHT)
    assert bool(result.converged)
    winner = int(np.argmax(np.asarray(result.restarts.loglik)))
    assert int(result.restarts.n_steps[winner]) == int(result.n_steps)
    assert len(result.history) == min(1_000, int(result.n_steps) + 1)


# --- weights, blocks, labels -------------------------------------------------------------------
def test_weights_are_counts_and_absence(dtype):
    x = clusters(90, 2, 2).astype(dtype)
    weight = np.arange(90) % 3
    repeated = np.repeat(x, weight, 0)
    garbage = np.where((weight == 0)[:, None], np.nan, x)
    options = dict(max_steps=10, stop=NEVER)
    one = jaxem.fit(jaxem.GaussianMixture(2), garbage, weight=weight, init=start(x, 2), **options)
    two = jaxem.fit(jaxem.GaussianMixture(2), repeated, init=start(x, 2), **options)
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    assert float(one.loglik) == pytest.approx(float(two.loglik), rel=tolerance)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one.params, two.params)


@pytest.mark.parametrize("block_size", [1, 7, 64, 200, 10_000])
def test_block_size_changes_nothing(dtype, block_size):
    x = clusters(200, 2, 3).astype(dtype)
    whole = jaxem.fit(jaxem.GaussianMixture(3), x, init=start(x), max_steps=5, stop=NEVER)
    cut = jaxem.fit(jaxem.GaussianMixture(3), x, init=start(x), max_steps=5, stop=NEVER, block_size=block_size)
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    assert float(cut.loglik) == pytest.approx(float(whole.loglik), rel=tolerance)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), cut.params, whole.params)


def test_labels_fix_components(x64):
    x = clusters(200, 2, 2, seed=6, spread=1)
    truth = (x[:, 0] > np.median(x[:, 0])).astype(int)
    everything = jaxem.fit(jaxem.GaussianMixture(2), x, labels=truth, init=start(x, 2), max_steps=3)
    direct = jaxem.fit(jaxem.GaussianMixture(2), x, init=jaxem.init.Labels(truth), max_steps=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), everything.params, direct.params)
    some = np.where(np.arange(200) % 4 == 0, truth, -1)
    partly = jaxem.fit(jaxem.GaussianMixture(2), x, labels=some, init=jaxem.init.Labels(truth), stop=TIGHT)
    assert (np.diff(np.asarray(partly.history)) > -1e-9).all()


def test_responsibilities_as_a_start(x64):
    x = clusters(100, 2, 2)
    hard = np.arange(100) % 2
    soft = np.eye(2)[hard]
    one = jaxem.fit(jaxem.GaussianMixture(2), x, init=jaxem.init.Labels(hard), max_steps=0)
    two = jaxem.fit(jaxem.GaussianMixture(2), x, init=jaxem.init.Responsibilities(soft), max_steps=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), one.params, two.params)


@pytest.mark.parametrize(
    "strategy", [jaxem.init.KMeansPlusPlus(), jaxem.init.KMeans(), jaxem.init.RandomRows(), jaxem.init.RandomResponsibilities()]
)
def test_random_starts_find_separated_clusters(dtype, strategy):
    x = clusters(300, 2, 3, seed=8, spread=8).astype(dtype)
    result = jaxem.fit(jaxem.GaussianMixture(3), x, key=jax.random.key(0), init=strategy, n_restarts=8)
    reference = jaxem.fit(jaxem.GaussianMixture(3), x, key=jax.random.key(1), n_restarts=8)
    assert float(result.loglik) == pytest.approx(float(reference.loglik), rel=1e-4)


# --- composition -----------------------------------------------------------------------------
def test_jit_equals_plain(dtype):
    x = clusters(150, 2, 2).astype(dtype)
    options = dict(n_restarts=3, max_steps=30, stop=NEVER)
    plain = jaxem.fit(jaxem.GaussianMixture(2), x, key=jax.random.key(0), **options)
    inside = jax.jit(lambda x, key: jaxem.fit(jaxem.GaussianMixture(2), x, key=key, **options))(x, jax.random.key(0))
    assert float(inside.loglik) == pytest.approx(float(plain.loglik), rel=1e-4 if dtype == np.float32 else 1e-9)
    assert inside.history.shape == (1_000,) and int(jnp.isfinite(inside.history).sum()) == 31
    assert inside.loglik.dtype == dtype


def test_vmap_over_keys_data_and_weights(x64):
    model = jaxem.GaussianMixture(2)
    options = dict(max_steps=15, stop=NEVER)
    keys = jax.random.split(jax.random.key(0), 3)
    data = jnp.stack([clusters(80, 2, 2, seed=s) for s in range(3)])
    # Rows absent in one restart only are present to the choice of coordinates, and with it to random starts.
    weights = jnp.asarray(np.random.default_rng(0).integers(1, 4, (3, 80)) * (np.arange(80) % 5 > 0), float)

    def one(key, x, weight):
        return jaxem.fit(model, x, key=key, weight=weight, **options)

    batched = jax.jit(jax.vmap(one))(keys, data, weights)
    for i in range(3):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-8, atol=1e-10),
            batched.params, one(keys[i], data[i], weights[i]).params,
        )  # fmt: skip
    # Weights alone: the data are shared by all restarts.
    shared = jax.jit(jax.vmap(lambda w: one(keys[0], data[0], w)))(weights)
    np.testing.assert_allclose(shared.loglik[0], batched.loglik[0], rtol=1e-10)
    np.testing.assert_allclose(shared.loglik[1], one(keys[0], data[0], weights[1]).loglik, rtol=1e-10)


def test_absent_rows_do_not_move_a_random_start(x64):
    """Inside jit arrays cannot shed rows: those of weight zero count for nothing in the coordinates either."""
    x = clusters(120, 2, 3, spread=1.0)
    weight = (np.arange(120) % 3 > 0) * 1.0
    run = lambda x, w: jaxem.fit(jaxem.GaussianMixture(3), x, key=jax.random.key(0), weight=w, max_steps=0)  # noqa: E731
    plain, inside = run(x, weight), jax.jit(run)(x, weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), plain.params, inside.params)


def test_absent_rows_may_hold_anything_under_vmap_too(x64):
    x = clusters(60, 2, 2)
    x[7] = np.nan
    weights = np.ones((2, 60))
    weights[:, 7] = 0
    weights[1, :5] = 0
    init = start(np.delete(x, 7, 0), 2)
    batched = jax.jit(jax.vmap(lambda w: jaxem.fit(jaxem.GaussianMixture(2), x, init=init, weight=w, max_steps=5)))(weights)
    assert np.isfinite(batched.loglik).all()


def test_warm_start_from_a_result(x64):
    x = clusters(200, 2, 3)
    first = jaxem.fit(jaxem.GaussianMixture(3), x, init=start(x), max_steps=5, stop=NEVER)
    further = jaxem.fit(jaxem.GaussianMixture(3), x, init=first, max_steps=5, stop=NEVER)
    straight = jaxem.fit(jaxem.GaussianMixture(3), x, init=start(x), max_steps=10, stop=NEVER)
    assert float(further.loglik) == pytest.approx(float(straight.loglik), abs=1e-8)


def test_penalty_is_taken_off_the_objective(x64):
    x = clusters(100, 1, 1)

    def ridge(params):
        return 50 * (params["components"]["mean"] ** 2).sum()

    result = jaxem.fit(jaxem.GaussianMixture(1), x + 3, init=start(x + 3, 1), penalty=ridge, stop=TIGHT)
    assert float(result.objective) == pytest.approx(float(result.loglik - ridge(result.params)), rel=1e-12)
    mean, variance = (float(np.squeeze(result.params["components"][n])) for n in ("mean", "covariance"))
    # The stationary point of -n/2 (mean - m)^2 / s2 - 50 m^2.
    assert mean == pytest.approx(100 / variance * (x + 3).mean() / (100 / variance + 100), abs=1e-5)


# --- an interrupt ------------------------------------------------------------------------------
def test_an_interrupt_loses_nothing(x64):
    """Ctrl-C ends a plain fit with what it has; the handler is put back, and another fit goes on from there."""
    x = clusters(400, 2, 3, spread=1.0)
    slow = {"key": jax.random.key(0), "n_restarts": 3, "stop": jaxem.Stop(None)}
    model = jaxem.GaussianMixture(6)
    jaxem.fit(model, x, max_steps=3, **slow)  # what is compiled now cannot delay the handler
    handler = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(0.6, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    result = jaxem.fit(model, x, max_steps=10**8, **slow)
    timer.join()
    assert signal.getsignal(signal.SIGINT) is handler
    assert (result.restarts.status == Status.INTERRUPTED).all() and not result.converged
    assert 3 < int(result.n_steps) < 10**8 and np.isfinite(float(result.loglik))
    assert "INTERRUPTED" in str(result)
    on = jaxem.fit(model, x, init=result, max_steps=5, stop=jaxem.Stop(None))
    assert float(on.loglik) >= float(result.loglik) - 1e-9 * abs(float(result.loglik))


def test_a_selection_ends_with_the_model_that_was_interrupted(x64, monkeypatch):
    x, models = clusters(100, 2, 2), [jaxem.GaussianMixture(k) for k in (1, 2, 3)]
    whole = selection.fit

    def interrupted_at_two(model, *args, **options):
        result = whole(model, *args, **options)
        status = jnp.full_like(result.restarts.status, Status.INTERRUPTED if model.n_components == 2 else Status.CONVERGED)
        return dataclasses.replace(result, restarts=dataclasses.replace(result.restarts, status=status))

    monkeypatch.setattr(selection, "fit", interrupted_at_two)
    chosen = jaxem.select(models, x, key=jax.random.key(0), max_steps=5)
    assert [c.model.n_components for c in chosen.candidates] == [1, 2]


# --- compilation -----------------------------------------------------------------------------
def test_changed_numbers_compile_nothing(x64):
    x = clusters(120, 2, 2)

    def run(x, seed, steps, rtol, floor, concentration):
        model = jaxem.Mixture(2, jaxem.Gaussian(floor=floor), jaxem.Dirichlet(concentration))
        return jaxem.fit(model, x, key=jax.random.key(seed), n_restarts=2, max_steps=steps, stop=jaxem.Stop(loglik_rtol=rtol))

    run(x, 0, 10, 1e-6, 1e-8, 2.0)
    before = solve.begin_jit._cache_size()
    run(x * 2 + 1, 1, 37, 1e-9, 1e-7, 3.0)
    run(x[::-1].copy(), 2, 5_000, 1e-3, 1e-5, 1.5)
    assert solve.begin_jit._cache_size() == before
    jaxem.fit(jaxem.GaussianMixture(3), x, key=jax.random.key(0), n_restarts=2, max_steps=5)
    assert solve.begin_jit._cache_size() == before + 1


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_of_integers(x64, library):
    x = np.random.default_rng(0).integers(0, 50, (60, 2))
    frame = pytest.importorskip(library).DataFrame({"a": x[:, 0], "b": x[:, 1]})
    options = dict(key=jax.random.PRNGKey(0), max_steps=5)  # the older key style is accepted too
    one = jaxem.fit(jaxem.GaussianMixture(2), frame, **options)
    two = jaxem.fit(jaxem.GaussianMixture(2), x.astype(float), **options)
    assert float(one.loglik) == float(two.loglik)


def test_summary_prints(x64):
    x = clusters(120, 2, 2)
    text = str(jaxem.fit(jaxem.GaussianMixture(2), x, key=jax.random.key(0), n_restarts=2))
    assert "CONVERGED" in text and "log-likelihood" in text and "components.mean" in text
