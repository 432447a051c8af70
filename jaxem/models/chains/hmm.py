"""Hidden Markov models over any family; EM is Baum-Welch (Baum, Petrie, Soules and Weiss 1970)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.boundary import values
from jaxem.data.sequences import Sequences, as_sequences, step_weight, with_gaps, with_observed, without_gaps
from jaxem.data.validation import check_positive_int, is_traced, numeric
from jaxem.families.base import Family
from jaxem.families.gaussian import Gaussian
from jaxem.init import Init, KMeansPlusPlus, Labels, Startable
from jaxem.latents import chain, long_chain
from jaxem.latents.forward_backward import absorb
from jaxem.latents.long_chain import default_segment
from jaxem.latents.mixture import label_bias
from jaxem.model import one_program
from jaxem.models.chains.inference import Chain, ChainInference, Forecast, forecast, squeeze
from jaxem.models.chains.transition import Transition
from jaxem.models.family_model import FamilyModel
from jaxem.models.mixture import Mixture
from jaxem.numerics.logs import divided, safe_log
from jaxem.numerics.trees import inner
from jaxem.priors import Dirichlet
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows

INITIAL = ("free", "fixed", "uniform", "stationary")
#: Steps whose local scores are computed together on a CPU, of more than MANY: of fewer, cutting costs more than it saves.
PIECE = 4_096
MANY = 8 * PIECE


def masked(scores: Array, observed: Array | None, labels: Array | None) -> Array:
    """(K, B, T) scores, zero where a step is not observed, -inf where a label excludes a state."""
    if observed is not None:
        scores = jnp.where(observed, scores, 0)
    return (
        scores if labels is None else scores + label_bias(labels.reshape(-1), len(scores), scores.dtype).reshape(scores.shape)
    )


def step_scores(inputs: tuple[Family, PyTree], steps: tuple[PyTree, Array | None, Array | None], hard: bool = False) -> Array:
    """(K, B, T) scores by a family and its natural parameters of steps (B, T, ...), with what is observed and labelled."""
    (family, natural), (x, observed, labels) = inputs, steps
    shape = jax.tree.leaves(x)[0].shape[:2]
    rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), x)
    scores = scores_in_pieces(family.hard_scores if hard else family.scores, natural, rows)
    return masked(scores.reshape(len(scores), *shape), observed, labels)


def scores_in_pieces(score: Callable[[PyTree, PyTree], Array], natural: PyTree, rows: PyTree) -> Array:
    """(K, n) `Family.scores`; many rows on a CPU piece by piece, so that what a family makes of them stays in its cache."""
    n = len(jax.tree.leaves(rows)[0])
    if jax.default_backend() != "cpu" or n <= MANY:
        return score(natural, rows)
    n_pieces = -(-n // PIECE)

    def cut(x: Array) -> Array:
        return jnp.concatenate([x, jnp.repeat(x[:1], n_pieces * PIECE - n, 0)]).reshape(n_pieces, PIECE, *x.shape[1:])

    scores = jax.lax.map(jax.checkpoint(lambda piece: score(natural, piece)), jax.tree.map(cut, rows))
    return jnp.moveaxis(scores, 0, 1).reshape(scores.shape[1], -1)[:, :n]


@struct
class HMM(ChainInference, Startable, FamilyModel):
    """A Markov chain of K states, each step of which emits from the family.

    Parameters: `initial` (K,), unless it is uniform or stationary; `transition` (K, K) with rows the state before;
    and `emission`, the family's parameters. Zeros in `initial` and `transition` stay exactly zero.
    Data: `jaxem.sequences([x1, x2, ...])`, a dict of padded `x` (B, T) or (B, T, D) and `length` (B,), or one
    sequence as an array (T,) or (T, D), as the family takes rows. Steps that are all NaN are missing.
    Labels: (B, T) states, -1 for unknown. Weights: one for each sequence.

    Attributes:
        n_states: K.
        emission: density of a step given its state.
        transition: what is known of the transitions; `left_right`, `banded`, `sticky` make some.
        initial: "free"; "fixed" at its start (`start`, or `init` of the fit); "uniform"; or "stationary", the
            distribution that the transitions leave as it is (no closed M-step: Optax).
        start: (K,) where a fixed initial distribution stands. None: uniform, or state 0 where no way leads back.
        initial_prior: Dirichlet prior on a free initial distribution, or None.
        segment: steps whose scores and beliefs are held at a time in a fit, which then takes about twice as long. None:
            all, and about the root of T for chains of more than 2^24 scores on a CPU.
    """

    n_states: int = static()
    emission: Family = Gaussian()
    transition: Transition = Transition()
    initial: str = static(INITIAL, default="free")
    start: Any = None
    initial_prior: Dirichlet | None = None
    segment: int | None = static(default=None)

    part: ClassVar[str] = "emission"
    family_field: ClassVar[str] = "emission"

    @property
    def exchangeable(self) -> str | None:
        return "n_states" if self.transition.exchangeable and self.initial != "fixed" else None

    @property
    def n_labels(self) -> int:
        """Labels are 0 .. K - 1."""
        return self.n_states

    @property
    def own_constraints(self) -> dict[str, Any]:
        own = {"free": {"initial": sets.Simplex()}, "fixed": {"initial": sets.Fixed()}}.get(self.initial, {})
        return {**own, "transition": self.transition.constraint}

    @property
    def without_closed_form(self) -> dict[str, bool]:
        return {**super().without_closed_form, "transition": self.initial == "stationary"}

    @property
    def m_step_is_maximum(self) -> bool:
        return self.initial != "stationary" and super().m_step_is_maximum

    def initial_probs(self, params: Params) -> Array:
        """(K,) distribution of the first state."""
        if self.initial == "stationary":
            return jnp.maximum(chain.stationary(params["transition"]), 0)
        if self.initial == "uniform":
            return jnp.full((self.n_states,), 1 / self.n_states, params["transition"].dtype)
        return params["initial"]

    def natural(self, params: Params) -> dict[str, Any]:
        """Leaves `log_initial` (K,), `log_transition` (K, K) and `emission`."""
        return {
            "log_initial": safe_log(self.initial_probs(params)),
            "log_transition": safe_log(params["transition"]),
            "emission": self.emission.natural(params["emission"]),
        }

    def density_scores(self, params: Params, data: PyTree) -> Array:
        """(B, T, K) log-densities of an emission without finite statistics."""
        data = self.emission.windows(as_sequences(data, single=False))
        return super().density_scores(params, data.steps()).reshape(*data.shape, self.n_states)

    def floored(self, data: Sequences, weight: Array | None) -> HMM:
        data = self.emission.windows(as_sequences(data, single=False))
        return self._with_floors([data.steps()], step_weight(data, weight))

    def _steps(self, data: Sequences, rows: Rows) -> tuple[PyTree, Any, Any]:
        """What `step_scores` reads: steps, which are observed, and labels."""
        labels = None if rows.labels is None else rows.labels[:, rows.labels.shape[1] - data.shape[1] :]
        return data.filled(), data.observed, labels

    def local_chain(self, natural: PyTree, data: PyTree, rows: Rows) -> Chain:
        """The chain with its local scores, -inf where a label excludes a state, zero where a step is missing."""
        data = self.emission.windows(as_sequences(data, single=False))
        steps = self._steps(data, rows)
        if rows.scores is None:
            scores = step_scores((self.emission, natural["emission"]), steps, rows.hard)
        else:
            scores = masked(jnp.moveaxis(rows.scores, -1, 0), *steps[1:])  # type: ignore[arg-type]
        return Chain(natural["log_initial"], natural["log_transition"], scores, jnp.asarray(data.valid()))

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        data = self.emission.windows(as_sequences(data, single=False))
        valid = jnp.asarray(data.valid())
        if data.observed is not None and rows.labels is None:
            # Missing steps after the last observed one only slow EM down.
            valid = jnp.flip(jnp.cumsum(jnp.flip(valid & data.observed, 1), 1), 1) > 0
        length = self.segment or default_segment(self.n_states, *data.shape)
        if length >= data.shape[1] or rows.scores is not None or rows.hard:
            found = dataclasses.replace(self.local_chain(natural, data, rows), valid=valid)
            return chain.log_partition(*found.astuple(), hard=rows.hard)
        inputs, steps = (self.emission, natural["emission"]), self._steps(data, rows)
        args = natural["log_initial"], natural["log_transition"]
        return long_chain.log_partition(*args, step_scores, inputs, steps, valid=valid, length=length)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Relative counts; the family's closed form where it has one."""
        transition = self.transition.m_step(stats["log_transition"], params["transition"])
        if self.initial == "stationary":
            # Relative counts ignore the first state: a start for Optax, where it is a better one than none.
            def gain(p: Array) -> Array:
                natural = {"log_initial": safe_log(self.initial_probs({"transition": p})), "log_transition": safe_log(p)}
                return inner({name: stats[name] for name in natural}, natural)

            better = gain(transition) >= gain(params["transition"])
            transition = jnp.where(better, transition, params["transition"])
        new = {"transition": transition, "emission": self.family_m_step(stats, params)}
        if self.initial == "free":
            counts = jnp.maximum(stats["log_initial"], 0)
            new["initial"] = jnp.where(counts.sum() > 0, divided(counts, counts.sum()), params["initial"])
        elif self.initial == "fixed":
            new["initial"] = params["initial"]
        return new

    def own_pseudo_stats(self, params: Params) -> dict[str, Array] | None:
        counts = self.transition.pseudo_counts(params["transition"])
        out = {} if counts is None else {"log_transition": counts}
        if self.initial_prior is not None and self.initial == "free":
            out["log_initial"] = self.initial_prior.pseudo_counts(params["initial"])
        return out or None

    # --- the boundary of fit -----------------------------------------------------------------
    def validate(self, data: Any) -> Sequences:
        """`Sequences` of valid values, padding and missing steps included.

        Raises:
            ValueError: for shapes or lengths that do not fit, or steps that the family cannot take.
        """
        check_positive_int(self.n_states, "n_states")
        if self.segment is not None:
            check_positive_int(self.segment, "segment")
        if self.start is not None and (np.shape(self.start) != (self.n_states,) or sets.Simplex().violation(self.start)):
            raise ValueError(f"start must be ({self.n_states},) probabilities that sum to 1; got {self.start}")
        self.transition.check(self.n_states)
        data = as_sequences(data)
        x = jax.tree_util.tree_map_with_path(lambda path, x: numeric(x, f"data x{jax.tree_util.keystr(path)}"), data.x)
        length, shapes = numeric(data.length, "data length"), [leaf.shape for leaf in jax.tree.leaves(x)]
        if any(len(s) not in (2, 3) or s[:2] != shapes[0][:2] or 0 in s[1:] for s in shapes) or length.shape != shapes[0][:1]:
            raise ValueError(
                "data must be x (B, T) or (B, T, D), all its arrays of one B and T, and length (B,);"
                f" got shapes {', '.join(map(str, shapes))} and {length.shape}"
            )
        if length.dtype.kind not in "iu" or ((length < 1) | (length > shapes[0][1])).any():
            raise ValueError(
                f"data length must be integers in 1..{shapes[0][1]}; got {length.dtype}, {length.min()}..{length.max()}"
            )
        if data.observed is not None and np.shape(data.observed) != shapes[0][:2]:
            raise ValueError(f"data observed must have shape {shapes[0][:2]}; got {np.shape(data.observed)}")
        data = with_observed(Sequences(x, length.astype(np.int32), data.observed))
        self.emission.windows(data)  # raises where a sequence is too short to look back
        seen = np.asarray(data.seen())
        steps = self._valid_steps(data, seen)
        # Whatever padding and missing steps hold, it becomes a copy of a step that `steps` holds.
        where = np.where(seen, np.cumsum(seen.reshape(-1)).reshape(seen.shape) - 1, 0)
        return Sequences(jax.tree.map(lambda leaf: leaf[where], steps), data.length, data.observed)

    def check_fit(self, data: Sequences) -> None:
        n_seen = int(np.sum(data.seen()))
        if n_seen < self.n_states:
            raise ValueError(f"data must have at least n_states={self.n_states} steps; got {n_seen}")
        steps = self.emission.windows(data).x  # what is not seen is a copy of what is
        self.emission.check_fit(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps))

    def _valid_steps(self, data: Sequences, seen: np.ndarray) -> PyTree:
        """The observed steps of all sequences as rows that the family takes."""
        try:
            return self.emission.validate(jax.tree.map(lambda leaf: leaf[seen], data.x))
        except ValueError:
            for b, length in enumerate(data.length):  # the first sequence at fault, in which rows are steps
                try:
                    self.emission.validate(jax.tree.map(lambda leaf, b=b, n=length: leaf[b, :n], data.x))
                except ValueError as error:
                    raise ValueError(f"sequence {b}: {error}") from None
            raise

    def template(self, data: PyTree) -> Params:
        """Valid parameters that know nothing, of the right shapes."""
        emission = self.emission.template(self.emission.windows(as_sequences(data)).steps(), self.n_states)
        floats = [x.dtype for x in jax.tree.leaves(emission) if jnp.issubdtype(x.dtype, jnp.floating)]
        like = jnp.zeros((self.n_states, self.n_states), floats[0])
        out = {"transition": self.transition.start(None, like), "emission": emission}
        if self.initial in ("free", "fixed"):
            out["initial"] = self._first(like[0])
        return out

    def _first(self, like: Array) -> Array:
        if self.initial == "fixed":
            if self.start is not None:
                return jnp.asarray(self.start, like.dtype)
            if self.transition.allowed is not None:
                onward = ~jnp.tril(jnp.asarray(self.transition.allowed), -1).any()
                return jnp.where(onward, jnp.eye(self.n_states, dtype=like.dtype)[0], 1 / self.n_states)
        return jnp.full_like(like, 1 / self.n_states)

    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> Any:
        data = as_sequences(data)
        seen = data.seen()
        if xp is np:
            return self.emission.coordinates(jax.tree.map(lambda x: x[seen], data.x), xp)
        steps = seen if present is None else seen & present[:, None]
        return self.emission.coordinates(data.steps(), xp, steps.reshape(-1))

    def log_abs_det(self, data: PyTree, affine: Any) -> Array:
        data = self.emission.windows(as_sequences(data))
        each: Any = self.emission.log_abs_det(data.steps(), affine)
        return (data.seen() * each.reshape(data.shape if np.ndim(each) else ())).sum(1)

    def prepared(self, data: PyTree) -> Any:
        if self.emission.missing is None:
            return self
        return super().prepared(self.emission.windows(as_sequences(data)).steps())

    @property
    def needs_key(self) -> bool:  # type: ignore[override]
        return True

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        return self.initialize_by(KMeansPlusPlus(), key, data, weight)

    def initialize_by(self, strategy: Init, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Emissions of a mixture over all steps; a uniform start, transitions halfway from uniform to random ones."""
        data = self.emission.windows(as_sequences(data, single=False))
        step_weight = (weight[:, None] * data.seen()).reshape(-1)
        which, how = (None, None) if key is None else jax.random.split(key)
        k, like = self.n_states, jnp.zeros((self.n_states, self.n_states), weight.dtype)
        transition = self.transition.start(how, like)
        if isinstance(strategy, Labels):
            labels = jnp.asarray(strategy.labels)
            integers = jnp.issubdtype(labels.dtype, jnp.integer)
            states = (jax.nn.one_hot(labels, k, dtype=like.dtype) if integers else labels).reshape(*data.shape, k)
            linked = weight[:, None] * (data.seen()[:, 1:] & data.seen()[:, :-1])
            counts = jnp.einsum("bti,bt,btj->ij", states[:, :-1], linked, states[:, 1:])
            transition = self.transition.m_step(counts + 1 / k, transition)  # what was not seen need not be impossible
            strategy = Labels(states.reshape(-1, k))
        mixture = Mixture(k, self.emission).initialize_by(strategy, which, data.steps(), step_weight)
        out = {"transition": transition, "emission": mixture["components"]}
        if self.initial in ("free", "fixed"):
            out["initial"] = self._first(like[0])
        return out

    # --- after the fit -----------------------------------------------------------------------
    def chain(self, params: Params, data: PyTree) -> Chain:
        data, model = with_gaps(data), self.exact(params)
        return model.local_chain(model.pack(model.natural(params)), data, self.rows(params, data))

    @one_program
    def log_prob(self, params: Params, data: PyTree) -> Array:
        """(B,) log-likelihood of each sequence."""
        return chain.log_partition(*self.chain(params, data).astuple())

    def update(self, params: Params, belief: Array | None, x: PyTree) -> tuple[Array, Array]:
        """One causal step of the filter, a pure function to be jitted and scanned.

        Args:
            params: parameters.
            belief: (B, K) p(z | x so far); None at the first step.
            x: (B,) or (B, D), the next step of each of B series, windows of an emission that looks back; all NaN where
                it is missing, a window that holds any.

        Returns:
            (B, K) belief that has seen x, and (B,) log p(x | x before).
        """
        if any(np.ndim(leaf) == 0 for leaf in jax.tree.leaves(x, is_leaf=lambda leaf: isinstance(leaf, list))):
            raise ValueError("x must be (B,) or (B, D), the next step of each of B series; got a single number: give [x]")
        model = self.exact(params)
        natural = model.pack(model.natural(params))
        x, gone = without_gaps(x, self.emission.n_given > 0)
        x = x if is_traced(self, x) else values(self.emission, x)
        own = self.emission.log_density
        scores = model.emission.scores(natural["emission"], x) if own is None else own(params["emission"], x).T
        scores = jnp.where(gone, 0, scores)
        if belief is None:
            belief, log_prob = absorb(jnp.exp(natural["log_initial"])[:, None] * jnp.ones_like(scores), scores)
        else:
            belief, log_prob = chain.update(belief.T, natural["log_transition"], scores)
        return belief.T, log_prob

    def forecast(
        self, key: Array, params: Params, data: PyTree, n_steps: int, n_samples: int = 1000, *, inputs: Any = None
    ) -> Forecast:
        """What comes after each sequence: exact state probabilities, and sampled observations for their uncertainty.

        Where an emission looks back on missing steps, these are drawn too, given all that is seen.

        Args:
            key: random key.
            params: parameters.
            data: sequences up to now.
            n_steps: H, how far ahead.
            n_samples: S, paths drawn.
            inputs: (B, H, P), or (H, P) for one sequence as an array: inputs to come, where the emission has inputs.

        Raises:
            ValueError: for inputs that the emission lacks, or of another shape.
        """
        params, past = jax.tree.map(jnp.asarray, params), with_gaps(data)
        found, own = self.chain(params, past), params["emission"]
        ahead = forecast(key, found, self.emission, own, past, (n_samples, n_steps), inputs=inputs)
        return Forecast(squeeze(ahead.states, data), squeeze(ahead.samples, data, 1))

    def n_free_params(self, data: PyTree) -> int:
        k, steps = self.n_states, self.emission.windows(as_sequences(data)).steps()
        own = k - 1 if self.initial == "free" else 0
        return own + self.transition.n_free(k) + self.emission.n_free_params(k, steps)

    @one_program
    def sample(self, key: Array, params: Params, n: int, n_steps: int = 100) -> Sequences:
        """Draw n sequences of `n_steps` steps."""
        return self.sample_states(key, params, n, n_steps)[0]

    def sample_states(self, key: Array, params: Params, n: int, n_steps: int = 100) -> tuple[Sequences, Array]:
        """Draw n sequences of `n_steps` steps, and the (n, T) states that they went through, T = n_steps less those given."""
        check_positive_int(n_steps, "n_steps", self.emission.n_given + 1)
        params, (which, what) = jax.tree.map(jnp.asarray, params), jax.random.split(key)
        initial, transition = safe_log(self.initial_probs(params)), safe_log(params["transition"])
        states = chain.sample(which, initial, transition, n, n_steps - self.emission.n_given)
        x = self.emission.sample_path(what, params["emission"], states)
        return Sequences(x, jnp.full((n,), n_steps, jnp.int32)), states

    def sample_like(self, key: Array, params: Params, data: PyTree) -> Sequences:
        """Sequences of the lengths, missing steps and inputs of those in `data`; what looks back starts from their past.

        NaN, or -1 for codes and counts, stands beyond a sequence's end and where a step is missing.
        """
        data, params = with_gaps(data), jax.tree.map(jnp.asarray, params)
        series, n_given = self.emission.series(data), self.emission.n_given
        (n, n_steps), (which, what) = series.shape, jax.random.split(key)
        initial, transition = safe_log(self.initial_probs(params)), safe_log(params["transition"])
        states = chain.sample(which, initial, transition, n, n_steps - n_given)
        given, like = (jnp.asarray(series.filled())[:, :n_given], None) if n_given else (None, data.x)
        x = self.emission.sample_path(what, params["emission"], states, given, like)
        drawn = Sequences(x, jnp.asarray(series.length), series.observed)
        if series is not data:
            drawn = dataclasses.replace(self.emission.windows(drawn), observed=data.observed)
        return drawn.blanked(self.emission.absent)
