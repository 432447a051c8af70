"""Frames, nullable columns, masks and foreign dtypes: taken with NaN for what is missing, or refused by name."""

import datetime
import decimal
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse

import jaxem
from jaxem.data import validation
from jaxem.data.arrays import numeric

pa = pytest.importorskip("pyarrow")
NAN = np.nan
KEY = jax.random.key(0)
FRAME = pd.DataFrame({"a": [1.0, 2.0, 3.0], "n": [4, 5, 6]})
GAPS = pd.DataFrame({"a": [1.0, None, 3.0], "n": [4, 5, None]})
FULL, HOLES = [[1, 4], [2, 5], [3, 6]], [[1, 4], [NAN, 5], [3, NAN]]
MASKED = np.ma.array([[1, 4], [2, 5], [3, 6]], mask=[[0, 0], [1, 0], [0, 1]])

TAKEN = {
    "pandas": (FRAME, FULL),
    "nullable": (FRAME.convert_dtypes(), FULL),
    "nullable with NA": (GAPS.convert_dtypes(), HOLES),
    "Arrow-backed": (FRAME.convert_dtypes(dtype_backend="pyarrow"), FULL),
    "Arrow-backed with NA": (GAPS.convert_dtypes(dtype_backend="pyarrow"), HOLES),
    "integers and bools": (pd.DataFrame({"n": [4, 5], "b": [True, False]}), [[4, 1], [5, 0]]),
    "nullable bools": (pd.DataFrame({"n": [4, 5], "b": pd.array([True, None], "boolean")}), [[4, 1], [5, NAN]]),
    "columns of one name": (pd.DataFrame([[1, 4.0], [2, 5]], columns=["a", "a"]), [[1, 4], [2, 5]]),
    "pandas, sparse": (pd.DataFrame({"a": pd.arrays.SparseArray([0, 0, 3.0])}), [[0], [0], [3]]),
    "series": (pd.Series([1, None, 3], dtype="Int64"), [1, NAN, 3]),
    "polars": (pl.DataFrame({"a": [1.0, None, 3.0], "n": [4, 5, None]}), HOLES),
    "polars, bools": (pl.DataFrame({"n": [4, 5], "b": [True, None]}), [[4, 1], [5, NAN]]),
    "polars, a series": (pl.Series("a", [1, None, 3]), [1, NAN, 3]),
    "arrow": (pa.table({"a": [1.0, None, 3.0], "n": [4, 5, None]}), HOLES),
    "arrow, bools and decimals": (pa.table({"b": [True, None], "d": [decimal.Decimal("1.5"), None]}), [[1, 1.5], [NAN, NAN]]),
    "masked": (MASKED, HOLES),
    "masked floats": (MASKED.astype(float), HOLES),
    "nothing masked": (np.ma.array(FULL), FULL),
    "big-endian": (np.array(FULL, ">f8"), FULL),
    "big-endian integers": (np.array(FULL, ">i4"), FULL),
    "long doubles": (np.array(FULL, np.longdouble), FULL),
}


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name):
    given, wanted = TAKEN[name]
    array = numeric(given, "data")
    assert type(array) is np.ndarray and array.dtype.isnative and array.dtype.itemsize <= 8
    np.testing.assert_array_equal(array, wanted)


DAYS = [datetime.date(2020, 1, 1)] * 3
FOREIGN = {
    "text": (["u", "v", "w"], "str|object|String|string"),
    "dates": (DAYS, "object|Date|date32"),
    "times": (pd.date_range("2020", periods=3), "datetime64|Datetime|timestamp"),
    "durations": (pd.to_timedelta([1, 2, 3], unit="s"), "timedelta64|Duration|duration"),
    "bytes": ([b"u", b"v", b"w"], "object|Binary|binary"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame, "arrow", "Arrow-backed"])
def test_refused_by_the_name_of_the_column(frame, name):
    column, dtype = FOREIGN[name]
    make = pa.table if isinstance(frame, str) else frame
    data = make({"a": [1.0, 2.0, 3.0], "when": column})
    if frame == "Arrow-backed":
        data, dtype = data.to_pandas(types_mapper=pd.ArrowDtype), dtype + "|time|date|string|binary|duration"
    with pytest.raises(TypeError, match=f"data: column 'when' must be numeric .*; got .*({dtype})"):
        jaxem.fit(jaxem.GaussianMixture(2), data, key=KEY)


