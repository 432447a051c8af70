"""Every public method of every model checks its data; what is impossible is said."""

import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.data import boundary

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
ROWS = RNG.normal(size=(6, 2))
CODES = RNG.integers(3, size=(6, 2))
CODED = jaxem.Mixture(2, jaxem.Categorical(3))
CHAIN = jaxem.HMM(2, jaxem.Categorical(3))
HOLES = np.where(np.arange(12).reshape(6, 2) == 5, np.nan, ROWS)
TREE = (3, 3, 3, -1)
RULES = jaxem.Grammar(2, 3)


def joint(params, x):
    return params["log_share"] - (x - params["mean"]) ** 2 / 2


def natural(params):
    return {"mean": params["mean"]}


def marginal(natural, data):
    return -((data - natural["mean"]) ** 2) / 2


USER = {"log_share": np.log([0.4, 0.6]), "mean": np.array([0.0, 1.0])}
#: Of every model: itself, a few valid data, and methods to try.
MODELS = {
    "Mixture": (jaxem.GaussianMixture(2), ROWS, ("posterior", "predict", "log_prob")),
    "codes": (CODED, CODES, ("predict",)),
    "counts": (jaxem.Mixture(2, jaxem.Poisson()), CODES[:, 0], ("predict",)),
    "Single": (jaxem.MultivariateNormal(), HOLES, ("impute", "log_prob")),
    "HMM": (CHAIN, jaxem.sequences([CODES[:4, 0], CODES[:3, 1]]), ("posterior", "viterbi", "filter", "log_prob")),
    "MarkovAutoregression": (jaxem.MarkovAutoregression(2, 1), jaxem.sequences([ROWS[:, 0]]), ("posterior", "viterbi")),
    "WrightFisher": (jaxem.WrightFisher(50, 5), {"count": CODES, "total": CODES + 1}, ("posterior",)),
    "StateSpace": (jaxem.LocalLevel(), jaxem.sequences([ROWS[:, 0], ROWS[:4, 1]]), ("posterior", "predict", "log_prob")),
    "LDA": (jaxem.LDA(2), CODES, ("posterior", "log_prob")),
    "PLSA": (jaxem.PLSA(2), CODES, ("posterior", "log_prob")),
    "FactorAnalysis": (jaxem.FactorAnalysis(1), HOLES, ("posterior", "impute")),
    "ItemResponse": (jaxem.ItemResponse(5), CODES > 0, ("posterior",)),
    "Proportions": (jaxem.Proportions(), ROWS, ("predict",)),
    "Ancestry": (jaxem.Ancestry(2), CODES, ("posterior", "predict")),
    "Motif": (jaxem.Motif(2), jaxem.dna(["ACGT", "GGTT", "TTTA"]), ("predict", "sites")),
    "Substitution": (jaxem.Substitution(TREE), CODES[:, [0, 1, 1]], ("posterior", "predict")),
    "Grammar": (RULES, jaxem.sequences([CODES[:3, 0], CODES[:2, 1]]), ("predict",)),
    "Superposition": (jaxem.Superposition(), {"y": CODES[:, 0], "row": CODES + 1.0}, ("mean", "log_prob")),
    "CensoredRegression": (jaxem.CensoredRegression(), {"lower": ROWS[:, 0], "upper": ROWS[:, 0] + 1}, ("posterior",)),
    "RandomIntercept": (jaxem.RandomIntercept(), HOLES, ("posterior",)),
    "LogJoint": (jaxem.log_joint(joint, init=USER), ROWS[:, 0], ("predict",)),
    "LogMarginal": (jaxem.log_marginal(natural=natural, log_marginal=marginal, init={"mean": 0.0}), ROWS[:, 0], ("log_prob",)),
}


def classes(of=jaxem.Model):
    """All models of the library."""
    for cls in of.__subclasses__():
        yield from classes(cls)
        if cls.__module__.startswith("jaxem."):
            yield cls


def params_of(model, data):
    return jax.tree.map(np.array, model.template(model.validate(data)))


def cut(data, n):
    return jax.tree.map(lambda x: x[:n], data)


def test_every_model_is_tried():
    tried = {type(model) for model, *_ in MODELS.values()}
    assert tried == {cls for cls in classes() if "__dataclass_fields__" in vars(cls)}


@pytest.mark.parametrize("cls", sorted({*classes()}, key=lambda cls: cls.__qualname__), ids=lambda cls: cls.__qualname__)
def test_no_method_that_takes_data_is_forgotten(cls):
    for name in dir(cls):
        method = inspect.getattr_static(cls, name)
        if isinstance(method, types.FunctionType) and not name.startswith("_") and name not in boundary.HOOKS:
            if {"params", "data"} <= inspect.signature(method).parameters.keys() or name == "n_free_params":
                assert boundary.is_bounded(method), name


