"""The command `jaxem`: fit Gaussian mixtures to a table and choose one. Needs pip install "jaxem[cli]"."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from jaxem import datasets
from jaxem._version import __version__
from jaxem.data.tables import read_table
from jaxem.engine.stop import Stop
from jaxem.evaluate.selection import Candidate, Selection, aic, select
from jaxem.families.covariance import SHAPES
from jaxem.models.mixture import GaussianMixture
from jaxem.storage.atomic import checked_folder, write_bytes
from jaxem.storage.export import csv_of_table, json_of_params, npz_of_params
from jaxem.types import FitError, Params, Status

#: What `demo` calls its columns in the picture.
FAITHFUL = ("duration of the eruption (minutes)", "waiting time to the next eruption (minutes)")

#: Exit code after an interrupt: what shells give for SIGINT.
INTERRUPTED = 130

#: Tight, so that the printed digits of the log-likelihood are all true.
STOP = Stop(loglik_rtol=1e-12)


class _Table(NamedTuple):
    """What is fitted, and what to call it."""

    data: np.ndarray
    names: list[str]  # of its columns, in files
    labels: tuple[str, ...]  # of its columns, in the picture
    title: str


class UsageError(Exception):
    """Something that the user can mend; the message is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage that argparse puts before it."""
        raise UsageError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments; None for those of the process.

    Returns:
        Exit code: 0; 2 after one line on stderr that says what to mend; 1 where every fit failed; 130 after an interrupt.
    """
    try:
        args = _parser().parse_args(argv)
        _require_extras()
        if args.command == "demo":
            data, title = datasets.old_faithful(), "Old Faithful: Gaussian mixtures chosen by BIC"
            table = _Table(data, ["eruptions", "waiting"], FAITHFUL, title)
        else:
            names, data = _read(args)
            table = _Table(data, names, tuple(names), f"{Path(args.file).name}: Gaussian mixtures chosen by BIC")
        _check_rows(args, data)
        out = _directory(args.out)
        jax.config.update("jax_enable_x64", True)
        selection, n_models = _select(args, data)
        _print(selection, data, table.title)
        _write(out, selection, table, args)
        if len(selection.candidates) < n_models:
            done = f"{len(selection.candidates)} of {n_models} models were fitted, and are in {out}{os.sep}"
            print(f"jaxem: interrupted: {done}", file=sys.stderr)
            return INTERRUPTED
    except KeyboardInterrupt:
        print("jaxem: interrupted", file=sys.stderr)
        return INTERRUPTED
    except UsageError as error:
        print(f"jaxem: error: {error}", file=sys.stderr)
        return 2
    except FitError as error:
        print(f"jaxem: error: {error}", file=sys.stderr)
        return 1
    return 0


def command() -> NoReturn:
    """The command as a process of its own."""
    code = main()
    if code == INTERRUPTED:  # threads may still compile, which nobody waits for
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


# --- arguments -------------------------------------------------------------------------------
def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="jaxem", description="Expectation-Maximization in JAX: Gaussian mixtures from the command line.")
    parser.add_argument("--version", action="version", version=f"jaxem {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{demo,fit}")
    demo = commands.add_parser("demo", help="fit the Old Faithful data", description="Fit the Old Faithful data.")
    fit = commands.add_parser("fit", help="fit a numeric CSV file", description="Fit a numeric CSV file.")
    fit.add_argument("file", metavar="FILE.csv", help="numeric columns; a header line is found by itself")
    fit.add_argument("--header", choices=["yes", "no"], help="whether the first line is one, where that is not plain")
    fit.add_argument("--index", choices=["drop", "keep"], help="what to do with a first column that numbers the rows")
    for command, out in ((demo, "demo-out"), (fit, "fit-out")):
        default = "1:6" if command is demo else "1:9"
        command.add_argument("--out", metavar="DIR", default=out, help="directory for the results (default: %(default)s)")
        command.add_argument(
            "--components", metavar="A:B", type=_components, default=_components(default),
            help=f"numbers of components, such as 1:9 or 2,3,5 (default: {default})",
        )  # fmt: skip
        command.add_argument(
            "--covariance", metavar="KINDS", type=_covariances, default=list(SHAPES),
            help=f"kinds of covariance, with commas (default: {','.join(SHAPES)})",
        )  # fmt: skip
        command.add_argument(
            "--restarts", metavar="R", type=_integer("--restarts", 1), default=64,
            help="starts of each model (default: %(default)s)",
        )  # fmt: skip
        command.add_argument("--seed", metavar="S", type=_integer("--seed", 0), default=0, help="default: %(default)s")
    return parser


