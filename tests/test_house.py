"""The house: imports go downward only, rooms keep apart, and a module's test is where its name says."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest
from house import COVERS, ELSEWHERE

import jaxem

ROOT = Path(jaxem.__file__).parent
TESTS = Path(__file__).parent

#: Rooms and flat files, low to high: imports go to a lower floor, or stay in their own room.
FLOORS = (
    ("pytree", "_version", "datasets"),
    ("types", "numerics"),
    ("distributed", "operators", "priors"),
    ("constraints", "data", "latents"),
    ("model",),
    ("init",),
    ("families", "engine", "storage"),
    ("models", "algorithms", "fitting"),
    ("streams", "evaluate"),
    ("check", "plot", "skfolio", "online", "sources"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
EM = {"engine", "algorithms", "fitting"}
MODELS = {"latents", "families", "models"}
#: What a room may not import although it lies lower, or may come to.
BARRED = {room: MODELS | {"priors"} for room in EM} | {room: EM | {"streams", "evaluate", "check"} for room in MODELS}


# --- what imports what ---------------------------------------------------------------------------
def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, modules: Iterable[str]) -> set[str]:
    """Modules of jaxem that a file imports: at its top, in a function, or for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "jaxem"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            if str(node.module).split(".")[0] == "jaxem":
                names = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                found |= {full if full in modules else str(node.module) for full in names.values()}
    return found


def imports(root: Path = ROOT) -> dict[str, set[str]]:
    """What each module imports, the packages' own files among them."""
    paths = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    return {name: imported(path, paths) - {name} for name, path in paths.items()}


def room_of(module: str) -> str:
    return module.split(".")[1]


def wrong_imports(graph: dict[str, set[str]]) -> list[str]:
    wrong = []
    for name, others in graph.items():
        for other in others if name != "jaxem" else ():
            if other == "jaxem":
                wrong.append(f"{name} imports jaxem itself")
            elif (room := room_of(other)) != room_of(name):
                if FLOOR[room] >= FLOOR[room_of(name)] or room in BARRED.get(room_of(name), ()):
                    wrong.append(f"{name} imports {other}")
    return wrong


def circles(graph: dict[str, set[str]]) -> set[str]:
    """What is left once nobody is that imports nothing left, or that nothing left imports."""
    left = dict(graph)
    while loose := [name for name, others in left.items() if not others & left.keys()]:
        for name in loose:
            del left[name]
    while loose := [name for name in left if not any(name in others for others in left.values())]:
        for name in loose:
            del left[name]
    return set(left)


GRAPH = imports()


def test_every_room_has_a_floor():
    assert {room_of(name) for name in GRAPH if name != "jaxem"} == FLOOR.keys()


def test_imports_go_downward_only():
    assert not wrong_imports(GRAPH)


def test_no_circle_between_files():
    assert not circles(GRAPH)


def test_these_laws_see_what_is_wrong(tmp_path):
    root = tmp_path / "jaxem"
    (root / "engine").mkdir(parents=True)
    files = {
        "pytree.py": "from jaxem import cli",  # upward, from the ground
        "engine/a.py": "def f():\n    from jaxem.priors import Dirichlet",  # downward, yet barred
        "engine/b.py": "import typing\nif typing.TYPE_CHECKING:\n    from jaxem.engine import c\n",  # a circle for types
        "engine/c.py": "import jaxem.engine.b",
        "engine/d.py": "from jaxem.engine.b import x",  # imports a circle, and is in none
        "priors.py": "from jaxem import Dirichlet",
        "cli.py": "",
    }
    for name, text in files.items():
        (root / name).write_text(text + "\n")
    graph = imports(root)
    wrong = ["engine.a imports jaxem.priors", "priors imports jaxem itself", "pytree imports jaxem.cli"]
    assert sorted(wrong_imports(graph)) == [f"jaxem.{text}" for text in wrong]
    assert circles(graph) == {"jaxem.engine.b", "jaxem.engine.c"}
    (root / "cli.py").write_text("from .pytree import x\n")
    with pytest.raises(AssertionError, match="relative import in line 1"):
        imports(root)


# --- what stands where ---------------------------------------------------------------------------
def n_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_few_files_lie_flat():
    assert len(list(ROOT.glob("*.py"))) <= 18


def test_files_are_short_and_the_engine_reads_in_one_sitting():
    assert not [str(path) for folder in (ROOT, TESTS) for path in folder.rglob("*.py") if n_lines(path) > 500]
    assert sum(map(n_lines, (ROOT / "engine").glob("*.py"))) <= 2_000