def test_a_method_of_a_users_own_is_checked_too(x64):
    @jaxem.struct
    class Own(jaxem.Mixture):
        def entropy(self, params, data):
            p = self.posterior(params, data)
            return -(p * jnp.log(p)).sum(1)

    model = Own(2, jaxem.Gaussian())
    assert model.entropy(params_of(model, ROWS), ROWS.tolist()).shape == (6,)
    with pytest.raises(ValueError, match=r"finite; NaN or inf in 1 row\(s\): 2"):
        model.entropy(params_of(model, ROWS), HOLES)


# --- what is taken -------------------------------------------------------------------------------
@pytest.mark.parametrize("case", MODELS)
def test_lists_one_row_and_no_rows(case, x64):
    """Converted as arrays are, and every method takes one row and none, by shapes."""
    model, data, methods = MODELS[case]
    params = params_of(model, data)
    given = data.x[0] if isinstance(data, jaxem.Sequences) else data
    taken = [boundary.accepted(model, params, x) for x in (given, jax.tree.map(lambda x: np.asarray(x).tolist(), given))]
    jax.tree.map(np.testing.assert_array_equal, *taken)
    for n in (1, 0):
        few = boundary.accepted(model, params, cut(data, n))
        for name in methods:
            found = jax.eval_shape(getattr(model, name), params, few)
            assert all(x.shape[0] == n for x in jax.tree.leaves(found)), name


def test_one_step_and_one_row_have_answers(x64):
    params = params_of(CHAIN, CODES[:, 0])
    np.testing.assert_allclose(CHAIN.posterior(params, [2]), [[0.5, 0.5]])
    series, level = jaxem.LocalLevel(None), {"observation_noise": np.ones(1), "state_noise": np.ones(1)}
    level |= {"transition": np.eye(1), "observation": np.eye(1)}
    np.testing.assert_allclose(series.posterior(level, [3.0]).mean, [[3.0]])
    np.testing.assert_array_equal(CODED.predict(params_of(CODED, CODES), CODES[:1].tolist()), [0])
    assert CODED.predict(params_of(CODED, CODES), CODES[:0]).shape == (0,)


def test_frames_and_sparse_counts(x64):
    pandas, sparse = pytest.importorskip("pandas"), pytest.importorskip("scipy.sparse")
    params = params_of(CODED, CODES)
    np.testing.assert_array_equal(CODED.log_prob(params, pandas.DataFrame(CODES)), CODED.log_prob(params, CODES))
    model = jaxem.LDA(2)
    topics = {"topics": RNG.dirichlet(np.ones(2), 2), "alpha": np.ones(2)}
    found = model.posterior(topics, sparse.csr_matrix(CODES))
    np.testing.assert_allclose(found, model.posterior(topics, CODES), atol=1e-12)


