"""Bad input: an error that names the argument, what was expected and what came, before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.data.validation import check_finite
from jaxem.fitting import solve
from jaxem.fitting.arguments import task_of
from jaxem.fitting.checks import checked

X = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
KEY = jax.random.key(0)
GOOD = {
    "weights": np.full(2, 0.5, np.float32),
    "components": {"mean": X[:2], "covariance": np.stack([np.eye(2, dtype=np.float32)] * 2)},
}


def replaced(**leaves):
    return {
        "weights": leaves.get("weights", GOOD["weights"]),
        "components": {**GOOD["components"], **{k: v for k, v in leaves.items() if k != "weights"}},
    }


def with_nan():
    x = X.copy()
    x[3, 1] = np.nan
    x[11, 0] = np.inf
    return x


def in_parts(*columns):
    return jaxem.Mixture(2, jaxem.Product((jaxem.Gaussian("diag"),) * 2, columns))


class Bare(jaxem.EM):
    """Not decorated."""


CASES = {
    "one-dimensional": (dict(data=X[:, 0]), ValueError, r"data must have shape \(N, D\); got shape \(20,\).*x\[:, None\]"),
    "three-dimensional": (dict(data=X[None]), ValueError, r"data must have shape \(N, D\)"),
    "empty": (dict(data=X[:0]), ValueError, "data must not be empty"),
    "too few rows": (dict(data=X[:1]), ValueError, r"data must have at least n_components=2 rows; got 1"),
    "nan": (dict(data=with_nan()), ValueError, r"data must be finite; NaN or inf in 2 row\(s\): 3, 11"),
    "object": (dict(data=np.array([[object(), 1]] * 5)), TypeError, "data must be numeric.*got dtype object"),
    "string": (dict(data=np.array([["a", "b"]] * 5)), TypeError, "data must be numeric"),
    "complex": (dict(data=X.astype(complex)), TypeError, "data must be numeric.*complex"),
    "ragged": (dict(data=[[1.0, 2.0], [3.0]]), TypeError, "data must be a numeric array"),
    "no components": (dict(model=jaxem.GaussianMixture(0)), ValueError, "n_components must be an integer of at least 1; got 0"),
    "unknown covariance": (
        dict(model=lambda: jaxem.GaussianMixture(2, "oval")),
        ValueError,
        "covariance must be one of.*'oval'",
    ),
    "negative weight": (dict(weight=-np.ones(20)), ValueError, "weight must be finite and non-negative"),
    "short weight": (dict(weight=np.ones(19)), ValueError, r"weight must have shape \(20,\).*got shape \(19,\)"),
    "zero weight": (dict(weight=np.zeros(20)), ValueError, "weight must not be all zero"),
    "labels": (
        dict(labels=np.zeros(5, int)),
        ValueError,
        r"labels must be integers of shape \(20,\).*got int.* of shape \(5,\)",
    ),
    "labels beyond K": (dict(labels=np.full(20, 2)), ValueError, r"labels must be in 0..1 or -1.*got 2 in row 0"),
    "no key": (dict(key=None), ValueError, "key must be a JAX random key.*got None"),
    "seed for a key": (dict(key=3), TypeError, "key must be a JAX random key.*got int"),
    "no restarts": (dict(n_restarts=0), ValueError, "n_restarts must be an integer of at least 1; got 0"),
    "fractional restarts": (dict(n_restarts=1.5), ValueError, "n_restarts must be an integer"),
    "negative tolerance": (
        dict(stop=jaxem.Stop(loglik_rtol=-1e-3)),
        ValueError,
        "stop.loglik_rtol must be None or a non-negative",
    ),
    "negative max_steps": (dict(max_steps=-1), ValueError, "max_steps must be an integer of at least 0; got -1"),
    "block_size": (dict(block_size=0), ValueError, "block_size must be an integer of at least 1; got 0"),
    "init structure": (dict(init={"weights": [0.5, 0.5]}), ValueError, "init must be parameters with the structure"),
    "init shape": (
        dict(init=replaced(mean=X[:3])),
        ValueError,
        r"init: components.mean must have shape \(2, 2\); got \(3, 2\)",
    ),
    "init not SPD": (
        dict(init=replaced(covariance=-GOOD["components"]["covariance"])),
        ValueError,
        "init: components.covariance must be symmetric positive definite",
    ),
    "init weights": (
        dict(init=replaced(weights=np.array([0.5, 0.6]))),
        ValueError,
        "init: weights must be non-negative with a sum of 1",
    ),
    "init a class": (dict(init=jaxem.init.KMeans), TypeError, r"init must be parameters, .*; got the class KMeans"),
    "init a word": (dict(init="kmeans"), TypeError, r"init must be parameters, .*; got 'kmeans'"),
    "bare algorithm": (dict(algorithm=Bare()), TypeError, "algorithm class Bare must be a frozen dataclass"),
    "init labels": (dict(init=jaxem.init.Labels(np.full(20, 2))), ValueError, "init labels must be"),
    "each": (dict(init=jaxem.init.Each(GOOD), n_restarts=3), ValueError, "must lead with n_restarts=3"),
    "a tolerance for a rule": (dict(stop=1e-6), TypeError, r"stop must be .*got float; .*jaxem.Stop\(loglik_rtol=1e-06\)"),
    "a model's class": (dict(model=lambda: jaxem.Mixture), TypeError, "model must be a jaxem.Model; got the class Mixture"),
    "columns for parts": (dict(model=in_parts(0, 1)), ValueError, r"columns must be a tuple of ints for each .*; got \(0, 1\)"),
    "columns by name": (dict(model=in_parts(("a",), ("b",))), ValueError, "columns must be a tuple of ints for each"),
    "columns, one int": (dict(model=in_parts((0,), 1)), ValueError, "columns must be a tuple of ints for each"),
    "not a model": (dict(model=3), TypeError, "model must be a jaxem.Model; got int"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name):
    changes, error, message = CASES[name]
    arguments = {"model": jaxem.GaussianMixture(2), "data": X, "key": KEY, **changes}
    compiled = solve.begin_jit._cache_size()
    with pytest.raises(error, match=message):
        model = arguments.pop("model")
        jaxem.fit(model() if callable(model) else model, arguments.pop("data"), **arguments)
    assert solve.begin_jit._cache_size() == compiled


COUNTS = np.array([0.0, 1, 2, 3, 4])
FAMILIES = {
    "negative count": (jaxem.Poisson(), np.array([1, -1, 2]), r"counts \(non-negative integers\); got -1 in row 1"),
    "fractional count": (jaxem.Poisson(), np.array([[1, 2.5], [0, 1]]), "got 2.5 in row 0, column 1"),
    "nan count": (jaxem.Poisson(), np.array([1, np.nan, 2]), "NaN or inf in 1 row"),
    "non-positive gamma": (jaxem.Gamma(), np.array([1.0, 0.0, 2.0]), "data must be positive; got 0.0 in row 1"),
    "category outside": (jaxem.Categorical(3), np.array([0, 3, 1]), r"codes 0..2; got 3 in row 1"),
    "negative category": (jaxem.Categorical(3), np.array([0, -1, 1]), r"codes 0..2; got -1 in row 1"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_bad_data_of_a_family(name):
    family, data, message = FAMILIES[name]
    with pytest.raises(ValueError, match=message):
        jaxem.fit(jaxem.Mixture(1, family), data, key=KEY)


def test_model_that_is_no_registered_dataclass():
    class Plain(jaxem.Mixture):
        pass

    with pytest.raises(TypeError, match="Plain must be a frozen dataclass registered as a pytree"):
        jaxem.fit(Plain(2), X, key=KEY)

    class Bare(jaxem.Model):
        pass

    with pytest.raises(TypeError, match=r"decorate it with @jaxem.struct"):
        jaxem.fit(Bare(), X, key=KEY)


def test_integers_and_booleans_are_converted():
    result = jaxem.fit(jaxem.Mixture(2, jaxem.Poisson()), np.arange(10), key=KEY, max_steps=3)
    assert result.loglik.dtype == jnp.float32
    result = jaxem.fit(jaxem.Mixture(2, jaxem.Categorical(2)), np.arange(10)[:, None] % 2 == 0, key=KEY, max_steps=3)
    assert np.isfinite(float(result.loglik))


def test_finite_numbers_whose_sum_is_not():
    check_finite(np.full((4, 2), 3e38, np.float32), "data")
    with pytest.raises(ValueError, match=r"NaN or inf in 1 row\(s\): 2"):
        check_finite(np.array([[3e38], [3e38], [np.inf]], np.float32), "data")


# --- words that only some fields take ---------------------------------------------------------
CHOICES = {
    "covariance must be one of full, tied, diag, spherical; got 'diagonal'": [
        lambda: jaxem.GaussianMixture(2, "diagonal"),
        lambda: jaxem.Gaussian("diagonal"),
        lambda: jaxem.StudentT("diagonal"),
        lambda: jaxem.MultivariateNormal("diagonal"),
        lambda: jaxem.MultivariateT(covariance="diagonal"),
    ],
    "missing must be None or 'marginal'; got 'drop'": [
        lambda: jaxem.Gaussian(missing="drop"),
        lambda: jaxem.StudentT(missing="drop"),
        lambda: jaxem.Categorical(3, missing="drop"),
    ],
    "noise must be one of diag, isotropic; got 'diagonal'": [lambda: jaxem.FactorAnalysis(1, "diagonal")],
    "initial must be one of free, fixed, uniform, stationary; got 'equal'": [
        lambda: jaxem.HMM(2, jaxem.Poisson(), initial="equal")
    ],
    "state_noise must be one of full, diag; got 'diagonal'": [lambda: jaxem.StateSpace(1, state_noise="diagonal")],
    "switching_intercept must be True or False; got 2": [lambda: jaxem.AutoRegression(2)],
}


@pytest.mark.parametrize("message", CHOICES)
def test_a_wrong_word_is_refused_when_it_is_said(message):
    for make in CHOICES[message]:
        with pytest.raises(ValueError, match=message):
            make()


# --- models of the user's ---------------------------------------------------------------------
def joint(constraints):
    return jaxem.log_joint(lambda p, x: -(x[:2] ** 2) / p["s"], init={"s": 1.0}, constraints=constraints)


NO_CONSTRAINTS = {
    "class": ({"s": jaxem.constraints.Positive}, TypeError, r"must hold instances, e.g. .*; got the class Positive"),
    "name": ({"s": "positive"}, TypeError, "must hold instances, .*got 'positive'"),
    "class for all": (jaxem.constraints.Positive, TypeError, "must .*got the class Positive"),
    "name for all": ("positive", TypeError, "must .*got 'positive'"),
    "number": ({"s": 0}, TypeError, "must .*got 0"),
    "list": ([jaxem.constraints.Positive()], ValueError, "must be built like the parameters.*'s'.*got list"),
    "unknown key": ({"t": jaxem.constraints.Positive()}, ValueError, "must be for parameters, which are"),
}


@pytest.mark.parametrize("name", NO_CONSTRAINTS)
def test_constraints_that_are_none(name):
    constraints, error, message = NO_CONSTRAINTS[name]
    with pytest.raises(error, match=f"constraints {message}"):
        jaxem.fit(joint(constraints), X)


class Normal(jaxem.Model):
    """Normal(mean, 1)."""

    needs_key = False

    def natural(self, params):
        return params

    def log_marginal(self, natural, data, rows):
        return data * natural - natural**2 / 2 - data**2 / 2

    def initialize(self, key, data, weight):
        return jnp.zeros((), data.dtype)


def summed(self, natural, data, rows):
    return Normal.log_marginal(self, natural, data, rows).sum()


def in_columns(self, natural, data, rows):
    return Normal.log_marginal(self, natural, data, rows)[:, None]


def sized(self, key, data, weight):
    return jnp.zeros((self.size,), data.dtype)


OWN = {
    "a sum over rows": ({"log_marginal": summed}, r"log_marginal must give one number for each .*got shape \(\)"),
    "a column": ({"log_marginal": in_columns}, r"log_marginal must give .*; got shape \(1, 1\)"),
    "no natural": ({"natural": jaxem.Model.natural}, "model class Mine must define `natural`$"),
    "no log_marginal": ({"log_marginal": jaxem.Model.log_marginal}, "model class Mine must define `log_marginal`$"),
    "neither": (
        {"natural": jaxem.Model.natural, "log_marginal": jaxem.Model.log_marginal},
        "model class Mine must define `natural` and `log_marginal`$",
    ),
    "no initialize": ({"initialize": None}, "model class Mine must define `initialize`, or start from init=parameters"),
    "a size that is not static": (
        {"initialize": sized, "__annotations__": {"size": int}, "size": 2},
        r"not static are numbers, traced in a fit: Mine.size = 2; declare .*jaxem.static\(\)",
    ),
    "a word that is not static": (
        {"__annotations__": {"kind": "str"}, "kind": "best"},
        r"not static are numbers, traced in a fit: Mine.kind = 'best'; declare",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_a_class_of_the_users_that_no_fit_could_use(name):
    namespace, message = OWN[name]
    bases = (Normal,)
    if namespace.get("initialize", Normal) is None:
        namespace, bases = {"natural": Normal.natural, "log_marginal": Normal.log_marginal, "needs_key": False}, (jaxem.Model,)
    model = jaxem.struct(type("Mine", bases, namespace))()
    with pytest.raises(TypeError, match=message):
        jaxem.fit(model, X[:, 0], n_restarts=1)


def test_a_family_whose_scores_have_another_shape():
    @jaxem.struct
    class Mine(jaxem.Poisson):
        def scores(self, natural, data):
            return super().scores(natural, data).sum(0)

    with pytest.raises(TypeError, match=r"Mine.scores must give log-densities \(K, n\), here K=2; got shape \(\d+,\)"):
        jaxem.fit(jaxem.Mixture(2, Mine()), COUNTS, key=KEY)


ONE_START = {
    "parameters": (joint(None), {"s": 1.0}),
    "the model's own": (joint(None), None),
    "labels": (jaxem.Mixture(2, jaxem.Poisson()), jaxem.init.Labels(np.arange(5) % 2)),
    "quantiles": (jaxem.Mixture(2, jaxem.Poisson()), jaxem.init.Quantiles()),
}


@pytest.mark.parametrize("name", ONE_START)
def test_restarts_from_one_start_are_told(name):
    model, init = ONE_START[name]
    with pytest.warns(UserWarning, match="all n_restarts=3 restarts start alike, and so they end"):
        jaxem.fit(model, COUNTS if isinstance(model, jaxem.Mixture) else X, key=KEY, init=init, n_restarts=3, max_steps=0)


def test_restarts_that_start_apart_are_not(recwarn):
    jaxem.fit(joint(None), X, init=jaxem.init.Each({"s": np.array([1.0, 2.0])}), n_restarts=2, max_steps=0)
    jaxem.fit(jaxem.Single(jaxem.Poisson()), COUNTS, key=KEY, n_restarts=2, max_steps=0)  # random weights, needing no key
    assert not [w for w in recwarn if "alike" in str(w.message)]


# --- rows that count must be finite, whatever is fitted ---------------------------------------
MARGINAL = r"NaN or inf in 1 row\(s\): 3; Gaussian\(missing='marginal'\) takes NaN for a missing entry"


def gaps():
    x = X.copy()
    x[3, 1] = np.nan
    return x


NAN_REFUSED = {
    "fit": lambda model, **weight: jaxem.fit(model, gaps(), key=KEY, **weight),
    "select": lambda model, **weight: jaxem.select([model], gaps(), key=KEY, **weight),
    "cross_validate": lambda model, **weight: jaxem.cross_validate(model, gaps(), key=KEY, **weight),
    "bootstrap": lambda model, **weight: jaxem.bootstrap(model, GOOD, gaps(), key=KEY, **weight),
    "information": lambda model, **weight: jaxem.information(model, GOOD, gaps(), **weight),
    "online": lambda model, **weight: jaxem.online.init(model, gaps(), key=KEY, **weight),
    "unlabelled": lambda model: jaxem.unlabelled_weight(model, gaps(), np.arange(20) % 2, key=KEY),
    "fit_stream": lambda model: jaxem.fit_stream(model, [gaps()], key=KEY),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NAN_REFUSED)
def test_nan_is_refused_by_its_row(name, weighted):
    if weighted and name in ("unlabelled", "fit_stream"):
        pytest.skip("has no weight")
    weight = {"weight": np.ones(20)} if weighted else {}
    with pytest.raises(ValueError, match=MARGINAL):
        NAN_REFUSED[name](jaxem.GaussianMixture(2), **weight)


def test_only_rows_that_count_are_looked_at():
    x = gaps()
    x[4] = np.inf
    result = jaxem.fit(jaxem.GaussianMixture(2, "diag"), x, key=KEY, weight=np.where(np.arange(20) < 5, 0, 1.0), max_steps=2)
    assert np.isfinite(result.loglik)
    with pytest.raises(ValueError, match=r"NaN or inf in 1 row\(s\): 4$"):  # inf is nowhere a missing entry
        jaxem.fit(jaxem.GaussianMixture(2, "diag"), x, key=KEY, weight=(np.arange(20) != 3) * 1.0)


def test_lists_are_arrays():
    rows = {"y": [1, 2, 3], "row": [[1.0, 2], [0, 1], [2, 1]]}
    assert jaxem.Superposition().validate(rows)["row"].shape == (3, 2)
    family = jaxem.density(lambda p, x: p["a"] * x[0], init={"a": np.ones(2)})
    assert jaxem.Mixture(2, family).validate([[1.0, 2], [3, 4]]).shape == (2, 2)


ABSENT = {
    "poisson": (jaxem.Mixture(2, jaxem.Poisson()), [0, 1, np.nan, 3, 4, 5]),
    "gamma": (jaxem.Mixture(2, jaxem.Gamma()), [1.0, 1, -7, 3, 4, 5]),
    "regression": (jaxem.Mixture(1, jaxem.LinearRegression()), {"y": [0, 1, np.inf, 3, 5, 2], "inputs": np.ones((6, 0))}),
    "censored": (jaxem.CensoredRegression(), {"lower": np.arange(6.0), "upper": [0, 1, np.nan, 4, 5, 6]}),
}


@pytest.mark.parametrize("name", ABSENT)
def test_rows_of_weight_zero_may_hold_anything(name):
    model, data = ABSENT[name]
    task = task_of(model, data, key=KEY, weight=[1, 2, 0, 1, 1, 1])
    assert all(np.isfinite(x).all() and len(x) == 6 for x in jax.tree.leaves(checked(task).data))
    with pytest.raises(ValueError, match="row"):
        checked(task_of(model, data, key=KEY, weight=np.ones(6)))


Y = np.append(np.nan, COUNTS)
WHO_TAKES_NAN = {
    "mixture of t": (jaxem.Mixture(2, jaxem.StudentT()), gaps(), r"StudentT\(missing='marginal'\) takes"),
    "single": (jaxem.MultivariateNormal(missing=None), gaps(), r"Gaussian\(missing='marginal'\) takes"),
    "chain": (jaxem.HMM(2, jaxem.Gaussian("diag")), gaps(), r"Gaussian\(missing='marginal'\) takes"),
    "parts": (jaxem.Mixture(2, jaxem.FamilyMixture(2, jaxem.Gaussian())), gaps(), r"Gaussian\(missing='marginal'\) takes"),
    "codes": (jaxem.Mixture(2, jaxem.Categorical(5)), Y, r"codes 0..4 \(NaN .* missing='marginal'\); got nan in row 0"),
    "none of a name": (jaxem.Mixture(2, jaxem.Poisson()), Y, r"row\(s\): 0$"),
    "a user's": (jaxem.log_joint(lambda p, x: p["a"] * x, init={"a": np.ones(2)}), Y, r"row\(s\): 0$"),
}


@pytest.mark.parametrize("name", WHO_TAKES_NAN)
def test_who_would_take_nan_is_named(name):
    model, data, message = WHO_TAKES_NAN[name]
    with pytest.raises(ValueError, match=message):
        jaxem.fit(model, data, key=KEY)


# --- inside jit over what is not traced -------------------------------------------------------
def closed(data, **arguments):
    arguments.setdefault("key", KEY)
    return jaxem.fit(jaxem.GaussianMixture(2, "diag"), data, max_steps=2, **arguments).loglik


INSIDE = {
    "jit": lambda f: jax.jit(lambda scale: scale * f())(1.0),
    "scan": lambda f: jax.lax.scan(lambda carry, _: (carry, f()), 0, None, length=2)[1][1],
    "cond": lambda f: jax.lax.cond(True, f, lambda: jnp.float32(0)),
}
LISTS = X.tolist()


@pytest.mark.parametrize("inside", INSIDE)
def test_everything_closed_over(inside):
    found = INSIDE[inside](lambda: closed(LISTS, weight=np.ones(20)))
    np.testing.assert_allclose(found, closed(LISTS), rtol=1e-5)


def test_closed_over_shapes_and_checks():
    assert jax.eval_shape(lambda: closed(X)).shape == ()
    for data, arguments, message in (
        (X[:, 0], {}, r"data must have shape \(N, D\)"),
        (X, {"weight": np.ones(3)}, "weight must have shape"),
        (X, {"max_seconds": 3}, "inside jit"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda data=data, arguments=arguments: closed(data, **arguments))
    with pytest.raises(ValueError, match=r"data must have shape \(N, D\)"):
        jax.eval_shape(lambda key: closed(X[0], key=key), KEY)
