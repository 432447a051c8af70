"""Arithmetic that the rest stands on; `safe_log` and `lse` are for models of your own."""

from jaxem.numerics.logs import lse as lse
from jaxem.numerics.logs import safe_log as safe_log