# --- what is refused -----------------------------------------------------------------------------
SEQUENCE = jaxem.HMM(2, jaxem.Gaussian())
ONE = {"count": np.array([1, 2]), "total": np.array([2, 1])}
REFUSED = {
    "one column of two": (jaxem.GaussianMixture(2), ROWS, ROWS[:, :1], "has shape .2, 2, 2., data call for .2, 1, 1., 2 columns; got 1"),
    "a row as two": (jaxem.GaussianMixture(2), ROWS, ROWS[0], r"must have shape \(N, D\).*for one row x\[None\]"),
    "NaN": (jaxem.GaussianMixture(2), ROWS, HOLES, r"finite; NaN or inf in 1 row\(s\): 2"),
    "an unseen category": (CODED, CODES, CODES + 1, "codes 0..2; got 3 in row"),
    "half a code": (CODED, CODES, CODES + 0.5, r"codes 0..2; got .\.5 in row 0"),
    "another 1": (jaxem.Mixture(2, jaxem.Bernoulli()), CODES > 0, CODES * 5, "0 or 1; got "),
    "a gamma zero": (jaxem.Mixture(2, jaxem.Gamma()), CODES + 1.0, CODES + 0.0, "positive; got 0.0 in row"),
    "a chain of one column": (SEQUENCE, ROWS, ROWS[:, :1], "2 columns; got 1"),
    "unknown symbols": (CHAIN, CODES[:, 0], CODES[:, 0] + 1, "sequence 0: data must be codes 0..2"),
    "words beyond": (jaxem.LDA(2), CODES, jaxem.documents([[0, 5]]), "V=2 words; got 6"),
    "counts of fewer words": (jaxem.PLSA(2), CODES, CODES[:, :1], "V=2 words; got 1"),
    "columns of factors": (jaxem.FactorAnalysis(1), ROWS, np.ones((2, 3)), "2 columns; got 3"),
    "other items": (jaxem.ItemResponse(5), CODES > 0, np.ones((2, 3)), "2 columns; got 3"),
    "other people": (jaxem.Ancestry(2), CODES, np.ones((2, 3)), "2 columns; got 3"),
    "too many genes": (jaxem.WrightFisher(50, 5), {"count": CODES, "total": CODES}, ONE, "at most data..total"),
    "other taxa": (jaxem.Substitution(TREE), CODES[:, [0, 1, 1]], CODES, "a column for each leaf"),
    "symbols beyond": (RULES, jaxem.sequences([CODES[:, 0]]), [0, 3], "codes 0..2"),
    "another operator": (jaxem.Superposition(), {"y": CODES[:, 0], "row": CODES}, {"y": [1], "row": [[1, 2, 3]]}, "2 columns; got 3"),
    "a series of two": (jaxem.LocalLevel(), ROWS[:, 0], ROWS, "must have shape .2, 1.; got .1, 1."),
    "other inputs": (jaxem.CensoredRegression(), {"lower": ROWS[:, 0], "upper": ROWS[:, 0]},
                     {"lower": [1.0], "upper": [1.0], "inputs": [[1.0]]}, "1 columns; got 2"),
    "other parts": (jaxem.Proportions(), ROWS, np.ones((2, 3)), "2 columns; got 3"),
    "words for numbers": (jaxem.log_joint(joint, init=USER), ROWS[:, 0], ["a", "b"], "must be numeric"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_model_cannot_read_is_refused(what, x64):
    model, fitted, data, message = REFUSED[what]
    params = params_of(model, fitted)
    for method in {"log_prob", "posterior", "predict"} & set(dir(model)):
        if getattr(model, method) is not None:
            with pytest.raises((ValueError, TypeError), match=message):
                getattr(model, method)(params, data)


def test_a_step_of_the_filter_is_checked(x64):
    params = params_of(CHAIN, CODES[:, 0])
    with pytest.raises(ValueError, match=r"codes 0\.\.2; got 3 in row 1"):
        CHAIN.update(params, None, [0, 3])
    assert CHAIN.update(params, None, [0, 2])[0].shape == (2, 2)


def test_shapes_are_checked_inside_jit(x64):
    for model, fitted, data in ((jaxem.GaussianMixture(2), ROWS, ROWS[:, :1]), (SEQUENCE, ROWS, ROWS[:, :1])):
        with pytest.raises(ValueError, match="2 columns; got 1"):
            jax.eval_shape(model.log_prob, params_of(model, fitted), data)


def test_arrays_on_an_accelerator_are_checked_where_they_lie(x64, monkeypatch):
    monkeypatch.setattr(boundary, "on_host", lambda x: False)
    held = jnp.asarray(ROWS)
    assert boundary._where_they_lie(jaxem.GaussianMixture(2), held) is held
    assert boundary._where_they_lie(CODED, jnp.asarray(CODES)).dtype == jnp.int32
    for model, data in ((CODED, CODES + 0.5), (CODED, CODES + 1), (jaxem.GaussianMixture(2), HOLES)):
        assert boundary._where_they_lie(model, jnp.asarray(data)) is None


def test_arrays_that_are_valid_are_not_copied(x64):
    held = jnp.asarray(ROWS)
    assert boundary.values(jaxem.GaussianMixture(2), held) is held


def test_a_new_number_of_rows_compiles_one_program(x64):
    model = jaxem.GaussianMixture(2)
    params = params_of(model, ROWS)
    model.predict(params, ROWS[:2])
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        programs = []
        patch.setattr("jax._src.interpreters.pxla.logger.log", lambda level, text, name, *_: programs.append(name))
        model.predict(params, ROWS[:3])
        model.predict(params, ROWS[:3] + 1)
    assert len(programs) <= 1


# --- what is impossible --------------------------------------------------------------------------
NEVER = np.array([0.0, 0.5, 0.5])


def with_zero(model, data, *path):
    """Valid parameters in which code 0 never occurs."""
    params = params_of(model, data)
    leaf = params
    for name in path:
        leaf = leaf[name]
    leaf[:] = NEVER
    return params


def level_known():
    """A level that starts at 0, stays, and is seen without noise: one other than 0 is impossible."""
    zero = np.zeros((1, 1))
    params = {"transition": np.eye(1), "observation": np.eye(1), "state_noise": zero[0], "observation_noise": zero[0]}
    return params | {"initial_mean": zero[0], "initial_covariance": zero}


def joined(params, x):
    return jnp.where(x > 0, params["log_share"], -jnp.inf)


WORDS = {"topics": np.array([[0.0, 1.0], [0.0, 1.0]])}
PAIR = jaxem.sequences([np.array([1, 2, 1]), np.array([1, 0])])
IMPOSSIBLE = {
    "mixture": (CODED, with_zero(CODED, CODES, "components", "probs"), np.array([[1, 2], [0, 1]]), "predict"),
    "chain": (CHAIN, with_zero(CHAIN, CODES[:, 0], "emission", "probs"), PAIR, "predict"),
    "path": (CHAIN, with_zero(CHAIN, CODES[:, 0], "emission", "probs"), PAIR, "viterbi"),
    "parts": (jaxem.Proportions(), {"shares": np.array([0.0, 1.0])}, None, "predict"),
    "topics": (jaxem.PLSA(2), WORDS, np.array([[0, 1], [1, 1]]), "posterior"),
    "dirichlet topics": (jaxem.LDA(2), WORDS | {"alpha": np.ones(2)}, np.array([[0, 1], [1, 1]]), "posterior"),
    "tree": (jaxem.Substitution(TREE), {"lengths": np.zeros(3)}, np.array([[1, 1, 1], [1, 2, 1]]), "predict"),
    "grammar": (RULES, None, jaxem.sequences([np.array([1, 2]), np.array([0])]), "spans"),
    "states": (jaxem.LocalLevel(initial_variance=1e7), level_known(), jaxem.sequences([np.zeros(3), np.ones(2)]), "posterior"),
    "function": (jaxem.log_joint(joined, init=USER), USER, np.array([1.0, -1.0]), "predict"),
    "too far": (jaxem.GaussianMixture(2), None, np.array([[1.0, 1.0], [1e200, 1.0]]), "predict"),
}  # fmt: skip


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_is_impossible_is_named(what, x64):
    """By its row outside jit; inside NaN, or -1; other rows have their answers, and the log-density is -inf."""
    model, params, data, method = IMPOSSIBLE[what]
    if what == "parts":
        pairs = {"parts": np.array([[[1]], [[0]]]), "log_weight": np.zeros((2, 1))}
        model, data = jaxem.Proportions(2), pairs
    if what == "grammar":
        rules = np.zeros((2, 7))
        rules[:, 0], rules[:, 5:] = 0.2, 0.4
        params = {"rules": rules}
    params = params_of(model, data) if params is None else params
    with pytest.raises(ValueError, match=r"possible under params; got a log-density of -inf in row\(s\) 1"):
        getattr(model, method)(params, data)
    answers = jax.jit(getattr(model, method))(params, data)
    for found in map(np.asarray, jax.tree.leaves(answers)):
        lost = found < 0 if found.dtype.kind == "i" else np.isnan(found)
        assert lost[1].any() and not lost[0].any()
        assert (
            not (isinstance(data, jaxem.Sequences) and method in ("predict", "posterior") and lost[1, 2:].any())
            or method != "x"
        )
    np.testing.assert_array_equal(np.isfinite(model.log_prob(params, data)), [True, False])


def test_the_step_is_named_and_padding_is_no_step(x64):
    params = with_zero(CHAIN, CODES[:, 0], "emission", "probs")
    with pytest.raises(ValueError, match="step 1 of sequence 1 is impossible"):
        CHAIN.posterior(params, PAIR)
    found = np.asarray(jax.jit(CHAIN.posterior)(params, PAIR))
    np.testing.assert_array_equal(found[1, 2], 0)
    assert np.isnan(found[1, :2]).all() and np.isfinite(found[0]).all()
    causal = np.asarray(CHAIN.filter(params, PAIR))
    np.testing.assert_array_equal(np.isnan(causal).any(-1), [[False] * 3, [False, True, False]])


def test_what_is_merely_far_has_an_answer(dtype):
    params = params_of(jaxem.GaussianMixture(2), ROWS.astype(dtype))
    params["components"]["mean"][:] = [[-1.0, 0.0], [1.0, 0.0]]
    far = np.array([[-1e5, 0.0], [1e5, 0.0]], dtype)
    np.testing.assert_array_equal(jaxem.GaussianMixture(2).predict(params, far), [0, 1])
    chain = jaxem.HMM(2, jaxem.Gaussian())
    states = params_of(chain, ROWS.astype(dtype))
    states["emission"]["mean"][:] = params["components"]["mean"]
    np.testing.assert_array_equal(chain.predict(states, far), [0, 1])
    np.testing.assert_array_equal(chain.viterbi(states, far), [0, 1])
