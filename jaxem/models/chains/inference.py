"""What a fitted chain tells of its states: filter, smoother, paths and forecasts, for every model over `latents.chain`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data.sequences import Sequences, as_sequences, one_sequence
from jaxem.data.validation import is_traced
from jaxem.families.base import Family
from jaxem.latents import chain
from jaxem.model import one_program
from jaxem.numerics.logs import divided, most_probable, safe_log
from jaxem.pytree import PyTree, struct
from jaxem.types import Params


@struct
class Chain:
    """A chain and its local scores.

    Attributes:
        log_initial: (K,).
        log_transition: (K, K), rows the state before.
        scores: (K, B, T) log p(x_t | state), zero where a step is missing.
        valid: (B, T), False beyond a sequence's end.
    """

    log_initial: Array
    log_transition: Array
    scores: Array
    valid: Array

    def astuple(self) -> tuple[Array, Array, Array, Array]:
        """As the functions of `latents.chain` take it."""
        return self.log_initial, self.log_transition, self.scores, self.valid


@struct
class Forecast:
    """What comes after the end of each sequence, h = 1 .. H steps ahead.

    Attributes:
        states: (B, H, K) exact probabilities of the states.
        samples: (S, B, H, ...) observations, each s a joint path drawn from the model.
    """

    states: Array
    samples: PyTree

    @property
    def mean(self) -> PyTree:
        """(B, H, ...) mean observation, to the accuracy of S samples."""
        return jax.tree.map(lambda x: x.mean(0), self.samples)

    @property
    def std(self) -> PyTree:
        """(B, H, ...) standard deviation of an observation."""
        return jax.tree.map(lambda x: x.std(0), self.samples)

    def interval(self, level: float = 0.9) -> tuple[PyTree, PyTree]:
        """Lower and upper ends, (B, H, ...) each, between which an observation falls with probability `level`."""
        tail = (1 - level) / 2
        ends = (jax.tree.map(lambda x, q=q: jnp.quantile(x, q, axis=0), self.samples) for q in (tail, 1 - tail))
        return tuple(ends)  # type: ignore[return-value]


def squeeze(found: PyTree, data: Any, axis: int = 0) -> PyTree:
    """`found` without its axis of sequences where `data` was one sequence as an array."""
    return jax.tree.map(lambda x: x.squeeze(axis), found) if one_sequence(data) else found


class ChainInference:
    """Methods over `chain(params, data)`. One sequence given as an array comes back without the axis B."""

    def chain(self, params: Params, data: PyTree) -> Chain:
        """The chain with its local scores."""
        raise NotImplementedError

    def n_observations(self, data: PyTree) -> Array:
        """(B,) observed steps of each sequence."""
        return as_sequences(data).seen().sum(1)

    def _as_given(self, found: PyTree, data: Any, axis: int = 0) -> PyTree:
        return squeeze(found, data, axis)

    @one_program
    def posterior(self, params: Params, data: PyTree) -> Array:
        """(B, T, K) smoothed probabilities p(z_t | all x), zero in the padding; (T, K) for one sequence as an array."""
        return self._as_given(jnp.moveaxis(chain.posterior(*self.chain(params, data).astuple()), 0, -1), data)

    @one_program
    def filter(self, params: Params, data: PyTree) -> Array:
        """(B, T, K) causal probabilities p(z_t | x up to t), zero in the padding."""
        belief, _ = chain.filtered(*self.chain(params, data).astuple())
        return self._as_given(jnp.moveaxis(belief, 0, -1), data)

    @one_program
    def pairwise(self, params: Params, data: PyTree) -> Array:
        """(B, T - 1, K, K) probabilities p(z_t, z_{t+1} | all x), the state before first."""
        return self._as_given(jnp.moveaxis(chain.pairwise(*self.chain(params, data).astuple()), (0, 1), (2, 3)), data)

    @one_program
    def predict(self, params: Params, data: PyTree) -> Array:
        """(B, T), or (T,), most probable state of each step by itself, -1 in the padding; `viterbi` gives the best path."""
        posterior = self.posterior(params, data)
        return jnp.where(posterior.any(-1), most_probable(posterior), -1)

    @one_program
    def viterbi(self, params: Params, data: PyTree) -> Array:
        """(B, T) int32, the most probable path (Viterbi 1967); -1 in the padding."""
        found = self.chain(params, data)
        return self._as_given(jnp.where(found.valid, chain.viterbi(*found.astuple()), -1), data)

    def sample_posterior(self, key: Array, params: Params, data: PyTree, n_samples: int = 1) -> Array:
        """(n_samples, B, T) paths drawn from p(z | x); -1 in the padding."""
        found = self.chain(params, data)
        paths = chain.sample_posterior(key, *found.astuple(), n_samples)
        return self._as_given(jnp.where(found.valid, paths, -1), data, 1)

    @one_program
    def step_log_prob(self, params: Params, data: PyTree) -> Array:
        """(B, T) log p(x_t | x before t), zero in the padding: how surprising each step was."""
        return self._as_given(chain.filtered(*self.chain(params, data).astuple())[1], data)

    def impossible(self, params: Params, data: PyTree) -> str | None:
        """Where an observation has probability zero in every state that can be reached, in words; None: nowhere."""
        surprise = chain.filtered(*self.chain(params, data).astuple())[1]
        bad = jnp.argwhere(~jnp.isfinite(surprise))
        return (
            f"step {int(bad[0, 1])} of sequence {int(bad[0, 0])} is impossible in every state it can be in"
            if len(bad)
            else None
        )


def expected_durations(params: Params) -> Array:
    """(K,) expected number of steps that a visit to a state lasts, 1 / (1 - transition[k, k])."""
    return 1 / (1 - jnp.diagonal(params["transition"], axis1=-2, axis2=-1))


def last_belief(found: Chain) -> Array:
    """(K, B) belief at each sequence's last step."""
    belief, _ = chain.filtered(*found.astuple())
    last = found.valid.sum(1) - 1
    belief = jnp.take_along_axis(belief, last[None, :, None], 2)[..., 0]
    return divided(belief, belief.sum(0))


