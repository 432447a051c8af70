"""Pictures of fits: one kind a file. Nothing below imports this room, and `import jaxem` does not load it."""

from jaxem.plot.chain import states, transition_graph
from jaxem.plot.density import mixture
from jaxem.plot.restarts import finals, trace
from jaxem.plot.selection import criterion_curves, selection_figure
from jaxem.plot.style import INK, MARKERS, PALETTE, STYLE, colors, require_matplotlib

__all__ = [
    "INK",
    "MARKERS",
    "PALETTE",
    "STYLE",
    "colors",
    "criterion_curves",
    "finals",
    "mixture",
    "require_matplotlib",
    "selection_figure",
    "states",
    "trace",
    "transition_graph",
]
