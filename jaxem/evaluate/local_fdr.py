"""Which of many tests found something: the two-groups model of local false-discovery rates (Efron 2004)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data.validation import check_finite, floating, numeric
from jaxem.families.gaussian import Gaussian
from jaxem.fitting.fit import fit
from jaxem.init import Labels
from jaxem.models.mixture import Mixture
from jaxem.priors import Dirichlet, NormalInverseWishart
from jaxem.pytree import struct
from jaxem.types import Params, Result

#: Spreads from the median beyond which a score is taken as if there, and what the prior on a variance counts for.
REACH, PSEUDO_SCORES = 5.0, 4.0


@struct
class TwoGroups:
    """z-scores as a mixture of an empirical null and of effects on either side of it.

    Attributes:
        result: the fit of three normal components: effects below, the null, effects above.
        reach: (2,) least and greatest score that the fit saw; those beyond count as there. None: all were seen.
    """

    result: Result
    reach: Array | None = None

    @property
    def null(self) -> Params:
        """`share`, `mean` and `std` of the null distribution, estimated rather than assumed to be N(0, 1)."""
        params = self.result.params
        return {
            "share": params["weights"][1],
            "mean": params["components"]["mean"][1, 0],
            "std": jnp.sqrt(params["components"]["covariance"][1, 0, 0]),
        }

    def local_fdr(self, z: Any) -> Array:
        """(N,) probability that a test with score z is null: its local false-discovery rate."""
        z = jnp.asarray(z) if self.reach is None else jnp.clip(jnp.asarray(z), *self.reach)
        return self.result.model.posterior(self.result.params, z[:, None])[:, 1]

    def discoveries(self, z: Any, rate: float = 0.1) -> Array:
        """(N,) bools: the largest set of tests, by local fdr, of which at most `rate` are expected to be null.

        Raises:
            ValueError: for a rate outside (0, 1).
        """
        if not 0 < rate < 1:
            raise ValueError(f"rate must lie between 0 and 1; got {rate}")
        local = self.local_fdr(z)
        order = jnp.argsort(local)
        mean = jnp.cumsum(local[order]) / jnp.arange(1, len(local) + 1)
        return jnp.zeros(len(local), bool).at[order].set(mean <= rate)


def two_groups(z: Any, **options: Any) -> TwoGroups:
    """Fit the two-groups model to z-scores.

    Starts from scores more than twice the robust spread away from their median, so that the middle component is the
    null; it stays so where most tests are null, as the model supposes. A Dirichlet prior of (1, 10, 1) on the weights
    sees to it that effects are found only where the scores ask for them (after Stephens 2017). As noise spreads the
    scores of effects too, the variance of each component is drawn towards that of the robust spread, by as much as
    `PSEUDO_SCORES` scores would. Scores farther than `REACH` spreads from the median are found whatever the fit says, and
    are taken as if there: a normal component that reached for them would leave nearer ones to the null.

    Args:
        z: (N,) scores, about N(0, 1) where nothing is to be found.
        **options: for `jaxem.fit`.

    Raises:
        ValueError: for a wrong shape, fewer than 100 scores, scores of which most are equal, or what is not finite.
    """
    array = floating(numeric(z, "z"), "z")
    if array.ndim != 1 or len(array) < 100:
        raise ValueError(f"z must be (N,) scores of at least 100 tests: a null distribution is to be found; got {array.shape}")
    check_finite(array, "z")
    middle = np.median(array)
    spread = 1.4826 * np.median(np.abs(array - middle))
    if not spread > 0:
        raise ValueError(f"z must differ: more than half of the {len(array)} scores are {middle}")
    away = (array - middle) / spread
    edge = min(2.0, float(np.sort(np.abs(away))[-20]))  # at least a few scores for the outer components
    share = np.stack([away < -edge, np.abs(away) <= edge, away > edge], 1) + 0.01
    start = Labels((share / share.sum(1, keepdims=True)).astype(array.dtype))
    scale = jnp.asarray(np.full((1, 1), PSEUDO_SCORES * spread**2, array.dtype))
    prior = NormalInverseWishart(
        jnp.full(1, middle, array.dtype), 0.0, PSEUDO_SCORES - 3.0, scale
    )  # its mode: scale / (df + 3)
    model = Mixture(3, Gaussian(prior=prior), prior=Dirichlet(jnp.asarray([1, 10, 1], array.dtype)))
    reach = np.asarray([middle - REACH * spread, middle + REACH * spread], array.dtype)
    return TwoGroups(fit(model, np.clip(array, *reach)[:, None], init=start, **options), jnp.asarray(reach))
