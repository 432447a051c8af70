"""Families side by side: columns of several kinds, independent given the component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data.validation import floating, matrix_with_gaps
from jaxem.families.base import Family
from jaxem.families.composite import Composite
from jaxem.families.missing import filled
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params

#: What stands for a missing entry while it is masked out: in the support of every family.
ANYTHING = 1.0


@struct
class Product(Composite, Family):
    """p(x | k) = product over parts of family(x[columns] | k). Parameters: a tuple with those of each part.

    Data (N, D). A part whose columns are all NaN in a row is missing there, and summed out. Single columns may be
    missing where each is a part of its own, or in a part that says so itself: `Gaussian(missing="marginal")`.

    Attributes:
        families: the parts.
        columns: the columns of each part, tuples of ints.
    """

    families: tuple[Family, ...]
    columns: tuple[tuple[int, ...], ...] = static()

    missing: ClassVar[str] = "marginal"

    @property
    def parts(self) -> tuple[Family, ...]:
        return self.families

    def with_parts(self, parts: Sequence[Family]) -> Product:
        return Product(tuple(parts), self.columns)

    def split(self, tree: PyTree) -> Sequence[PyTree]:
        return tree

    def joined(self, tree: PyTree, parts: Sequence[PyTree]) -> PyTree:
        del tree
        return tuple(parts)

    def _part(self, family: Family, data: Array, columns: tuple[int, ...]) -> tuple[Array, Array]:
        """(n, d) columns of one part, with values in place of what it cannot miss, and (n,) where they are there."""
        x = data[:, np.array(columns)]
        if family.missing:
            return x, jnp.ones(x.shape[:1], bool)
        there = ~jnp.isnan(x).any(1)
        return jnp.where(there[:, None], x, ANYTHING), there

    def scores(self, natural: PyTree, data: Array) -> Array:
        return self._over_parts(natural, data, hard=False)

    def hard_scores(self, natural: PyTree, data: Array) -> Array:
        return self._over_parts(natural, data, hard=True)

    def _over_parts(self, natural: PyTree, data: Array, hard: bool) -> Array:
        parts = []
        for family, eta, columns in zip(self.families, natural, self.columns, strict=True):
            x, there = self._part(family, data, columns)
            scores = family.hard_scores if hard else family.scores
            parts.append(jnp.where(there, scores(eta, x), 0))
        return sum(parts[1:], start=parts[0])

    def start(self, stats: PyTree, template: Params) -> Params:
        return self.joined(template, self._each("start", stats, template))

    def completed(self, data: Array) -> tuple[Product, Array]:
        families = []
        for family, columns in zip(self.families, self.columns, strict=True):
            family, x = family.completed(data[:, np.array(columns)])
            families.append(family)
            data = data.at[:, np.array(columns)].set(x)
        return self.with_parts(families), data

    def floored(self, data: Any, weight: Array | None) -> Product:
        return self._with_floors([data[:, np.array(c)] for c in self.columns], weight)

    def prepared(self, data: Any) -> Product:
        parts = zip(self.families, self.columns, strict=True)
        return self.with_parts([f.prepared(np.asarray(data)[:, np.array(c)]) for f, c in parts])

    def coordinates(self, data: Any, xp: Any, present: Any = None) -> None:
        """None: each part sees other columns."""

    def template(self, data: Array, n_components: int) -> Params:
        parts = zip(self.families, self.columns, strict=True)
        return tuple(f.template(self._part(f, jnp.asarray(data), c)[0], n_components) for f, c in parts)

    def validate(self, data: Any) -> Any:
        """(N, D) floats; NaN where a part is missing.

        Raises:
            ValueError: for columns that no part or two parts claim, values that a part cannot take, or a part of
                which some columns are missing and others not.
        """
        array = matrix_with_gaps(data)
        if any(isinstance(own, str) or not all(isinstance(c, int | np.integer) for c in np.ravel(own)) or np.ndim(own) != 1
               for own in self.columns):  # fmt: skip
            raise ValueError(f"columns must be a tuple of ints for each part, e.g. ((0,), (1, 2)); got {self.columns}")
        claimed = sorted(c for columns in self.columns for c in columns)
        if len(self.columns) != len(self.families) or claimed != list(range(array.shape[1])):
            raise ValueError(f"columns must name each of the {array.shape[1]} columns of data once; got {self.columns}")
        out = array.copy()
        for family, columns in zip(self.families, self.columns, strict=True):
            x = array[:, columns]
            if family.missing:
                out[:, columns] = family.validate(x)
                continue
            gone = np.isnan(x)
            if (gone.any(1) & ~gone.all(1)).any():
                row = int(np.argmax(gone.any(1) & ~gone.all(1)))
                raise ValueError(f"data row {row}: columns {columns} are one part and must be missing together; got {x[row]}")
            there = ~gone.any(1)
            if there.any():
                out[np.ix_(there, np.array(columns))] = family.validate(x[there])
        return floating(out, "data")

    def check_fit(self, data: Any) -> None:
        for family, columns in zip(self.families, self.columns, strict=True):
            family.check_fit(data[:, columns])

    def features(self, data: Array) -> Array:
        parts = []
        for family, columns in zip(self.families, self.columns, strict=True):
            x, there = self._part(family, data, columns)
            x = filled(jnp.where(there[:, None], x, jnp.nan))
            parts.append(family.features(x).reshape(len(data), -1))
        return jnp.concatenate(parts, 1)

    def n_free_params(self, n_components: int, data: Array) -> int:
        parts = zip(self.families, self.columns, strict=True)
        return sum(f.n_free_params(n_components, data[:, np.array(c)]) for f, c in parts)

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        keys = jax.random.split(key, len(self.families))
        drawn = [f.sample(k, p, component) for f, k, p in zip(self.families, keys, params, strict=True)]
        dtype = jnp.result_type(*(x for x in jax.tree.leaves(params)))
        order = np.argsort([c for columns in self.columns for c in columns])
        flat = jnp.concatenate([x.reshape(len(component), -1).astype(dtype) for x in drawn], 1)
        return flat[:, order]
