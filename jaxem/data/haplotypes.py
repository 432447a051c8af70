"""Pairs of haplotypes behind unphased genotypes, locus by locus; what no person can well have is left out on the way."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxem.data.configurations import Configurations
from jaxem.data.validation import numeric

#: Pairs of one person from which on the improbable ones are left out, and steps of EM that tell which those are.
FEW_PAIRS, TRIM_STEPS = 64, 50
#: Log-likelihood whose loss is said.
SAID = 1e-6
#: Products that finding the sets contained in others may take.
MOST_WORK = 1e10


def haplotype_pairs(alleles: Any, missing: int = 0, trim: float = 1e-9) -> tuple[Configurations, np.ndarray, np.ndarray | None]:
    """Pairs of haplotypes that unphased genotypes at several loci allow (Excoffier and Slatkin 1995).

    Loci are inserted one by one (Clayton's progressive insertion). Where a person then has more than 64 pairs, shares are
    estimated from the loci so far, and pairs of a posterior below `trim` under them are left out: under those shares this
    lowers the log-likelihood by at most -log(1 - the pairs left out x `trim`) a person. A warning says by how much it
    did, where that is 1e-6 or more.

    Haplotypes that only people with missing alleles could carry are left out where another one suits all that they suit:
    the maximum of the likelihood stays. Under a prior it may not.

    Args:
        alleles: (N, loci, 2) codes of the two alleles of each person at each locus, in any order.
        missing: code of an allele that was not read: any that somebody has at the locus.
        trim: posterior below which a pair is left out; 0 keeps all.

    Returns:
        The configurations, one datum a person; (K, loci) the alleles of each haplotype; and for `Proportions(groups=)`
        (G, K) bools, the haplotypes that each incompletely known one may be, None where all is known.

    Raises:
        ValueError: for a wrong shape, a locus at which nobody was read, or a `trim` that is no small probability.
    """
    codes = numeric(alleles, "alleles")
    if codes.ndim != 3 or codes.shape[2] != 2 or not codes.size:
        raise ValueError(f"alleles must have shape (N, loci, 2); got shape {codes.shape}")
    if not 0 <= trim <= 0.01:
        raise ValueError(f"trim must be a probability of at most .01; got {trim}")
    for locus, column in enumerate(np.moveaxis(codes, 1, 0)):
        if (column == missing).all():
            raise ValueError(f"alleles must be known for somebody at every locus; locus {locus} is missing throughout")
    n = len(codes)
    pairs, lost = Pairs(np.arange(n), np.zeros((n, 2), np.int64), np.zeros((1, 0), np.int64), []), 0.0
    for locus in range(codes.shape[1]):
        pairs = _inserted(pairs, codes[:, locus], missing)
        if trim and np.bincount(pairs.person).max() > FEW_PAIRS:
            pairs, less = _trimmed(pairs, n, trim)
            lost += less
    if lost > SAID:
        warnings.warn(
            f"haplotype_pairs left out pairs of posteriors below trim={trim}: under the shares estimated on the way the"
            f" log-likelihood is {lost:.1g} lower; trim=0 keeps all",
            stacklevel=2,
        )
    names, haplotypes, table = _haplotypes(pairs)
    return _padded(pairs, names, n), haplotypes, table if len(table) else None


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Unordered pairs of what is known of haplotypes at the loci so far.

    Attributes:
        person: (M,) whose each pair is, in order.
        pair: (M, 2) patterns, the lower first.
        patterns: (P, loci) for each pattern which set of alleles it has at each locus, in lexicographic order.
        sets: of each locus the sets of alleles, in order; those of one haplotype and the other exclude each other or agree.
    """

    person: np.ndarray
    pair: np.ndarray
    patterns: np.ndarray
    sets: list[list[frozenset[int]]]

    def chosen(self, kept: np.ndarray) -> Pairs:
        """Of some pairs, (M,) bools, without the patterns that are in none of them."""
        used, pair = np.unique(self.pair[kept], return_inverse=True)
        return Pairs(self.person[kept], pair.reshape(-1, 2), self.patterns[used], self.sets)


def _inserted(old: Pairs, column: np.ndarray, missing: int) -> Pairs:
    """With one locus more, of which `column` (N, 2) has the alleles."""
    every = frozenset(map(int, column[column != missing]))
    kinds, kind = np.unique(np.sort(column, 1), axis=0, return_inverse=True)
    ordered = [sorted(_ordered(pair, every, missing), key=lambda both: [sorted(x) for x in both]) for pair in kinds]
    sets = sorted({x for own in ordered for both in own for x in both}, key=sorted)
    place = {x: i for i, x in enumerate(sets)}
    options = np.array([[place[a], place[b]] for own in ordered for a, b in own])
    size = np.array([len(own) for own in ordered])
    of_pair = kind.reshape(-1)[old.person]  # each pair becomes as many as its person has options here
    row = np.repeat(np.arange(len(old.person)), size[of_pair])
    within = np.arange(len(row)) - np.repeat(np.cumsum(size[of_pair]) - size[of_pair], size[of_pair])
    option = options[(np.cumsum(size) - size)[of_pair][row] + within]
    used, pair = np.unique(old.pair[row] * len(sets) + option, return_inverse=True)
    pair = np.sort(pair.reshape(-1, 2), 1)
    _, first = np.unique((old.person[row] * len(used) + pair[:, 0]) * len(used) + pair[:, 1], return_index=True)
    patterns = np.column_stack([old.patterns[used // len(sets)], used % len(sets)])
    return Pairs(old.person[row][first], pair[first], patterns, [*old.sets, sets])


def _ordered(pair: np.ndarray, every: frozenset[int], missing: int) -> set[tuple[frozenset[int], frozenset[int]]]:
    """What the first and the second haplotype may carry at one locus, as pairs of sets that exclude each other."""
    first, second = (every if a == missing else frozenset({int(a)}) for a in pair)
    if first == second or not first & second:
        return {(first, second), (second, first)}
    one = min(first, second, key=len)  # one allele was read: it is either on both, or on one only
    return {(one, one), (one, every - one), (every - one, one)}


def _trimmed(pairs: Pairs, n: int, trim: float) -> tuple[Pairs, float]:
    """Without what is improbable under the shares that EM finds for these loci, and the log-likelihood that this loses."""
    names, haplotypes, table = _haplotypes(pairs)
    k, pair, twice = len(haplotypes), names[pairs.pair], 1 + (pairs.pair[:, 0] != pairs.pair[:, 1])
    members = table.astype(float)
    share, posterior = np.full(k, 1 / k), np.ones(len(pair))
    for _ in range(TRIM_STEPS):
        of_name = np.concatenate([share, members @ share])
        joint = twice * of_name[pair[:, 0]] * of_name[pair[:, 1]]
        posterior = joint / np.bincount(pairs.person, joint, n)[pairs.person]
        count = np.bincount(pair.reshape(-1), np.repeat(posterior, 2), k + len(members))
        share = count[:k] + share * ((count[k:] / np.maximum(of_name[k:], 1e-300)) @ members)
        share /= share.sum()
    kept = posterior >= trim
    return pairs.chosen(kept), -np.log1p(-np.bincount(pairs.person, np.where(kept, 0, posterior), n)).sum()


def _haplotypes(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P,) the name of each pattern, (K, loci) haplotypes, and (G, K) which belong to each pattern that is no haplotype."""
    loci = range(len(pairs.sets))
    sizes = np.stack([np.array([len(x) for x in pairs.sets[locus]])[pairs.patterns[:, locus]] for locus in loci], 1)
    known = (sizes == 1).all(1)
    sole = [np.array([min(x) for x in pairs.sets[locus]]) for locus in loci]
    definite = np.stack([sole[locus][pairs.patterns[known, locus]] for locus in loci], 1)
    groups = pairs.patterns[~known]
    # (alleles, G) by locus, which alleles suit each pattern.
    every = [sorted(frozenset().union(*own)) for own in pairs.sets]
    inside = [np.array([[a in x for x in own] for a in each]) for own, each in zip(pairs.sets, every, strict=True)]
    suits = [inside[locus][:, groups[:, locus]] for locus in loci]
    found, belongs = np.zeros((1, 0), np.int64), np.ones((1, len(groups)), bool)
    for locus in loci if len(groups) else ():
        both = (belongs[:, None] & suits[locus]).reshape(-1, len(groups))
        grown = np.column_stack([np.repeat(found, len(every[locus]), 0), np.tile(every[locus], len(found))])
        kept = _largest(both)
        found, belongs = grown[kept], both[kept]
    place = [np.searchsorted(every[locus], definite[:, locus]) for locus in loci]
    own = np.logical_and.reduce([suits[locus][place[locus]] for locus in loci])
    if len(groups) and len(definite):
        fresh = ~_within(belongs, own)
        found, belongs = found[fresh], belongs[fresh]
    if not len(groups):
        found, belongs = definite[:0], own[:0]
    haplotypes, table = np.concatenate([definite, found]), np.concatenate([own, belongs])
    order = np.lexsort(haplotypes.T[::-1])
    names = np.empty(len(known), np.int64)
    names[known] = np.argsort(order)[: len(definite)]
    names[~known] = len(haplotypes) + np.arange(len(groups))
    return names, haplotypes[order], table[order].T


def _largest(sets: np.ndarray) -> np.ndarray:
    """Rows of bools (R, G), one of each that is not empty nor within another."""
    _, first = np.unique(np.packbits(sets, 1), axis=0, return_index=True)
    first = first[sets[first].any(1)]
    rows = sets[first].astype(np.float32)
    if len(rows) ** 2 * rows.shape[1] > MOST_WORK:
        return first  # more than need be
    size, shared = rows.sum(1), rows @ rows.T
    return first[~((shared == size[:, None]) & (size > size[:, None])).any(1)]


def _within(sets: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(R,) whether a row of bools lies within any of the others."""
    size, other = sets.sum(1), others.astype(np.float32).T
    return np.concatenate(
        [(part @ other == own[:, None]).any(1) for part, own in _parts(sets.astype(np.float32), size)] or [np.zeros(0, bool)]
    )


def _parts(rows: np.ndarray, size: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(rows[i : i + 1024], size[i : i + 1024]) for i in range(0, len(rows), 1024)]


def _padded(pairs: Pairs, names: np.ndarray, n: int) -> Configurations:
    """The arrays that `Proportions` reads."""
    count = np.bincount(pairs.person, minlength=n)
    column = np.arange(len(pairs.person)) - np.repeat(np.cumsum(count) - count, count)
    parts = np.full((n, count.max(), 2), -1, np.int32)
    weight = np.zeros(parts.shape[:2], jnp.result_type(float))  # what JAX computes in
    parts[pairs.person, column] = names[pairs.pair]
    weight[pairs.person, column] = np.log(1 + (pairs.pair[:, 0] != pairs.pair[:, 1]))
    return {"parts": parts, "log_weight": weight}
