"""fit_stream: what fit gives on all the data at once, for every structure and algorithm; bad batches named."""

import signal
import threading

import jax
import numpy as np
import pytest
from support import clusters

import jaxem
from jaxem.streams.sources import Array

MODEL = jaxem.GaussianMixture(2)


def close(left, right, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), left, right)


def check_same(streamed, whole, rtol=1e-9):
    """Restart by restart the same steps, statuses, objectives; the same winner."""
    np.testing.assert_array_equal(streamed.restarts.status, whole.restarts.status)
    np.testing.assert_array_equal(streamed.restarts.n_steps, whole.restarts.n_steps)
    close(streamed.restarts.history, whole.restarts.history, rtol)
    close((streamed.loglik, streamed.objective, streamed.history), (whole.loglik, whole.objective, whole.history), rtol)
    close(streamed.params, whole.params, 100 * rtol)
    assert streamed.stop == whole.stop


def counts(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(np.where(rng.random(n) < 0.4, 3.0, 9.0)).astype(float)


POISSON = jaxem.Mixture(2, jaxem.Poisson())
STARTS = jaxem.init.Each({
    "weights": np.array([[0.5, 0.5], [0.1, 0.9], [0.6, 0.4]]),
    "components": {"rate": np.array([[4.0, 8.0], [1.0, 2.0], [3.0, 9.1]])},
})  # fmt: skip


#: Beyond what the default suite has time for.
MORE = pytest.mark.published


@pytest.mark.parametrize(
    "algorithm",
    [pytest.param(jaxem.EM(), marks=MORE), jaxem.Squarem(), pytest.param(jaxem.Anderson(), marks=MORE)],
    ids=lambda a: type(a).__name__,
)
def test_a_mixture_with_restarts(x64, algorithm):
    x = counts(503)
    options = {"init": STARTS, "n_restarts": 3, "algorithm": algorithm}
    whole = jaxem.fit(POISSON, x, **options)
    streamed = jaxem.fit_stream(POISSON, Array(x, batch_size=100), **options)
    check_same(streamed, whole)
    assert len(set(np.asarray(whole.restarts.n_steps))) > 1  # restarts ended at different times
    assert streamed.local is None and streamed.provenance["options"].keys() == options.keys()


@pytest.mark.published
def test_random_starts_and_coordinates_of_all_data(x64):
    x = clusters(201, 2, 2)
    options = {"key": jax.random.key(1), "max_steps": 10}
    whole = jaxem.fit(MODEL, x, **options)
    check_same(jaxem.fit_stream(MODEL, Array(x, batch_size=50), **options), whole)
    # Those of a sample are others, and lead to the same fit.
    start = jaxem.fit(MODEL, x, key=jax.random.key(1), max_steps=0).params
    streamed = jaxem.fit_stream(MODEL, Array(x, batch_size=50), init=start, max_steps=10, sample_size=50)
    check_same(streamed, whole, 1e-8)


def test_hard_assignments(x64):
    x = counts(203)
    options = {"init": jax.tree.map(lambda a: a[1], STARTS.params), "algorithm": jaxem.HardEM(), "max_steps": 3}
    check_same(jaxem.fit_stream(POISSON, Array(x, batch_size=50), **options), jaxem.fit(POISSON, x, **options))


@MORE
def test_weights_priors_and_rounds(x64):
    x = counts(300)
    weight = np.random.default_rng(0).integers(0, 3, 300).astype(float)
    weight[100:150] = 0  # a batch without any
    gaps = np.where(weight == 0, np.nan, x)
    model = jaxem.Mixture(2, jaxem.Poisson(), jaxem.Dirichlet(2.0))
    options = {"init": STARTS, "n_restarts": 3, "rounds": jaxem.Rounds(first=3, keep=2)}
    whole = jaxem.fit(model, x, weight=weight, **options)
    check_same(jaxem.fit_stream(model, Array(gaps, weight, batch_size=50), **options), whole)


def ragged(n=23, longest=12):
    rng = np.random.default_rng(0)
    return jaxem.sequences([rng.normal(size=(rng.integers(3, longest + 1), 1)) * 2 + rng.integers(2) * 3 for _ in range(n)])


@MORE
def test_an_hmm_over_sequences(x64):
    data = ragged()
    data.x[3, 1] = np.nan  # a step that is missing, in one batch alone
    model = jaxem.HMM(2, jaxem.Gaussian("spherical"))
    whole = jaxem.fit(model, data, key=jax.random.key(0), max_steps=20)
    streamed = jaxem.fit_stream(model, Array(data, batch_size=5), key=jax.random.key(0), max_steps=20)
    check_same(streamed, whole)


@MORE
def test_local_rows_are_computed_anew(x64):
    rng = np.random.default_rng(0)
    topics = rng.dirichlet(np.full(12, 0.2), 2)
    counts = np.stack([rng.multinomial(60, rng.dirichlet([0.5, 0.5]) @ topics) for _ in range(41)]).astype(float)
    start = {"topics": rng.dirichlet(np.full(12, 5.0), 2), "alpha": np.full(2, 0.5)}
    stop = jaxem.Stop(loglik_rtol=None, param_rtol=1e-7)
    # Both with the inner loop converged, from a cold start or a warm one: the same map, to its tolerance.
    whole = jaxem.fit(jaxem.LDA(2, alpha=0.5, inner_steps=400), counts, init=start, stop=stop)
    streamed = jaxem.fit_stream(jaxem.LDA(2, alpha=0.5), Array(counts, batch_size=10), init=start, stop=stop, local_rounds=80)
    assert streamed.converged and streamed.local is None
    assert abs(streamed.n_steps - whole.n_steps) <= 1
    close(streamed.loglik, whole.loglik, 1e-9)
    close(streamed.params, whole.params, 1e-5)


@MORE
def test_float32_is_as_close_as_float32_can_be():
    x = (clusters(1000, 2, 2) + 100).astype(np.float32)
    options = {"key": jax.random.key(0), "max_steps": 10}
    whole, streamed = jaxem.fit(MODEL, x, **options), jaxem.fit_stream(MODEL, Array(x, batch_size=150), **options)
    close(streamed.loglik, whole.loglik, 1e-6)
    close(streamed.params["components"], whole.params["components"], 1e-4)
    assert streamed.loglik.dtype == np.float32


def test_nothing_is_compiled_for_a_later_pass(x64):
    model = jaxem.Mixture(3, jaxem.Poisson())
    fit = lambda n: jaxem.fit_stream(model, Array(counts(230), batch_size=50), key=jax.random.key(n), max_steps=n)  # noqa: E731
    fit(1)
    with pytest.MonkeyPatch.context() as patch:
        traced = []
        patch.setattr(jaxem.Mixture, "log_marginal", lambda self, *a: traced.append(1))
        assert fit(6).n_steps == 6
    assert not traced


# --- sources ---------------------------------------------------------------------------------


def batches(n=20, rows=30):
    return [clusters(rows, 2, 2, seed=0) + 0.01 * i for i in range(n)]


def test_a_buffer_that_the_source_reuses(x64):
    x = counts(300)

    def reusing():
        buffer = np.empty(50)
        for i in range(0, 300, 50):
            buffer[:] = x[i : i + 50]
            yield buffer

    options = {"init": STARTS, "n_restarts": 3, "max_steps": 5}
    check_same(jaxem.fit_stream(POISSON, reusing, **options), jaxem.fit(POISSON, x, **options))


def test_batches_of_any_length(x64):
    x = counts(300)
    parts = [x[:40], x[40:41], x[41:41], x[41:150], x[150:]]  # one row, none, more than the first has
    options = {"init": STARTS, "n_restarts": 3, "max_steps": 5}
    check_same(jaxem.fit_stream(POISSON, parts, **options), jaxem.fit(POISSON, x, **options))


def raises():
    for i, part in enumerate(batches()):
        if i == 17:
            raise OSError("disk gone")
        yield part


def changed(change):
    def source():
        for i, part in enumerate(batches()):
            yield change(part) if i == 17 else part

    return source


def with_nan(part):
    part[3, 1] = np.nan
    return part


def later(change):
    """A source that goes wrong in its third pass."""
    passes = []

    def source():
        passes.append(1)
        yield from (changed(change) if len(passes) == 3 else batches)()

    return source


BAD = {
    "raises": (raises, "batch 17: the source raised OSError: disk gone"),
    "another width": (changed(lambda x: x[:, :1]), r"batch 17: data must have rows like those of batch 0, float64\[2\]; got float64\[1\]"),
    "another dtype": (changed(lambda x: x.astype(np.float32)), r"batch 17: .*batch 0, float64\[2\]; got float32\[2\]"),
    "another structure": (changed(lambda x: {"x": x}), "batch 17: data must have rows like those of batch 0"),
    "another rank": (changed(lambda x: x[:, 0]), "batch 17: data must have rows like those of batch 0"),
    "NaN": (changed(with_nan), r"batch 17: data must be finite; NaN or inf in 1 row\(s\): 3"),
    "NaN in a later pass": (later(with_nan), r"batch 17: data must be finite"),
    "text": (changed(lambda x: np.full(x.shape, "a")), "batch 17: data must be numeric"),
    "negative weight": (changed(lambda x: (x, -np.ones(30))), "batch 17: weight must be .* non-negative"),
    "empty": (list, "batches must hold data of positive weight; the first pass found none"),
    "no rows": (lambda: [np.empty((0, 2))], "batches must hold data of positive weight"),
    "an exhausted generator": ((lambda it: lambda: it)(iter(batches())), "begin anew in every pass; pass 2 found none"),
    "a number": (lambda: [3.0], "batch 0: data must be arrays that lead with N"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_batches_are_named(x64, name):
    source, message = BAD[name]
    with pytest.raises(jaxem.BatchError, match=message):
        jaxem.fit_stream(MODEL, source, key=jax.random.key(0), max_steps=5)
    assert not [t for t in threading.enumerate() if t.name == "jaxem-reader"]


def test_what_cannot_be_streamed():
    with pytest.raises(TypeError, match="finite sufficient statistics, which add up over batches"):
        jaxem.fit_stream(jaxem.Mixture(2, jaxem.density(lambda p, x: -((x[0] - p["m"]) ** 2), init={"m": 0.0})), batches())
    with pytest.raises(TypeError, match="iterator ends after the first; give a function"):
        jaxem.fit_stream(MODEL, iter(batches()), key=jax.random.key(0))
    with pytest.raises(ValueError, match="key must be a JAX random key"):
        jaxem.fit_stream(MODEL, batches())


def test_an_interrupt_keeps_the_last_pass(x64):
    x, passes, main = counts(300), [], threading.main_thread().ident

    def source():
        passes.append(1)
        for i in range(0, 300, 50):
            if len(passes) == 5 and i == 200:
                signal.pthread_kill(main, signal.SIGINT)
            yield x[i : i + 50]

    options = {"init": STARTS, "n_restarts": 3, "stop": jaxem.Stop(loglik_rtol=None)}
    result = jaxem.fit_stream(POISSON, source, max_steps=50, **options)
    # The survey, the start, two steps, and one that was cut off.
    assert result.status == jaxem.Status.INTERRUPTED and len(passes) == 5
    whole = jaxem.fit(POISSON, x, max_steps=2, **options)
    np.testing.assert_array_equal(result.restarts.n_steps, whole.restarts.n_steps)
    close(result.params, whole.params, 1e-9)


def test_a_bad_batch_leaves_the_checkpoint_and_the_call_made_again_goes_on(x64, tmp_path):
    """The same bits as a stream that was never broken, after a source that failed in a later pass; time limits end it too."""
    x = counts(203)
    pieces, passes = np.array_split(x, 4), []

    def batches(broken):
        passes.append(0)
        for i, piece in enumerate(pieces):
            if broken and i == 2 and len(passes) > 6:
                raise OSError("the disk is gone")
            yield piece

    options = {"init": STARTS, "n_restarts": 3, "max_steps": 12, "stop": jaxem.Stop(loglik_rtol=None)}
    plain = jaxem.fit_stream(POISSON, lambda: batches(False), **options)
    passes.clear()
    saving = {"checkpoint": jaxem.Checkpoint(tmp_path, every_seconds=0)}
    with pytest.raises(jaxem.BatchError, match="batch 2"):
        jaxem.fit_stream(POISSON, lambda: batches(True), **options, **saving)
    seen = []
    again = jaxem.fit_stream(
        POISSON, lambda: batches(False), **options, **saving, callback=lambda s: seen.append(s.n_steps.max())
    )
    assert seen[0] > 1, "it began afresh"
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(plain.restarts.history, again.restarts.history)

    short = jaxem.fit_stream(POISSON, lambda: batches(False), **options, max_seconds=1e-9)
    assert (np.asarray(short.restarts.status) == jaxem.Status.INTERRUPTED).all()
