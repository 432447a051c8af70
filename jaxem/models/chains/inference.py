"""What a fitted chain tells of its states: filter, smoother, paths and forecasts, for every model over `latents.chain`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.data.sequences import as_sequences, one_sequence
from jaxem.latents import chain
from jaxem.model import one_program
from jaxem.numerics.logs import divided, most_probable
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
        """(B, T), or (T,), most probable state of each step by itself; `viterbi` gives the most probable path."""
        return most_probable(self.posterior(params, data))

    @one_program
    def viterbi(self, params: Params, data: PyTree) -> Array:
        """(B, T) int32, the most probable path (Viterbi 1967); in the padding the last state goes on."""
        return self._as_given(chain.viterbi(*self.chain(params, data).astuple()), data)

    def sample_posterior(self, key: Array, params: Params, data: PyTree, n_samples: int = 1) -> Array:
        """(n_samples, B, T) paths drawn from p(z | x)."""
        return self._as_given(chain.sample_posterior(key, *self.chain(params, data).astuple(), n_samples), data, 1)

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
