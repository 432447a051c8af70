"""Sources: every kind gives the same rows in every pass; the reader runs ahead, stops, and hands on errors."""

import builtins
import datetime
import threading
import time

import jax
import numpy as np
import pytest

import jaxem
from jaxem.data import validation
from jaxem.data.by_rows import aligned
from jaxem.streams.sources import Array, Columns, Npy, as_source, read_ahead


def table(n=250):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 3)).astype(np.float32), rng.uniform(0.5, 2, n).astype(np.float32)


def stacked(source):
    return np.concatenate(list(source))


def test_arrays_and_npy_files(tmp_path):
    x, _ = table()
    np.save(tmp_path / "x.npy", x)
    mapped = np.memmap(tmp_path / "x.raw", np.float32, "w+", shape=x.shape)
    mapped[:] = x
    for source in (Array(x, batch_size=100), Array(mapped, batch_size=100), Npy(tmp_path / "x.npy", 100)):
        for _ in range(2):
            assert [len(batch) for batch in source] == [100, 100, 50]
            np.testing.assert_array_equal(stacked(source), x)


def test_batches_hold_eight_megabytes():
    """Unless rows are so short that there would be very many of them."""
    assert len(next(iter(Array(np.zeros((5_000, 4_096), np.float32))))) == 512
    assert len(next(iter(Array(np.zeros(300_000, np.float32))))) == 1 << 18


def test_weights_and_trees_go_with_their_rows():
    x, w = table()
    tree = {"a": x, "b": np.arange(len(x))}
    batches = list(Array(tree, w, batch_size=70))
    np.testing.assert_array_equal(np.concatenate([data["b"] for data, _ in batches]), tree["b"])
    np.testing.assert_array_equal(np.concatenate([weight for _, weight in batches]), w)


@pytest.mark.parametrize("format", ["parquet", "feather", "csv"])
def test_columns_of_files(tmp_path, format):
    arrow = pytest.importorskip("pyarrow")
    dataset = pytest.importorskip("pyarrow.dataset")
    x, w = table()
    columns = {"c": x[:, 2], "a": x[:, 0], "w": w, "b": x[:, 1]}
    # Two files, whose row groups fit no batch.
    for i, part in enumerate((slice(0, 99), slice(99, None))):
        rows = arrow.table({name: column[part] for name, column in columns.items()})
        dataset.write_dataset(
            rows, tmp_path, basename_template=f"part{i}-{{i}}.{format}", format=format,
            existing_data_behavior="overwrite_or_ignore", max_rows_per_group=37, max_rows_per_file=80,
        )  # fmt: skip
    source = Columns(tmp_path, ["a", "b", "c"], weight="w", batch_size=64, format=format)
    for _ in range(2):
        batches = list(source)
        assert [len(data) for data, _ in batches] == [64, 64, 64, 58]
        np.testing.assert_allclose(np.concatenate([data for data, _ in batches]), x, rtol=1e-6)
        np.testing.assert_allclose(np.concatenate([weight for _, weight in batches]), w, rtol=1e-6)
    every = Columns(dataset.dataset(tmp_path, format=format), weight="w", batch_size=300)
    np.testing.assert_allclose(next(iter(every))[0], x[:, [2, 0, 1]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"columns must be among \['c', 'a', 'w', 'b'\]; got \['z'\]"):
        list(Columns(tmp_path, ["a", "z"], format=format))


FOREIGN = {
    "timestamp": datetime.datetime(2020, 1, 1),
    "date32": datetime.date(2020, 1, 1),
    "time64": datetime.time(1),
    "duration": datetime.timedelta(1),
    "binary": b"1",
    "string": "1",
    "list": [1.0],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_columns_that_hold_no_numbers(tmp_path, kind):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = arrow.table({"a": [1.0, None], "when": [FOREIGN[kind], None], "n": [2**24 + 1, 1], "b": [True, None]})
    parquet.write_table(rows, tmp_path / "x.parquet")
    for weight in (None, "when"):
        with pytest.raises(TypeError, match=f"columns must hold numbers or bools; got 'when' of {kind}.*columns="):
            next(iter(Columns(tmp_path / "x.parquet", weight=weight)))
    np.testing.assert_array_equal(stacked(Columns(tmp_path / "x.parquet", ["a", "b"])), [[1, 1], [np.nan, np.nan]])
    np.testing.assert_array_equal(stacked(Columns(tmp_path / "x.parquet", "a")), [[1], [np.nan]])


def test_columns_of_integers_that_float32_rounds(tmp_path, monkeypatch):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(validation, "_warned", set())
    parquet.write_table(arrow.table({"few": [1, 2], "many": [2**24 + 1, None]}), tmp_path / "x.parquet")
    with pytest.warns(UserWarning, match="file in column 'many' holds integers above .*dtype='float64'") as seen:
        for _ in range(2):
            assert stacked(Columns(tmp_path / "x.parquet", dtype="float64"))[0, 1] == 2**24 + 1
            stacked(Columns(tmp_path / "x.parquet", batch_size=1))
    assert len(seen) == 1


def test_nulls_become_nan(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"a": [1.0, None, 3.0]}), tmp_path / "a.parquet")
    np.testing.assert_array_equal(stacked(Columns(tmp_path / "a.parquet")), np.array([[1], [np.nan], [3]], np.float32))


