"""What docstrings, comments and pages name is there."""

import ast
import contextlib
import importlib
import inspect
import io
import json
import pkgutil
import re
import sys
import tokenize
from pathlib import Path
from typing import Any

import pytest

import jaxem

ROOT = Path(jaxem.__file__).parent
HOME = Path(__file__).resolve().parents[1]
#: A dotted name, or a call or index of it, at the start of what stands in backticks.
NAMED = re.compile(r"`(?:import |from )?([A-Za-z]\w*(?:\.[A-Za-z]\w*)+)(?<!\.py)(?![\w/-])")
#: A path in the repository.
FILES = re.compile(r"(?<![\w./-])(?:jaxem|tests|benchmarks|notebooks)/[\w/-]+\.(?:py|md|ipynb)\b")
MODULES = ["jaxem", *(m.name for m in pkgutil.walk_packages(jaxem.__path__, "jaxem.") if not m.name.endswith("__main__"))]


def holders(head: str) -> list[Any]:
    """What the first part of a dotted name may be: jaxem, a module, or a class or one made from it (`model` is a `Model`)."""
    if head == "jaxem":
        return [jaxem]
    modules = [sys.modules[name] for name in MODULES if name in sys.modules]
    classes = {c for m in modules for c in vars(m).values() if isinstance(c, type)}
    named = [m for m in modules if m.__name__.split(".")[-1] == head]
    return named + [c for c in classes if any(base.__name__.lower() == head.lower() for base in c.__mro__)]


def resolves(name: str) -> bool:
    """Whether a dotted name is there, of which jaxem knows the first part; attributes of instances by annotation."""
    head, *parts = name.split(".")
    found = holders(head)
    return not found or any(holds(each, parts) for each in found)


def holds(found: Any, parts: list[str]) -> bool:
    for part in parts:
        if inspect.ismodule(found) and not hasattr(found, part):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(f"{found.__name__}.{part}")
        if not hasattr(found, part):
            return any(part in vars(each).get("__annotations__", {}) for each in getattr(found, "__mro__", ()))
        found = getattr(found, part)
    return True


def words(path: Path) -> str:
    """Docstrings and comments of a file of Python, the text cells of a notebook, or all of a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    if path.suffix != ".py":
        return text
    nodes = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
    comments = (t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT)
    return "\n".join([*(ast.get_docstring(n) or "" for n in nodes), *comments])


def pages() -> list[Path]:
    found = [
        *ROOT.rglob("*.py"),
        HOME / "README.md",
        HOME / "CHANGELOG.md",
        *(HOME / "benchmarks").rglob("*.md"),
        *(HOME / "benchmarks").glob("*.py"),
    ]
    return sorted([*found, *(HOME / "notebooks").glob("*.ipynb"), *(HOME / "tests").rglob("*.py")])


def test_names_in_backticks_are_there():
    pytest.importorskip("matplotlib")
    wrong = [
        f"{path.relative_to(HOME)}: {name}" for path in pages() for name in NAMED.findall(words(path)) if not resolves(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_files_that_are_named_are_there():
    found = [(page, name) for page in pages() for name in FILES.findall(words(page))]
    wrong = [f"{page.relative_to(HOME)}: {name}" for page, name in found if not (HOME / name).exists()]
    assert found and not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "name", ["jaxem.fit", "jaxem.Result.params", "Result.history", "jaxem.plot.trace", "init.Each", "model.predict", "x.y"]
)
def test_what_is_there_is_found(name):
    pytest.importorskip("matplotlib")
    assert resolves(name)


@pytest.mark.parametrize("name", ["jaxem.affine", "jaxem.types.Model", "Model.at", "init.Nothing", "restarts.lanes"])
def test_what_is_not_there_is_seen(name, tmp_path):
    path = tmp_path / "page.py"
    path.write_text(f'"""See `{name}`, and `{name}(x)`."""\n# `{name}[0]`\n')
    assert NAMED.findall(words(path)) == [name] * 3 and not resolves(name)
