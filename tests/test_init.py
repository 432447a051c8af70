"""Where restarts start: which models a strategy can start, NumPy arrays, and a strategy of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 3)).astype(np.float32)
COUNTS = RNG.integers(0, 5, (12, 6)).astype(np.float32)
STRINGS = jaxem.sequences([np.array([0, 1, 0, 1]), np.array([1, 1, 0])])
SITES = np.array([[0, 1, 1], [2, 2, 3], [0, 0, 0]])
JOINT = jaxem.log_joint(lambda p, x: -jnp.square(x[0] - p["mean"]), init={"mean": jnp.arange(2.0)})

#: A model of each kind and a few data.
MODELS = {
    "Mixture": (jaxem.GaussianMixture(2), X),
    "HMM": (jaxem.HMM(2), jaxem.sequences([X, X[:7]])),
    "LDA": (jaxem.LDA(2), COUNTS),
    "PLSA": (jaxem.PLSA(2), jaxem.documents(COUNTS)),
    "FactorAnalysis": (jaxem.FactorAnalysis(1), X),
    "StateSpace": (jaxem.StateSpace(2), X),
    "MultivariateNormal": (jaxem.MultivariateNormal(), X),
    "Ancestry": (jaxem.Ancestry(2), RNG.integers(0, 3, (20, 5))),
    "MarkovAutoregression": (jaxem.MarkovAutoregression(order=1), X[:, 0]),
    "ItemResponse": (jaxem.ItemResponse(), (X > 0).astype(np.float32)),
    "log_joint": (JOINT, X),
    "RandomIntercept": (jaxem.RandomIntercept(), X),
    "CensoredRegression": (jaxem.CensoredRegression(), {"lower": X[:, 0], "upper": X[:, 0] + 1}),
    "Superposition": (jaxem.Superposition(), {"y": COUNTS[:, 0], "row": COUNTS[:, :2] + 1}),
    "Proportions": (jaxem.Proportions(), -X),
    "WrightFisher": (jaxem.WrightFisher(100), {"count": np.array([[3, 5, 9]]), "total": np.full((1, 3), 20)}),
    "Grammar": (jaxem.Grammar(2, 2), STRINGS),
    "Motif": (jaxem.Motif(3), jaxem.dna(["ACGTACGT", "TTACGA"])),
    "Substitution": (jaxem.Substitution((3, 3, 3, -1), jaxem.HKY()), SITES),
}
NO_PARTITION = [
    "LDA", "PLSA", "FactorAnalysis", "StateSpace", "MultivariateNormal", "Ancestry", "MarkovAutoregression", "ItemResponse",
    "log_joint",
]  # fmt: skip
KEY = jax.random.key(0)


@pytest.mark.parametrize("name", NO_PARTITION)
def test_a_strategy_needs_a_model_that_it_can_start(name):
    """Said by every door before anything is read or compiled: the data are none."""
    model, _ = MODELS[name]
    doors = {
        "fit": lambda init: jaxem.fit(model, None, init=init, key=KEY),
        "fit_stream": lambda init: jaxem.fit_stream(model, None, init=init, key=KEY),
        "online.init": lambda init: jaxem.online.init(model, None, init=init, key=KEY),
        "plan": lambda init: jaxem.plan(model, None, init=init),
        "initialize": lambda init: init.initialize(model, KEY, None, None),
    }
    if model.scores:  # no start makes it fit for these
        del doors["fit_stream"], doors["online.init"]
    wanted = rf"parts the data .* {type(model).__name__} cannot start; it takes parameters, .*jaxem.init.Each"
    for init in (jaxem.init.KMeansPlusPlus(), jaxem.init.RandomResponsibilities(), jaxem.init.Labels(np.zeros(30, int))):
        for door in doors.values():
            with pytest.raises(TypeError, match=rf"init={type(init).__name__} {wanted}"):
                door(init)


#: One of each base is enough for every run.
REST = ("HMM", "MultivariateNormal", "MarkovAutoregression", "PLSA", "Motif", "CensoredRegression", "WrightFisher")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.published) if n in REST else n for n in MODELS])
def test_starts_from_numpy_arrays(name):
    """Outside jit, data and weights may be NumPy arrays."""
    model, data = MODELS[name]
    data = jax.tree.map(np.asarray, model.validate(data))
    weight = np.ones(len(jax.tree.leaves(data)[0]), np.float32)
    start = model.initialize(KEY, data, weight)
    jaxem.constraints.check(model.constraints, jax.tree.map(np.asarray, start))
    like = jax.eval_shape(model.initialize, KEY, data, weight)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), start) == jax.tree.map(lambda x: (x.shape, x.dtype), like)


@pytest.mark.parametrize("name, strategy", [("Mixture", jaxem.init.RandomResponsibilities()), ("HMM", jaxem.init.Quantiles())])
def test_a_strategy_by_itself_starts_as_fit_does(name, strategy):
    model, data = MODELS[name]
    data = model.validate(data)
    n = len(jax.tree.leaves(data)[0])
    alone = strategy.initialize(model, jax.random.fold_in(KEY, 0), data, np.ones(n, np.float32))
    fitted = jaxem.fit(model, data, init=strategy, key=KEY, max_steps=0, standardize=False).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), alone, fitted)


def test_each_starts_online_em_too():
    start = jaxem.fit(jaxem.GaussianMixture(2), X, key=KEY, max_steps=0).params
    each = jaxem.init.Each(jax.tree.map(lambda x: x[None], start))
    state = jaxem.online.init(jaxem.GaussianMixture(2), X, init=each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.params, start)


# --- a strategy of one's own, by public names alone ------------------------------------------
@jaxem.struct
class ChangePoint(jaxem.Init):
    """Rows in the order of time, cut at random change points: component k holds the k-th stretch."""

    def partition(self, key, x, weight, k):
        changes = jnp.sort(jax.random.uniform(key, (k - 1,), x.dtype)) * len(x)
        return jnp.searchsorted(changes, jnp.arange(len(x)).astype(x.dtype))


@pytest.mark.parametrize("model", [jaxem.GaussianMixture(3), jaxem.HMM(3)])
def test_a_start_of_ones_own(model):
    levels = np.repeat([0.0, 4.0, -3.0], [40, 25, 35])
    x = (levels + np.random.default_rng(1).normal(size=100))[:, None]
    starts = jaxem.fit(model, x, key=KEY, init=ChangePoint(), n_restarts=8, max_steps=0)
    assert len(np.unique(np.asarray(starts.restarts.loglik))) == 8  # every restart draws its own
    result = jaxem.fit(model, x, key=KEY, init=ChangePoint(), n_restarts=8)
    means = np.sort(np.asarray(result.params["components" if "components" in result.params else "emission"]["mean"])[:, 0])
    np.testing.assert_allclose(means, [-3, 0, 4], atol=0.5)


def test_a_strategy_with_a_start_of_its_own_takes_any_model():
    @jaxem.struct
    class Shared(jaxem.Init):
        def initialize(self, model, key, data, weight):
            return {**model.initialize(key, data, weight), "mean": jnp.full((3,), 7.0, weight.dtype)}

    found = jaxem.fit(jaxem.FactorAnalysis(1), X, key=KEY, init=Shared(), max_steps=0, standardize=False).params
    np.testing.assert_allclose(found["mean"], 7)


@jaxem.struct
class Given(jaxem.Init):
    """Whatever it is given."""

    what: object

    def partition(self, key, x, weight, k):
        return self.what


WRONG = {
    "too few labels": (jnp.zeros(7, jnp.int32), ValueError, r"int32 of shape \(7,\)"),
    "labels as floats": (jnp.zeros(30), ValueError, r"float32 of shape \(30,\)"),
    "labels in a column": (jnp.zeros((30, 1), jnp.int32), ValueError, r"int32 of shape \(30, 1\)"),
    "too many components": (jnp.full((30, 3), 1 / 3), ValueError, r"float32 of shape \(30, 3\)"),
    "bools": (jnp.zeros(30, bool), TypeError, "bool"),
    "nothing": (None, TypeError, "NoneType"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_partition_of_another_shape_is_told(name):
    found, error, got = WRONG[name]
    wanted = r"init=Given must give labels, integers of shape \(30,\), or responsibilities, floats of shape \(30, 2\); got "
    weight = np.ones(30, np.float32)
    with pytest.raises(error, match=wanted + got):
        Given(found).initialize(MODELS["Mixture"][0], KEY, X, weight)
    with pytest.raises(error, match=wanted + got):  # where there are only shapes
        jax.eval_shape(lambda init: init.initialize(MODELS["Mixture"][0], KEY, X, weight), Given(found))


def test_a_model_with_initialize_by_must_be_startable():
    class Mine(jaxem.Model):
        def initialize_by(self, strategy, key, data, weight):
            return {}

    with pytest.raises(TypeError, match=r"init=KMeans: Mine defines `initialize_by`; it must inherit jaxem.init.Startable"):
        jaxem.init.KMeans().check_model(Mine())
    with pytest.raises(TypeError, match=r"inherits jaxem.init.Partitioned or Startable"):
        jaxem.init.KMeans().check_model(jaxem.FactorAnalysis(1))


# --- families with a start of their own ------------------------------------------------------
SHIFTED = jaxem.density(lambda p, x: -jnp.square(x[0] - p["mean"]), init={"mean": jnp.array([4.0])})
PARTS = jaxem.FamilyMixture(2, jaxem.Gaussian("diag"))


@pytest.mark.parametrize("key", [None, KEY])
def test_a_single_density_starts_as_its_family_says(key):
    found = jaxem.fit(jaxem.Single(SHIFTED), X, key=key, max_steps=0).params
    np.testing.assert_allclose(found["mean"], 4)


@pytest.mark.parametrize("family", [PARTS, jaxem.density(lambda p, x: -jnp.square(x - p["m"]).sum()[None], init={"m": X[0]})])
def test_what_has_no_axis_of_components_is_no_single_density(family):
    with pytest.raises(ValueError, match=rf"axis of components.* {type(family).__name__}'s .* use jaxem.Mixture\(1, family\)"):
        jaxem.fit(jaxem.Single(family), X, key=KEY)
    assert np.isfinite(jaxem.fit(jaxem.Mixture(1, family), X, key=KEY, max_steps=0).loglik)


def test_what_starts_no_mixture_of_parts_is_told():
    model, weight = jaxem.Mixture(2, PARTS), np.ones(30, np.float32)
    with pytest.raises(
        ValueError, match=r"a start without a key tells nothing of the parts of a FamilyMixture; draw .* by a key"
    ):
        model.initialize(None, X, weight)
    with pytest.raises(
        ValueError, match=r"init=Quantiles tells nothing of the parts of a FamilyMixture; draw a start by a key"
    ):
        jaxem.fit(model, X, key=KEY, init=jaxem.init.Quantiles())