def future_inputs(inputs: Any, wanted: tuple[int, int, int], dtype: Any) -> Array:
    """Inputs to come in the shape `wanted`, (B, H, P), as they are or as (H, P) for one sequence; raises for others."""
    if inputs is None and not wanted[2]:
        return jnp.zeros(wanted, dtype)
    if inputs is None or jnp.shape(inputs) not in (wanted, wanted[1:]) or (jnp.ndim(inputs) == 2 and wanted[0] > 1):
        raise ValueError(f"inputs to come must have shape {wanted}; got {None if inputs is None else jnp.shape(inputs)}")
    return jnp.asarray(inputs, dtype).reshape(wanted)


def forecast(
    key: Array, found: Chain, family: Family, params: Params, data: Sequences, shape: tuple[int, int], *, inputs: Any = None
) -> Forecast:
    """What comes after each sequence.

    Args:
        key: random key.
        found: the chain of `data`.
        family: of the emissions.
        params: the family's parameters.
        data: sequences up to now.
        shape: how many paths to draw, S, and how far ahead, H.
        inputs: (B, H, P) or (H, P), inputs to come, for a family that has inputs.
    """
    (n_samples, n_steps), n = shape, found.scores.shape[1]
    width = data.x["inputs"].shape[-1] if isinstance(data.x, dict) and "inputs" in data.x and not family.n_given else 0
    to_come = future_inputs(inputs, (n, n_steps, width), found.scores.dtype)
    like, series = {"inputs": to_come} if width else None, family.series(data)
    belief = last_belief(found)
    gone = family.n_given > 0 and not _all_seen(series, family.n_given)
    last = found.valid.sum(1)[:, None] - 1

    def draw(key: Array) -> PyTree:
        first, path, what, lost = jax.random.split(key, 4)
        if gone:
            states = chain.sample_posterior(first, *found.astuple())[0]
            now = jnp.take_along_axis(states, last, 1)[:, 0]
            given = family.last_given(lost, params, series, states)
        else:
            now = jax.random.categorical(first, safe_log(belief), axis=0).astype(jnp.int32)
            given = family.last_given(lost, params, series, None)

        def step(state: Array, key: Array):
            new = jax.random.categorical(key, found.log_transition[state]).astype(jnp.int32)
            return new, new

        _, states = jax.lax.scan(step, now, jax.random.split(path, n_steps))
        x = family.sample_path(what, params, states.T, given, like)
        return jax.tree.map(lambda leaf: leaf[:, family.n_given :], x)

    states = jnp.moveaxis(chain.forecast(belief, found.log_transition, n_steps), 0, -1)
    return Forecast(states, jax.vmap(draw)(jax.random.split(key, n_samples)))


def _all_seen(data: Sequences, n_steps: int) -> bool:
    """Whether the last `n_steps` steps of every sequence are known to be observed."""
    if data.observed is None:
        return True
    if is_traced(data):
        return False
    last = np.asarray(data.length)[:, None] - 1 - np.arange(n_steps)
    return bool(np.take_along_axis(np.asarray(data.observed), last, 1).all())
