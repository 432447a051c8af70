"""The house: imports go downward only, and `import jaxem` pulls in no optional package."""

import ast
import subprocess
import sys
from pathlib import Path

import jaxem

ROOT = Path(jaxem.__file__).parent

#: Layers, low to high; a module may import from its own layer and from lower ones, as far as BARRED allows.
LAYERS = (
    ("types", "numerics", "linalg", "distributed", "_version"),
    ("constraints", "affine", "blocks", "validation", "leaves", "normal_response", "archive", "progress"),
    ("priors", "init", "sequences", "configurations", "documents", "sources", "newick", "alignment"),
    ("latents", "operators"),
    ("families",),
    ("models",),
    ("engine",),
    ("online",),
    ("evaluate",),
    ("check",),
    ("datasets", "io", "saved"),
    ("plot", "sklearn", "hmmlearn", "skfolio"),
    ("cli",),
    ("__main__",),
)
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
FACADE = {"datasets", "io", "saved", "plot", "sklearn", "hmmlearn", "skfolio", "cli", "__main__"}
#: The engine knows no model.
BARRED = {"engine": {"priors", "latents", "families", "models"}}


def unit_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imported_units(path: Path) -> set[str]:
    """First-level units of jaxem that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" if node.module == "jaxem" else node.module for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("jaxem.")}
    return found


def units() -> list[tuple[Path, str]]:
    return [(path, unit_of(path)) for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def test_every_module_has_a_layer():
    unknown = {unit for _, unit in units()} - set(RANK)
    assert not unknown, f"add to LAYERS: {sorted(unknown)}"


def test_imports_go_downward_only():
    wrong = []
    for path, unit in units():
        for other in imported_units(path) - {unit}:
            above = RANK[other] > RANK[unit]
            if above or other in BARRED.get(unit, ()):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_models_know_no_engine():
    lower = {"types", "numerics", "constraints", "affine", "blocks", "validation", "priors", "init", "sequences", "documents"}
    for path, unit in units():
        if unit in lower | {"latents", "operators", "families", "models"}:
            assert not imported_units(path) & {"engine", "evaluate", "check"}, path


def test_nothing_below_imports_the_facade():
    for path, unit in units():
        if unit not in FACADE:
            assert not imported_units(path) & FACADE, path


def test_the_layer_test_sees_a_wrong_import(tmp_path):
    path = tmp_path / "wrong.py"
    lines = ["from jaxem.models.mixture import Mixture", "from jaxem import engine, blocks", "import jaxem.cli"]
    path.write_text("def f():\n    " + "\n    ".join(lines) + "\n")
    assert imported_units(path) == {"models", "engine", "blocks", "cli"}


def test_import_pulls_in_no_extra():
    extras = ["rich", "matplotlib", "sklearn", "pandas", "polars", "pyarrow", "orbax", "statsmodels", "scipy", "hmmlearn"]
    code = f"""
import sys, jax, optax
before = set(sys.modules)
import jaxem
print([name for name in {extras} if name in sys.modules and name not in before])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
