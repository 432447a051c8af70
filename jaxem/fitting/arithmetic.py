"""How many floating-point operations a traced function takes. XLA's own count takes the body of a loop once."""

from __future__ import annotations

import math
from typing import Any

#: Primitives that move or make numbers and compute nothing.
MOVES = frozenset(
    "broadcast_in_dim concatenate convert_element_type copy copy_p dynamic_slice dynamic_update_slice gather iota"
    " pad pbroadcast pvary reshape rev select_n slice split squeeze stop_gradient transpose".split()
)


def operations(jaxpr: Any) -> int:
    """Floating-point operations of a jaxpr; a scan's body counts as often as it runs, a while loop's once.

    Additions, multiplications and functions such as exp count one each; of a `cond` the dearest branch counts.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    within = [operations(sub) for value in params.values() for sub in _jaxprs(value)]
    if within:
        if name == "cond":
            return max(within)
        return sum(within) * params.get("length", 1) if name == "scan" else sum(within)
    shapes = [v.aval.shape for v in equation.invars if hasattr(v.aval, "shape")]
    made = sum(math.prod(v.aval.shape) for v in equation.outvars if hasattr(v.aval, "shape"))
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * made * math.prod(shapes[0][i] for i in contracted)
    if name == "cholesky":
        return made * shapes[0][-1] // 3
    if name == "triangular_solve":
        return made * shapes[0][-1]
    if name in MOVES:
        return 0
    # Of a reduction or a scatter it is the operands that count.
    return max([made, *map(math.prod, shapes)]) if name.startswith(("reduce", "arg", "cum")) else made


def _jaxprs(value: Any) -> list[Any]:
    items = value if isinstance(value, tuple | list) else (value,)
    return [item for item in items if hasattr(item, "eqns") or hasattr(item, "jaxpr")]
