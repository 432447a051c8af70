"""What a result was made with, so that the same call can be made again."""

from __future__ import annotations

import inspect
import os
import platform
from collections.abc import Callable
from typing import Any

import jax
import jaxlib
import numpy as np

from jaxem._version import __version__
from jaxem.types import Result

#: Arguments that say what is fitted, or watch it, and change nothing in it.
OTHERWISE = ("model", "data", "batches", "progress", "checkpoint", "max_seconds", "callback")


def provenance(
    call: Callable[..., Any], given: dict[str, Any], result: Result, layout: dict[str, int] | None
) -> dict[str, Any]:
    """The versions, the device, and the arguments of `call` that were not at their defaults.

    Args:
        call: `fit` or `fit_stream`.
        given: its arguments by name.
        result: what it returns.
        layout: how the work was cut up, which memory that is scarce may change; None: not at all.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(call).parameters.items()}
    options = {
        name: given[name] for name in defaults if name in given and name not in OTHERWISE and given[name] is not defaults[name]
    }
    init = options.get("init")
    device = jax.local_devices()[0]
    return {
        "call": call.__name__,
        "versions": {
            "jaxem": __version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,  # type: ignore[attr-defined]
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "backend": jax.default_backend(),
        "device": f"{device.device_kind} ({device.client.platform_version})",
        "dtype": str(result.loglik.dtype),
        "x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "layout": layout,
        "options": options | ({"init": init.params} if isinstance(init, Result) else {}),
    }
