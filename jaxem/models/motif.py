"""A motif that recurs in sequences: OOPS and ZOOPS (Lawrence and Reilly 1990; Bailey and Elkan 1994, MEME)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_positive_int, numeric
from jaxem.families.categorical import LOG_ZERO, with_impossible
from jaxem.init import Each
from jaxem.model import Model
from jaxem.numerics.blocks import by_row
from jaxem.numerics.linalg import PRECISION
from jaxem.numerics.logs import divided, lse, most_probable, safe_log
from jaxem.numerics.trees import inner
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows

LETTERS = "ACGT"
#: Code of padding and of letters that are none of the four.
UNKNOWN = 4


@struct
class Motif(Model):
    """Every sequence holds one site of the motif at an unknown place (OOPS), or one or none (ZOOPS).

    Letters of a site follow the motif, position by position; all others the background. Starts of sites are equally
    likely, on both strands where `both_strands`.

    Parameters: `motif` (W, 4) and `background` (4,) probabilities of A, C, G, T; `presence`, the share of sequences
    that hold a site. Data: `jaxem.dna([...])`, a dict of padded codes `x` (N, T), 0..3 and 4 for what is no letter,
    and `open` (N, T), the probability that a site may cover a letter: see `erased`.

    Attributes:
        width: W.
        both_strands: whether sites may lie on the reverse strand.
        every: whether every sequence has a site (OOPS).
        pseudo_count: letters added to each position of the motif, a quarter of it to each letter: a Dirichlet prior, part
            of the objective. Half a letter each is Krichevsky and Trofimov's. MEME adds next to nothing: on the CRP sites
            the likelihood alone has two maxima .6 apart, of which the lower one are MEME's sites.
    """

    width: int = static()
    both_strands: bool = static(default=False)
    every: bool = static(default=False)
    pseudo_count: float | Array = 2.0

    needs_key: ClassVar[bool] = False

    @property
    def constraints(self) -> dict[str, Any]:
        presence = sets.Fixed() if self.every else sets.UnitInterval()
        return {"motif": sets.Simplex(), "background": sets.Simplex(), "presence": presence}

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `log_motif` (W, 4) and `log_background` (4,), t = letters; `log_presence`, `log_absence`, t = sequences."""
        presence = params["presence"]
        return {
            "log_motif": safe_log(params["motif"]),
            "log_background": safe_log(params["background"]),
            "log_presence": safe_log(presence),
            "log_absence": safe_log(1 - presence),
        }

    def _windows(self, x: Array, dtype: Any) -> tuple[Array, Array]:
        """(n, J, W, 4) letters of every window as indicators, and (n, J) whether all are known."""
        seen = jax.nn.one_hot(x, 4, dtype=dtype)
        n_starts = x.shape[1] - self.width + 1
        windows = jnp.stack([seen[:, w : w + n_starts] for w in range(self.width)], 2)
        return windows, windows.sum((2, 3)) == self.width

    def _site_scores(self, natural: PyTree, data: PyTree) -> tuple[Array, Array]:
        """(n, S, J) log-weight of a site at each start of each strand, against no site; (n,) log-density of no site."""
        # A finite stand-in for log 0 passes through the matrix products; its exponential is zero.
        log_motif = jnp.maximum(natural["log_motif"], LOG_ZERO)
        background = jnp.maximum(natural["log_background"], LOG_ZERO)
        windows, whole = self._windows(data["x"], log_motif.dtype)
        ratios = [log_motif - background]
        if self.both_strands:  # the complement of code c is 3 - c
            ratios.append(log_motif[::-1, ::-1] - background)
        flat = windows.reshape(*whole.shape, 4 * self.width)
        scores = jnp.einsum("njf,sf->nsj", flat, jnp.stack(ratios).reshape(len(ratios), -1), precision=PRECISION)
        free = jnp.stack([data["open"][:, w : w + whole.shape[1]] for w in range(self.width)]).min(0)
        log_free = safe_log(jnp.where(whole, free, 0).astype(scores.dtype))
        n_starts = jnp.maximum(whole.sum(1) * len(ratios), 1).astype(scores.dtype)
        sites = scores + (log_free - jnp.log(n_starts)[:, None])[:, None]
        letters = jax.nn.one_hot(data["x"], 4, dtype=scores.dtype).sum(1)
        return sites, jnp.matmul(letters, background, precision=PRECISION)

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        del rows
        sites, nothing = self._site_scores(natural, data)
        some = natural["log_presence"] + lse(by_row(sites), 1)
        return with_impossible(nothing + lse(jnp.stack([some, jnp.broadcast_to(natural["log_absence"], some.shape)]), 0))

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Relative counts (Bailey and Elkan 1994, equations 10 to 12)."""

        def share(counts: Array, before: Array) -> Array:
            total = jnp.maximum(counts, 0).sum(-1, keepdims=True)
            return jnp.where(total > 0, divided(jnp.maximum(counts, 0), total), before)

        presence = params["presence"]
        if not self.every:
            some, none = stats["log_presence"], stats["log_absence"]
            edge = jnp.finfo(presence.dtype).eps
            presence = jnp.clip(divided(some, some + none), edge, 1 - edge)
        motif, background = (share(stats["log_" + name], params[name]) for name in ("motif", "background"))
        return {"motif": motif, "background": background, "presence": presence}

    def pseudo_stats(self, params: Params) -> PyTree:
        zero = jax.tree.map(jnp.zeros_like, self.natural(params))
        return {**zero, "log_motif": zero["log_motif"] + jnp.asarray(self.pseudo_count, params["motif"].dtype) / 4}

    # --- the boundary of fit -----------------------------------------------------------------
    def validate(self, data: Any) -> dict[str, np.ndarray]:
        """Padded codes and openness.

        Raises:
            ValueError: for data not made by `jaxem.dna`, or a sequence in which no site fits.
        """
        check_positive_int(self.width, "width")
        if not isinstance(data, dict) or set(data) != {"x", "open"}:
            raise ValueError("data must be a dict of 'x' and 'open', as jaxem.dna makes it")
        x, free = numeric(data["x"], "data['x']"), numeric(data["open"], "data['open']")
        if x.ndim != 2 or x.shape != free.shape or x.dtype.kind not in "iu" or (x < 0).any() or (x > UNKNOWN).any():
            raise ValueError(f"data must be codes x (N, T) in 0..4 and open (N, T); got {x.dtype} {x.shape} and {free.shape}")
        windows = np.lib.stride_tricks.sliding_window_view(x != UNKNOWN, min(self.width, x.shape[1]), 1)
        known = np.any(np.all(windows, axis=-1), axis=1)
        if self.width > x.shape[1] or not known.all():
            row = 0 if self.width > x.shape[1] else int(np.argmin(known))
            raise ValueError(f"every sequence must have width={self.width} known letters in a row; sequence {row} has not")
        return {"x": x.astype(np.int8), "open": free.astype(np.zeros(0, jnp.zeros(()).dtype).dtype)}

    def template(self, data: PyTree) -> Params:
        dtype = data["open"].dtype
        quarter = jnp.full((4,), 0.25, dtype)
        presence = jnp.asarray(1.0 if self.every else 0.5, dtype)
        return {"motif": jnp.broadcast_to(quarter, (self.width, 4)), "background": quarter, "presence": presence}

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """The first window, softened; with a key a random one. `starts` gives every window."""
        windows, whole = self._windows(data["x"], weight.dtype)
        possible = whole & (weight > 0)[:, None]
        logits = safe_log(possible.astype(weight.dtype)).reshape(-1)
        which = logits.argmax() if key is None else jax.random.categorical(key, logits)
        return self._start(windows.reshape(-1, self.width, 4)[which], data, weight)

    def _start(self, window: Array, data: PyTree, weight: Array) -> Params:
        letters = weight @ jax.nn.one_hot(data["x"], 4, dtype=weight.dtype).sum(1) + 1
        background = letters / letters.sum()
        return {**self.template(data), "background": background, "motif": (window + background) / 2}

    def starts(self, data: PyTree) -> Each:
        """Every different window of the data, softened, as the start of a restart: `init=starts, n_restarts=len(starts)`."""
        data = self.validate(data)
        windows, whole = self._windows(jnp.asarray(data["x"]), data["open"].dtype)
        free = np.lib.stride_tricks.sliding_window_view(data["open"], self.width, 1).min(-1) > 0.5
        rows = np.unique(np.asarray(windows)[np.asarray(whole) & free], axis=0)
        weight = jnp.ones(len(data["x"]), rows.dtype)
        return Each(jax.vmap(lambda window: self._start(window, data, weight))(jnp.asarray(rows)))

    # --- after the fit -----------------------------------------------------------------------
    def sites(self, params: Params, data: PyTree) -> Array:
        """(N, S, J) probability of a site at each start of each strand."""
        natural = self.natural(params)
        sites, nothing = self._site_scores(natural, data)
        joint = natural["log_presence"] + sites
        total = jnp.logaddexp(lse(by_row(joint), 1), natural["log_absence"])
        possible = with_impossible(nothing + total) > -jnp.inf
        return jnp.where(possible[:, None, None], jnp.exp(joint - total[:, None, None]), jnp.nan)

    def predict(self, params: Params, data: PyTree) -> tuple[Array, Array, Array]:
        """(N,) most probable start of a site, its strand (0, or 1 for the reverse), and the probability of any site."""
        sites = self.sites(params, data)
        best = most_probable(by_row(sites))
        return jnp.where(best < 0, -1, best % sites.shape[2]), best // sites.shape[2], sites.sum((1, 2))

    def erased(self, params: Params, data: PyTree) -> PyTree:
        """Data in which the sites found are taken: a fit to them finds the next motif (Bailey and Elkan 1994, section 3.4)."""
        starts = self.sites(params, data).sum(1)
        padded = jnp.pad(starts, ((0, 0), (self.width - 1, self.width - 1)))
        covered = sum(padded[:, w : w + data["x"].shape[1]] for w in range(self.width))
        return {**data, "open": data["open"] * jnp.clip(1 - covered, 0, 1)}

    def information_content(self, params: Params) -> Array:
        """(W,) bits of each position against the background."""
        motif = params["motif"]
        return jnp.stack([inner(row, safe_log(row) - safe_log(params["background"])) for row in motif]) / jnp.log(2)

    def n_free_params(self, data: PyTree) -> int:
        del data
        return 3 * self.width + 3 + (not self.every)

    def sample(self, key: Array, params: Params, n: int, length: int = 100) -> PyTree:
        """n sequences of `length` letters."""
        check_positive_int(length, "length", self.width)
        keys = jax.random.split(key, 5)
        x = jax.random.categorical(keys[0], safe_log(params["background"]), shape=(n, length))
        site = jax.random.categorical(keys[1], safe_log(params["motif"]), shape=(n, self.width))
        start = jax.random.randint(keys[2], (n, 1), 0, length - self.width + 1)
        has = jax.random.uniform(keys[3], (n, 1)) < params["presence"]
        if self.both_strands:
            reverse = jax.random.bernoulli(keys[4], 0.5, (n, 1))
            site = jnp.where(reverse, 3 - site[:, ::-1], site)
        offset = jnp.arange(length) - start
        inside = has & (offset >= 0) & (offset < self.width)
        x = jnp.where(inside, jnp.take_along_axis(site, jnp.clip(offset, 0, self.width - 1), 1), x)
        return {"x": x.astype(jnp.int8), "open": jnp.ones((n, length), params["motif"].dtype)}

    def sample_like(self, key: Array, params: Params, data: PyTree) -> PyTree:
        """Sequences as long as those in `data`, gaps and all."""
        drawn = self.sample(key, params, *data["x"].shape)
        return {"x": jnp.where(data["x"] == UNKNOWN, UNKNOWN, drawn["x"]).astype(jnp.int8), "open": drawn["open"]}


def dna(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Sequences of letters as `Motif` reads them; what is none of A, C, G, T (U counts as T) can be in no site.

    Raises:
        TypeError: for what is not text.
        ValueError: for no sequence, or an empty one.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"texts must be a list of strings of letters; got {type(texts).__name__}")
    if not texts or not all(texts):
        raise ValueError(f"texts must be at least one sequence, none empty; got {list(texts)[:3]}")
    table = np.full(256, UNKNOWN, np.int8)
    for code, letter in enumerate(LETTERS):
        table[[ord(letter), ord(letter.lower())]] = code
    table[[ord("U"), ord("u")]] = LETTERS.index("T")
    x = np.full((len(texts), max(map(len, texts))), UNKNOWN, np.int8)
    for row, text in zip(x, texts, strict=True):
        row[: len(text)] = table[np.frombuffer(text.encode("latin-1", "replace"), np.uint8)]
    return {"x": x, "open": np.ones(x.shape, np.float32)}