def many_by_position(path: Path, most: int = 6) -> list[str]:
    """Definitions and calls of more positional arguments than a reader keeps apart; `self` does not count, nor `*args`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
        elif isinstance(node, ast.Call):
            count = sum(not isinstance(arg, ast.Starred) for arg in node.args)
        else:
            continue
        if count > most:
            found.append(f"{path.name}, line {node.lineno}: {count} arguments by position")
    return found


def test_few_arguments_go_by_position():
    assert not [line for path in sorted(ROOT.rglob("*.py")) for line in many_by_position(path)]


def test_many_arguments_by_position_are_seen(tmp_path):
    lines = [
        "def f(a, b, c, d, e, g, *, h): f(1, 2, 3, 4, 5, 6, h=7)",
        "def f(a, b, c, d, e, g, h): pass",
        "class A:",
        "    def f(self, a, b, c, d, e, g): f(1, 2, 3, 4, 5, 6, *a)",
        "    def g(cls, a, b, c, /, d, e, g, h): pass",
        "lambda a, b, c, d, e, g, h: f(1, 2, 3, 4, 5, 6, 7)",
    ]
    (path := tmp_path / "many.py").write_text("\n".join(lines))
    assert sorted(line.split(":")[0] for line in many_by_position(path)) == [f"many.py, line {n}" for n in (2, 5, 6, 6)]


def test_pytree_is_defined_once():
    def defines(path: Path) -> bool:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        return any(isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == "PyTree" for node in nodes)

    assert [path for path in ROOT.rglob("*.py") if defines(path)] == [ROOT / "pytree.py"]


def test_no_module_bears_a_public_name():
    public = {name for name in jaxem.__all__ if not isinstance(getattr(jaxem, name), ModuleType)}
    assert not public & {path.stem for path in ROOT.iterdir()}


def test_import_pulls_in_no_extra_and_no_picture():
    extras = ["rich", "matplotlib", "sklearn", "pandas", "polars", "pyarrow", "orbax", "statsmodels", "scipy", "hmmlearn"]
    doors = ["sources", "online", "plot", "latents", "init", "constraints", "operators", "distributed", "datasets"]
    code = f"""
import importlib, sys, jax, optax
before = set(sys.modules)
import jaxem
print([name for name in {extras} + ["jaxem.plot"] if name in sys.modules and name not in before])
from jaxem.numerics import lse, safe_log
for name in {doors}:
    assert importlib.import_module("jaxem." + name) is getattr(jaxem, name), name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# --- tests mirror the folders --------------------------------------------------------------------
def mirrored(files: set[str], tests: set[str], elsewhere: dict[str, str], covers: dict[str, str]) -> list[str]:
    """What is wrong with the mirror: paths below jaxem/ and tests/, and both tables of exceptions."""
    home = {file: str(Path(file).with_name(f"test_{Path(file).name}")) for file in files}
    homeless = [file for file in files - elsewhere.keys() if home[file] not in tests]
    wrong = [f"no test of {file}: write {home[file]}, or name it in ELSEWHERE" for file in homeless]
    wrong += [f"{test} tests no module: name it in COVERS" for test in tests - set(home.values()) - covers.keys()]
    wrong += [f"ELSEWHERE: {file} is tested in {home[file]}" for file in elsewhere.keys() & files if home[file] in tests]
    wrong += [f"ELSEWHERE: there is no {file}" for file in elsewhere.keys() - files]
    wrong += [f"ELSEWHERE: there is no {test}" for test in set(elsewhere.values()) - tests]
    wrong += [f"COVERS: there is no {test}" for test in covers.keys() - tests]
    wrong += [f"COVERS: {test} tests the module of its name" for test in covers.keys() & set(home.values())]
    return sorted(wrong)


def test_a_modules_test_is_where_its_name_says():
    files = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if not path.stem.startswith("_")}
    tests = {str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py")}
    assert not mirrored(files, tests, ELSEWHERE, COVERS)


def test_the_mirror_shows_what_is_missing():
    files, tests = {"a.py", "room/b.py", "room/c.py"}, {"test_a.py", "room/test_all.py"}
    wrong = mirrored(files, tests, {"room/b.py": "room/test_all.py", "a.py": "room/test_all.py"}, {})
    assert [line.split(":")[0] for line in wrong] == ["ELSEWHERE", "no test of room/c.py", "room/test_all.py tests no module"]
