"""Hidden Markov models over any family; EM is Baum-Welch (Baum, Petrie, Soules and Weiss 1970)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.families.base import Family
from jaxem.families.gaussian import Gaussian
from jaxem.init import KMeansPlusPlus
from jaxem.latents import chain
from jaxem.latents.mixture import label_bias
from jaxem.models.family_model import FamilyModel
from jaxem.models.mixture import Mixture
from jaxem.numerics import safe_log
from jaxem.sequences import Sequences, as_sequences
from jaxem.types import Params, Rows, static, struct
from jaxem.validation import check_positive_int, numeric

PyTree = Any


@struct
class HMM(FamilyModel):
    """A Markov chain of K states, each step of which emits from the family.

    Parameters: `initial` (K,), `transition` (K, K) with rows the state before, and `emission`, the family's
    parameters. Zeros in `initial` and `transition` stay zero.
    Data: `jaxem.sequences([x1, x2, ...])`, a dict of padded `x` (B, T) or (B, T, D) and `length` (B,), or one
    sequence as an array (T,) or (T, D), as the family takes rows. Labels: (B, T) states, -1 for unknown.

    Attributes:
        n_states: K.
        emission: density of a step given its state.
    """

    n_states: int = static()
    emission: Family = Gaussian()

    part: ClassVar[str] = "emission"
    family_field: ClassVar[str] = "emission"
    exchangeable: ClassVar[str] = "n_states"
    latent_constraints: ClassVar[dict[str, Any]] = {"initial": sets.Simplex(), "transition": sets.Simplex()}

    def natural(self, params: Params) -> dict[str, Any]:
        """Leaves `log_initial` (K,), `log_transition` (K, K) and `emission`."""
        return {
            "log_initial": safe_log(params["initial"]),
            "log_transition": safe_log(params["transition"]),
            "emission": self.emission.natural(params["emission"]),
        }

    def local_scores(self, natural: PyTree, data: PyTree, rows: Rows) -> tuple[Array, Array]:
        """(K, n, T) log p(x_t | state), -inf where a label excludes the state; and (n, T) which steps are valid."""
        data = as_sequences(data, single=False)
        scores = self.emission.scores(natural["emission"], data.steps())
        if rows.labels is not None:
            scores = scores + label_bias(rows.labels.reshape(-1), self.n_states, scores.dtype)
        return scores.reshape(self.n_states, *data.x.shape[:2]), data.valid()

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        scores, valid = self.local_scores(natural, data, rows)
        return chain.log_partition(natural["log_initial"], natural["log_transition"], scores, valid)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Relative counts; the family's closed form where it has one."""
        initial = _relative(stats["log_initial"], params["initial"])
        transition = _relative(stats["log_transition"], params["transition"])
        return {"initial": initial, "transition": transition, "emission": self.family_m_step(stats, params)}

    # --- the boundary of fit -----------------------------------------------------------------
    def validate(self, data: Any) -> Sequences:
        """`Sequences` of valid values, padding included.

        Raises:
            ValueError: for shapes or lengths that do not fit, or steps that the family cannot take.
        """
        check_positive_int(self.n_states, "n_states")
        data = as_sequences(data)
        x, length = numeric(data.x, "data x"), numeric(data.length, "data length")
        if x.ndim not in (2, 3) or length.shape != x.shape[:1] or not x.size:
            raise ValueError(f"data must be x (B, T) or (B, T, D) and length (B,); got shapes {x.shape} and {length.shape}")
        if length.dtype.kind not in "iu" or length.min() < 1 or length.max() > x.shape[1]:
            raise ValueError(
                f"data length must be integers in 1..{x.shape[1]}; got {length.dtype}, {length.min()}..{length.max()}"
            )
        valid = np.arange(x.shape[1]) < length[:, None]
        steps = self.emission.validate(x[valid])
        if len(steps) < self.n_states:
            raise ValueError(f"data must have at least n_states={self.n_states} steps; got {len(steps)}")
        # Whatever the padding holds, it becomes a copy of the step that `steps` holds for the sequence's start.
        where = np.cumsum(valid.reshape(-1)).reshape(valid.shape) - 1
        return Sequences(steps[np.where(valid, where, where[:, :1])], length.astype(np.int32))

    def blank(self, data: PyTree) -> Params:
        """Valid parameters that know nothing, of the right shapes."""
        k, emission = self.n_states, self.emission.blank(as_sequences(data).steps(), self.n_states)
        uniform = jnp.full((k,), 1 / k, jax.tree.leaves(emission)[0].dtype)
        return {"initial": uniform, "transition": jnp.broadcast_to(uniform, (k, k)), "emission": emission}

    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> Any:
        data = as_sequences(data)
        valid = data.valid()
        if xp is np:
            return self.emission.coordinates(data.x[valid], xp)
        steps = valid if present is None else valid & present[:, None]
        return self.emission.coordinates(data.steps(), xp, steps.reshape(-1))

    def change_data(self, data: PyTree, affine: Any) -> Sequences:
        data = as_sequences(data)
        steps = data.x.reshape(-1, *data.x.shape[2:])
        return Sequences(affine.data(steps).reshape(data.x.shape), data.length)

    def log_volume(self, data: PyTree, affine: Any) -> Array:
        return affine.log_volume() * as_sequences(data).length

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        return self.initialize_by(KMeansPlusPlus(), key, data, weight)

    def initialize_by(self, strategy: Any, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Emissions of a mixture over all steps; a uniform start, transitions halfway from uniform to random ones."""
        data = as_sequences(data, single=False)
        step_weight = (weight[:, None] * data.valid()).reshape(-1)
        which, how = (None, None) if key is None else jax.random.split(key)
        mixture = strategy.initialize(Mixture(self.n_states, self.emission), which, data.steps(), step_weight)
        blank = self.blank(data)
        uniform = transition = blank["transition"]
        if how is not None:
            # Normalised exponentials are uniform on the simplex; a gamma sampler takes seconds to compile.
            draws = jax.random.exponential(how, uniform.shape, uniform.dtype)
            transition = (uniform + draws / draws.sum(-1, keepdims=True)) / 2
        return {"initial": blank["initial"], "transition": transition, "emission": mixture["components"]}

    # --- after the fit -----------------------------------------------------------------------
    def log_prob(self, params: Params, data: PyTree) -> Array:
        """(B,) log-likelihood of each sequence."""
        return super().log_prob(params, as_sequences(data))

    def posterior(self, params: Params, data: PyTree) -> Array:
        """(B, T, K) smoothed probabilities of the states, zero in the padding; (T, K) for one sequence as an array."""
        single = not isinstance(data, dict | Sequences)
        model = self.at(params).forms(params)[1][-1]
        natural = model.pack(model.natural(params))
        scores, valid = model.local_scores(natural, as_sequences(data), Rows())
        probs = jnp.moveaxis(chain.posterior(natural["log_initial"], natural["log_transition"], scores, valid), 0, -1)
        return probs[0] if single else probs

    def predict(self, params: Params, data: PyTree) -> Array:
        """(B, T), or (T,), most probable state of each step by itself."""
        return self.posterior(params, data).argmax(-1)

    def n_free_params(self, data: PyTree) -> int:
        k = self.n_states
        return k - 1 + k * (k - 1) + self.emission.n_free_params(k, as_sequences(data).steps())

    def sample(self, key: Array, params: Params, n: int, n_steps: int = 100) -> Sequences:
        """Draw n sequences of `n_steps` steps."""
        which, what = jax.random.split(key)
        states = chain.sample(which, safe_log(params["initial"]), safe_log(params["transition"]), n, n_steps)
        x = self.emission.sample(what, params["emission"], states.reshape(-1))
        return Sequences(x.reshape(n, n_steps, *x.shape[1:]), jnp.full((n,), n_steps, jnp.int32))

    def sample_like(self, key: Array, params: Params, data: PyTree) -> Sequences:
        """Sequences of the lengths of those in `data`."""
        data = as_sequences(data)
        return Sequences(self.sample(key, params, *data.x.shape[:2]).x, jnp.asarray(data.length))


def _relative(counts: Array, before: Array) -> Array:
    """Counts over their sum along the last axis; what was before where there are none."""
    counts = jnp.maximum(counts, 0)
    total = counts.sum(-1, keepdims=True)
    return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), before)
