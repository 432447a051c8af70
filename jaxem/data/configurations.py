"""What could have made a datum, as the arrays that `jaxem.Proportions` reads.

Each function returns a dict of `parts` (N, L, P), the parts that each configuration uses, -1 where a datum has fewer
than L, and `log_weight` (N, L); some return what the parts stand for as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxem.data.validation import numeric

Configurations = dict[str, np.ndarray]


def configurations(choices: Sequence[Sequence[Any]], log_weight: Sequence[Sequence[float]] | None = None) -> Configurations:
    """Arrays from lists of configurations.

    Args:
        choices: for each datum its configurations, each a part or a tuple of parts in 0..K-1.
        log_weight: for each datum the log-weight of each configuration; None: all zero.

    Raises:
        ValueError: for no datum, one without configurations, or weights that do not fit.
    """
    if not len(choices):
        raise ValueError("choices must hold at least one datum; got none")
    longest = max(len(own) for own in choices)
    n_parts = len(np.atleast_1d(choices[0][0])) if len(choices[0]) else 1
    parts = np.full((len(choices), longest, n_parts), -1, np.int32)
    weight = np.zeros((len(choices), longest), jnp.result_type(float))  # what JAX computes in
    for n, own in enumerate(choices):
        if not len(own):
            raise ValueError(f"choices must give every datum a configuration; datum {n} has none")
        parts[n, : len(own)] = np.reshape(own, (len(own), n_parts))
        if log_weight is not None:
            if len(log_weight[n]) != len(own):
                raise ValueError(f"log_weight of datum {n} must have {len(own)} entries; got {len(log_weight[n])}")
            weight[n, : len(own)] = log_weight[n]
    return {"parts": parts, "log_weight": weight}


def equivalence_classes(classes: Sequence[Sequence[int]], lengths: Any) -> Configurations:
    """Classes of reads by the transcripts that they fit (Nicolae et al. 2011); how many reads a class has is its weight.

    Args:
        classes: for each class the transcripts, 0..K-1.
        lengths: (K,) effective lengths of the transcripts, in bases: a read starts at each place equally often.

    Raises:
        ValueError: for lengths that are not positive or transcripts without one.
    """
    lengths = numeric(lengths, "lengths")
    if lengths.ndim != 1 or not (lengths > 0).all():
        raise ValueError(f"lengths must be (K,) positive numbers; got shape {lengths.shape}, minimum {lengths.min(initial=0)}")
    for n, own in enumerate(classes):
        if len(own) and (min(own) < 0 or max(own) >= len(lengths)):
            raise ValueError(f"classes must hold transcripts in 0..{len(lengths) - 1}; got {list(own)} in class {n}")
    return configurations(classes, [-np.log(lengths[list(own)]) for own in classes])


def genotypes(phenotypes: Mapping[Hashable, Sequence[Sequence[Hashable]]]) -> tuple[Configurations, list[Hashable]]:
    """Phenotypes and the pairs of alleles that show them, one datum each in the order given; and the alleles in order.

    Args:
        phenotypes: for each phenotype its genotypes, unordered pairs: {"A": ["AA", "AO"], "O": ["OO"], ...}. In
            Hardy-Weinberg proportions a heterozygote counts twice.

    Raises:
        ValueError: for genotypes that are not pairs.
    """
    for name, pairs in phenotypes.items():
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"genotypes must be pairs of alleles; got {list(pairs)} for {name!r}")
    alleles = sorted({allele for pairs in phenotypes.values() for pair in pairs for allele in pair}, key=str)
    place = {allele: i for i, allele in enumerate(alleles)}
    choices = [[(place[a], place[b]) for a, b in pairs] for pairs in phenotypes.values()]
    return configurations(choices, [[np.log(1 + (a != b)) for a, b in own] for own in choices]), alleles


def genotype_likelihoods(log_likelihood: Any) -> dict[str, Any]:
    """People of whom only the likelihoods of their genotypes are known: two alleles, Hardy-Weinberg proportions.

    Works on tracers, so that a million sites can be one vmap.

    Args:
        log_likelihood: (N, 3) log-likelihood of 0, 1 and 2 copies of the second allele.
    """
    x = jnp.asarray(log_likelihood)
    pairs = jnp.asarray([[0, 0], [0, 1], [1, 1]], jnp.int32)
    return {"parts": jnp.broadcast_to(pairs, (*x.shape, 2)), "log_weight": x + jnp.log(jnp.asarray([1, 2, 1], x.dtype))}


def time_intervals(left: Any, right: Any) -> tuple[Configurations, np.ndarray]:
    """Times known to lie in (left, right], and the innermost intervals that can hold mass (Turnbull 1976).

    Args:
        left: (N,) open left ends; equal to `right` for a time known exactly.
        right: (N,) closed right ends, inf or NaN where the time was not reached.

    Returns:
        The configurations, and (K, 2) left and right ends of the intervals.

    Raises:
        ValueError: for lengths that differ, a left end that is NaN, or a right end before the left one.
    """
    left, right = numeric(left, "left").astype(float), numeric(right, "right").astype(float)
    if left.ndim != 1 or left.shape != right.shape or not left.size:
        raise ValueError(f"left and right must be (N,) of one length; got shapes {left.shape} and {right.shape}")
    if np.isnan(left).any():
        row = int(np.isnan(left).argmax())
        raise ValueError(f"left must hold numbers, -inf where nothing is known, unlike right; got NaN in row {row}")
    right = np.where(np.isnan(right), np.inf, right)
    if (right < left).any():
        row = int(np.argmax(right < left))
        raise ValueError(f"right must not lie before left; got {left[row]} and {right[row]} in row {row}")
    # A support is a left end followed at once by a right end; at one value exact times close before open ends begin.
    exact = left == right
    ends = sorted([(x, 0 if e else 2, "left") for x, e in zip(left, exact)] + [(x, 1, "right") for x in right])
    support = [(a[0], b[0]) for a, b in itertools.pairwise(ends) if a[2] == "left" and b[2] == "right"]
    support = np.array(sorted(set(support)))
    # An exact time lies in (left, right] only beyond its open end.
    begins = np.where(support[:, 0] == support[:, 1], left[:, None] < support[:, 0], left[:, None] <= support[:, 0])
    same = exact[:, None] & (left[:, None] == support[:, 0])
    inside = (begins | same) & (support[:, 1] <= right[:, None])
    return configurations([np.flatnonzero(row).tolist() for row in inside]), support