REFUSED = {
    "float16": (np.ones((3, 2), np.float16), "must be float32 or float64; got float16"),
    "bfloat16": (jnp.ones((3, 2), jnp.bfloat16), "must be float32 or float64; got bfloat16"),
    "sparse": (scipy.sparse.csr_matrix(np.eye(3)), r"dense array; got a sparse csr_matrix: call its toarray\(\)"),
    "categories": (pd.DataFrame({"c": pd.Categorical(["u", "v"])}), "column 'c' .*got category"),
    "None": ([[1.0, None]], "got dtype object, None in row 0, column 1"),
    "fields": (np.zeros(3, [("a", float), ("b", float)]), r"got dtype \[\('a'"),
    "dates": (np.array(["2020-01-01"], "M8[D]"), r"got dtype datetime64\[D\]"),
    "a series of text": (pd.Series(["u"]), "got (str|dtype object)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    data, message = REFUSED[name]
    with pytest.raises(TypeError, match=f"data.*{message}"):
        jaxem.fit(jaxem.GaussianMixture(2), data, key=KEY)


def test_half_precision_is_refused_inside_jit():
    with pytest.raises(TypeError, match="data must be float32 or float64; got float16"):
        jax.jit(lambda x: jaxem.fit(jaxem.GaussianMixture(2), x, key=KEY).loglik)(np.ones((3, 2), np.float16))


def ones(n):
    return np.ma.array(np.ones(n), mask=np.arange(n) == 3)


REFUSE_NAN = {
    "gaussian": (jaxem.GaussianMixture(2), np.ma.array(np.ones((9, 2)), mask=np.eye(9, 2)), r"data must be finite; .* row\(s\): 0, 1"),
    "poisson": (jaxem.Mixture(2, jaxem.Poisson()), ones(9).astype(int), r"data must be finite; .* row\(s\): 3"),
    "bernoulli": (jaxem.Mixture(2, jaxem.Bernoulli()), ones(9).astype(bool), "data must be 0 or 1; got nan in row 3"),
    "categorical": (jaxem.Mixture(2, jaxem.Categorical(3)), ones(9).astype(int), "data must be codes 0..2.*; got nan in row 3"),
    "documents": (jaxem.PLSA(2), np.ma.array(np.ones((4, 3), int), mask=np.eye(4, 3)), r"data must be finite; .* row\(s\): 0, 1, 2"),
    "regression": (jaxem.Mixture(2, jaxem.LinearRegression()), {"y": ones(9), "inputs": np.ones((9, 1))}, "data y must be finite"),
    "motif": (jaxem.Motif(2), {"x": np.ma.array(np.ones((2, 5), int), mask=np.eye(2, 5)), "open": np.ones((2, 5))}, "data must be codes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSE_NAN)
def test_masks_are_nan_where_the_model_takes_none(name):
    model, data, message = REFUSE_NAN[name]
    with pytest.raises(ValueError, match=message):
        jaxem.fit(model, data, key=KEY)


def test_masks_are_nan_where_the_model_takes_it():
    rng = np.random.default_rng(0)
    codes, mask = rng.integers(0, 3, (20, 4)), rng.uniform(size=(20, 4)) < 0.2
    for model in (jaxem.Ancestry(2), jaxem.Mixture(2, jaxem.Categorical(3, missing="marginal")), jaxem.ItemResponse()):
        x = np.minimum(codes, 1) if isinstance(model, jaxem.ItemResponse) else codes
        np.testing.assert_array_equal(model.validate(np.ma.array(x, mask=mask)), model.validate(np.where(mask, NAN, x)))
    series = jaxem.sequences([np.ma.array(np.ones(5), mask=[0, 1, 0, 0, 1])])
    np.testing.assert_array_equal(series.observed, [[True, False, True, True, False]])


def test_masked_weights_and_labels():
    x = np.random.default_rng(0).normal(size=(9, 2))
    with pytest.raises(ValueError, match="weight must be finite"):
        jaxem.fit(jaxem.GaussianMixture(2), x, key=KEY, weight=ones(9))
    with pytest.raises(ValueError, match="labels must be integers"):
        jaxem.fit(jaxem.GaussianMixture(2), x, key=KEY, labels=ones(9).astype(int))


LARGE = np.array([[1, 2**24 + 1], [2, 3]])
ROUNDED = {
    "frame": (pd.DataFrame(LARGE, columns=["few", "many"]), " in column 'many'"),
    "frame beside floats": (pd.DataFrame({"x": [0.5, 1], "many": LARGE[:, 1]}), " in column 'many'"),
    "nullable": (pd.DataFrame({"many": pd.array(LARGE[:, 1], "Int64")}), " in column 'many'"),
    "polars": (pl.DataFrame({"many": LARGE[:, 1]}), " in column 'many'"),
    "arrow": (pa.table({"many": LARGE[:, 1]}), " in column 'many'"),
    "array": (LARGE, " in column 1"),
    "negative": (-LARGE, " in column 1"),
    "one column": (LARGE[:, 1], ""),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_integers_that_float32_rounds(name, monkeypatch):
    given, place = ROUNDED[name]
    monkeypatch.setattr(validation, "_warned", set())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            validation.floating(numeric(given, "data"), "data", given)
        assert [str(w.message).partition(" holds")[0] for w in seen] == [f"data{place}"]
        with jax.enable_x64(True):
            validation.floating(numeric(given, "data"), "data", given)
        validation.floating(np.array([2**24, 3]), "data")
        assert len(seen) == 1


def test_counts_of_a_frame_name_their_column(monkeypatch):
    monkeypatch.setattr(validation, "_warned", set())
    with pytest.warns(UserWarning, match="data in column 'many' holds integers above"):
        jaxem.Mixture(1, jaxem.Poisson()).validate(ROUNDED["frame"][0])