def _integer(name: str, least: int) -> Any:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not least <= int(text) < 2**31:
            raise UsageError(f"{name} must be an integer of at least {least}; got {text!r}")
        return int(text)

    return parse


def _components(text: str) -> list[int]:
    """'1:9', '3' or '2,3,5'."""
    numbers: list[int] = []
    for part in text.split(","):
        ends = part.split(":")
        if len(ends) > 2 or not all(end.isascii() and end.isdigit() and int(end) >= 1 for end in ends):
            raise UsageError(f"--components must be a range such as 1:9, or numbers such as 2,3,5, from 1; got {text!r}")
        if int(ends[-1]) < int(ends[0]):
            raise UsageError(f"--components must be a range that rises; got {text!r}")
        numbers += range(int(ends[0]), int(ends[-1]) + 1)
    return sorted(set(numbers))


def _covariances(text: str) -> list[str]:
    kinds = [kind.strip() for kind in text.split(",")]
    for kind in kinds:
        if kind not in SHAPES:
            raise UsageError(f"--covariance must be of {', '.join(SHAPES)}; got {kind!r}")
    return list(dict.fromkeys(kinds))


def _require_extras() -> None:
    # Before the work, not after it.
    for name in ("rich", "matplotlib"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise UsageError(f'{name} is not installed; the command needs: pip install "jaxem[cli]"') from None


def _read(args: argparse.Namespace) -> tuple[list[str], np.ndarray]:
    header, index = {"yes": True, "no": False}.get(args.header), {"drop": True, "keep": False}.get(args.index)
    try:
        return read_table(args.file, header=header, index=index)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _check_rows(args: argparse.Namespace, data: np.ndarray) -> None:
    least = max(2, *args.components)
    if len(data) < least:
        source = "Old Faithful" if args.command == "demo" else args.file
        rows = f"{len(data)} row{'s' if len(data) > 1 else ''}"
        raise UsageError(
            f"{source}: too short: {rows}, and up to {max(args.components)} components need at least {least}; see --components"
        )


def _directory(path: str) -> Path:
    out = Path(path)
    try:
        checked_folder(out)
    except OSError as error:
        what = "the directory cannot be written to" if out.is_dir() else "cannot make the directory"
        raise UsageError(f"--out {path}: {what} ({error.strerror})") from None
    return out


# --- work ------------------------------------------------------------------------------------
def _select(args: argparse.Namespace, data: np.ndarray) -> tuple[Selection, int]:
    """Fit every model, with a progress bar on a terminal; and how many there are."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    # The largest first, so that no long fit is left for the end.
    models = [GaussianMixture(k, kind) for k in reversed(args.components) for kind in args.covariance]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"fitting, {args.restarts} restarts each", total=len(models))
        selection = select(
            models, data, key=jax.random.key(args.seed), n_restarts=args.restarts, stop=STOP,
            workers=min(8, max(2, os.cpu_count() or 1)), on_fit=lambda _: progress.advance(task),
        )  # fmt: skip
    order = sorted(selection.candidates, key=lambda c: (args.covariance.index(_kind(c)), _size(c)))
    return Selection(tuple(order), selection.criterion), len(models)


def _kind(candidate: Candidate) -> str:
    return candidate.model.family.covariance  # type: ignore[attr-defined]


def _size(candidate: Candidate) -> int:
    return candidate.model.n_components  # type: ignore[attr-defined]


def _status(candidate: Candidate) -> str:
    return "FAILED" if candidate.result is None else Status(int(candidate.result.status)).name


def _print(selection: Selection, data: np.ndarray, title: str) -> None:
    """The grid of BIC, and the chosen model."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    best = selection.best
    kinds = list(dict.fromkeys(map(_kind, selection.candidates)))
    sizes = sorted(set(map(_size, selection.candidates)))
    by_place = {(_size(c), _kind(c)): c for c in selection.candidates}
    table = Table(title=title, caption="BIC, lower is better; below it the log-likelihood", title_style="bold")
    table.add_column("components", justify="right")
    for kind in kinds:
        table.add_column(kind, justify="right", no_wrap=True)
    for size in sizes:
        table.add_row(str(size), *(_cell(by_place.get((size, kind)), best) for kind in kinds))
    console.print(table)
    if any(c.degenerate for c in selection.candidates):
        console.print("† a component without width in every restart, its likelihood meaningless: chosen only where all are")
    if best.result is None:
        return
    plural = "s" if _size(best) > 1 else ""
    console.print(f"chosen: [bold]{_kind(best)}, {_size(best)} component{plural}[/bold] ({_status(best)})", soft_wrap=True)
    if ending := best.result.ending:
        console.print(ending, soft_wrap=True)
    console.print(
        f"BIC {best.score:.5f}, log-likelihood {float(best.result.loglik):.9f}, {best.n_free_params} parameters,"
        f" {len(data)} rows", soft_wrap=True,
    )  # fmt: skip


def _cell(candidate: Candidate | None, best: Candidate) -> str:
    if candidate is None:
        return "-"
    if candidate.result is None:
        return "failed"
    score, loglik = f"{candidate.score:.3f}" + "†" * candidate.degenerate, f"{float(candidate.result.loglik):.3f}"
    return f"[bold green]{score}\n{loglik}[/bold green]" if candidate is best else f"{score}\n[dim]{loglik}[/dim]"


def _write(out: Path, selection: Selection, table: _Table, args: argparse.Namespace) -> None:
    """parameters.json and .npz, table.csv, responsibilities.csv, picture.png."""
    from jaxem.plot import selection_figure

    data, best = table.data, selection.best
    result = best.result
    if result is None:
        raise FitError("every restart of every model failed")
    about = {
        "jaxem": __version__,
        "covariance": _kind(best),
        "n_components": _size(best),
        "columns": table.names,
        "n_rows": len(data),
        "loglik": float(result.loglik),
        "bic": best.score,
        "aic": float(aic(result, data)),
        "n_params": best.n_free_params,
        "status": _status(best),
        "n_steps": int(result.n_steps),
        "restarts": args.restarts,
        "seed": args.seed,
    }
    order = np.argsort(-np.asarray(result.params["weights"]), kind="stable")
    params = _ordered(result.params, order, _kind(best))
    text, written = json_of_params(params, about), []

    def write(name: str, content: bytes | str) -> None:
        write_bytes(out / name, content.encode() if isinstance(content, str) else content)
        written.append(name)

    try:  # what takes time to compute comes last
        write("parameters.json", text)
        write("parameters.npz", npz_of_params(params))
        columns = ["covariance", "components", "loglik", "n_params", "bic", "status", "n_steps", "chosen"]
        write("table.csv", csv_of_table(columns, (_row(c, c is best) for c in selection.candidates)))
        responsibilities = np.asarray(best.model.posterior(result.params, data))[:, order]
        columns = [*(f"p_{k + 1}" for k in range(_size(best))), "component"]
        rows = ([*map(float, row), int(row.argmax()) + 1] for row in responsibilities)
        write("responsibilities.csv", csv_of_table(columns, rows))
        picture = io.BytesIO()
        selection_figure(data, selection, labels=table.labels, title=table.title).savefig(picture, format="png")
        write("picture.png", picture.getvalue())
    except (OSError, ValueError) as error:
        print(text, end="")  # so that the fit is not lost
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        raise UsageError(f"{reason}; the parameters are on standard output") from None
    print(f"written to {out}{os.sep}: {', '.join(written)}")


def _ordered(params: Params, order: np.ndarray, kind: str) -> Params:
    """Components by falling weight, so that their numbers do not hang on the seed."""
    components = dict(params["components"])
    for name, leaf in components.items():
        if not (name == "covariance" and kind == "tied"):
            components[name] = np.asarray(leaf)[order]
    return {"weights": np.asarray(params["weights"])[order], "components": components}


def _row(candidate: Candidate, chosen: bool) -> list[Any]:
    result = candidate.result
    loglik, steps = ("", "") if result is None else (float(result.loglik), int(result.n_steps))
    score = candidate.score if result is not None else ""
    return [_kind(candidate), _size(candidate), loglik, candidate.n_free_params, score, _status(candidate), steps, int(chosen)]