def test_without_pyarrow_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r'needs pyarrow: pip install "jaxem\[arrow\]"'):
        list(Columns("x.parquet"))


def test_what_is_no_source():
    with pytest.raises(TypeError, match="iterator ends after the first; give a function"):
        as_source(iter([np.ones((3, 2))]))
    with pytest.raises(TypeError, match="iterator ends after the first"):
        as_source(np.ones((3, 2)) for _ in range(2))
    for wrong in (3, "x.npy", None):
        with pytest.raises(TypeError, match="batches must be an iterable of batches"):
            as_source(wrong)


def test_the_reader_runs_ahead_but_not_far():
    read = []

    def items():
        for i in range(20):
            read.append(i)
            yield i

    with read_ahead(items(), 2) as ahead:
        assert next(ahead) == 0
        deadline = time.monotonic() + 10
        while len(read) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        # One handed over, two waiting, one in the reader's hands.
        assert read == [0, 1, 2, 3]
        assert list(ahead) == list(range(1, 20))


def test_the_reader_ends_with_its_consumer():
    def endless():
        while True:
            yield 0

    with read_ahead(endless(), 2) as ahead:
        next(ahead)
    assert not [t for t in threading.enumerate() if t.name == "jaxem-reader"]


def test_errors_of_the_reader_are_raised_here():
    def breaks():
        yield 1
        raise OSError("disk gone")

    with read_ahead(breaks(), 2) as ahead:
        assert next(ahead) == 1
        with pytest.raises(OSError, match="disk gone"):
            next(ahead)


def test_aligned_arrays_begin_where_jax_takes_them():
    for shape, dtype in (((1000, 3), np.float32), ((7,), np.float64), ((5, 2), np.int8)):
        x = aligned(shape, dtype)
        assert x.shape == shape and x.dtype == dtype and x.ctypes.data % 64 == 0
        x[...] = 1
        assert (x == 1).all()


# --- answers about a stream ----------------------------------------------------------------------
def test_answers_about_batches_are_those_about_all_rows(tmp_path, x64):
    x, model = np.random.default_rng(0).normal(size=(10, 2)), jaxem.GaussianMixture(2)
    params = jax.tree.map(np.asarray, model.template(x))
    params["components"]["mean"] = x[:2]
    np.save(tmp_path / "rows.npy", x)
    source = Npy(tmp_path / "rows.npy", 4)
    parts = list(jaxem.predict_stream(model, params, source))
    assert [len(part) for part in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(parts), model.predict(params, x))
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.float64, (10, 2))
    weighed = Array(x, np.ones(10), 4)
    assert jaxem.predict_stream(model, params, iter(weighed), method="posterior", out=out) is out
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model.posterior(params, x), rtol=1e-12)
    for rows, message in ((9, "got 9, and at least 10"), (11, "got 11, and 10 of theirs")):
        with pytest.raises(ValueError, match=message):
            jaxem.predict_stream(model, params, source, out=np.zeros(rows, int))
    with pytest.raises(ValueError, match=r"out must have rows of float64\[2\]; got int64\[2\]"):
        jaxem.predict_stream(model, params, source, method="posterior", out=np.zeros((10, 2), int))
    with pytest.raises(jaxem.sources.BatchError, match=r"batch 1: .*finite"):
        list(jaxem.predict_stream(model, params, [x[:4], np.full((4, 2), np.nan)]))
    with pytest.raises(ValueError, match="method must name a method of Mixture"):
        jaxem.predict_stream(model, params, source, method="prediction")
