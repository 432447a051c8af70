"""Every notebook runs from top to bottom, its own assertions hold, and it is stored with its outputs."""

import json
import sys
from pathlib import Path

import jax
import pytest

matplotlib = pytest.importorskip("matplotlib")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture
def surroundings(monkeypatch):
    """A backend without windows, and what a notebook may set put back."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    monkeypatch.chdir(NOTEBOOKS[0].parent)
    x64 = jax.config.read("jax_enable_x64")
    with matplotlib.rc_context():
        yield pyplot
    pyplot.close("all")
    jax.config.update("jax_enable_x64", x64)


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, surroundings):
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(path)):
        source = "".join(cell["source"])
        exec(compile(source, f"{path.name}, code cell {number}", "exec"), namespace)
    figures = [surroundings.figure(i) for i in surroundings.get_fignums()]
    assert figures
    for figure in figures:
        figure.canvas.draw()
    assert "IPython" not in sys.modules


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_with_outputs(path):
    outputs = [output for cell in code_cells(path) for output in cell["outputs"]]
    assert all(cell["execution_count"] for cell in code_cells(path)), "run notebooks/execute.py"
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
    assert str(Path.home()) not in path.read_text(encoding="utf-8")
