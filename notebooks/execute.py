"""Run notebooks and store their outputs: python notebooks/execute.py [notebook ...]. Needs `pip install "jaxem[notebooks]"`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def execute(path: Path) -> None:
    """Run one notebook from its own folder in a fresh kernel and write it back with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(HERE)}}, record_timing=False)
    client.execute()
    notebook.metadata.get("language_info", {}).pop("version", None)  # of no interest to readers
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(HERE.glob("*.ipynb")):
        execute(Path(name))
