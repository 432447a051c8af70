"""The command line: what it writes, and one clear line for everything that a user can get wrong."""

import csv
import errno
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxem
from jaxem import cli
from jaxem.cli import main
from jaxem.data import tables

pytest.importorskip("rich")
pytest.importorskip("matplotlib")


def run(*argv):
    """`python -m jaxem ...` in a process of its own: the command switches JAX to float64 for good."""
    return subprocess.run([sys.executable, "-m", "jaxem", *map(str, argv)], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "made" / "by the command"
    done = run("demo", "--components", "2,3", "--covariance", "tied", "--restarts", 8, "--out", out)
    assert done.returncode == 0, done.stderr
    return done, out


def test_demo_finds_the_known_optimum(demo):
    done, out = demo
    about = json.loads((out / "parameters.json").read_text())
    assert (about["covariance"], about["n_components"], about["n_params"]) == ("tied", 3, 11)
    assert about["loglik"] == pytest.approx(-1126.315927824, abs=1e-7)
    assert about["bic"] == pytest.approx(2314.29568, abs=1e-5)
    assert about["columns"] == ["eruptions", "waiting"] and about["jaxem"] == jaxem.__version__
    assert "chosen: tied, 3 components" in done.stdout and "2314.29568" in done.stdout
    assert done.stderr == ""


def test_parameters_are_the_same_in_both_files(demo):
    _, out = demo
    params = json.loads((out / "parameters.json").read_text())["params"]
    with np.load(out / "parameters.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["components.covariance", "components.mean", "weights"]
        np.testing.assert_array_equal(arrays["weights"], params["weights"])
        np.testing.assert_array_equal(arrays["components.mean"], params["components"]["mean"])
        np.testing.assert_array_equal(arrays["components.covariance"], params["components"]["covariance"])
    assert params["weights"] == sorted(params["weights"], reverse=True)


def test_responsibilities_follow_from_the_parameters(demo):
    scipy_stats = pytest.importorskip("scipy.stats")
    _, out = demo
    with np.load(out / "parameters.npz") as arrays:
        weights, means, covariance = arrays["weights"], arrays["components.mean"], arrays["components.covariance"]
    x = jaxem.datasets.old_faithful()
    joint = np.stack([w * scipy_stats.multivariate_normal(m, covariance).pdf(x) for w, m in zip(weights, means)], 1)
    names, table = tables.read_table(out / "responsibilities.csv")
    assert names == ["p_1", "p_2", "p_3", "component"]
    np.testing.assert_allclose(table[:, :3], joint / joint.sum(1, keepdims=True), atol=1e-9)
    np.testing.assert_array_equal(table[:, 3], joint.argmax(1) + 1)


def test_table_lists_every_model_and_marks_one(demo):
    _, out = demo
    with open(out / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["covariance"], r["components"], r["chosen"]) for r in rows] == [("tied", "2", "0"), ("tied", "3", "1")]
    assert min(rows, key=lambda r: float(r["bic"]))["chosen"] == "1"


def test_picture_is_a_png(demo):
    _, out = demo
    content = (out / "picture.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 20_000


def test_fit_reads_a_file_without_header_and_of_one_column(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 1)) + 10 * (np.arange(40) % 2)[:, None]
    path = tmp_path / "values.csv"
    np.savetxt(path, x)
    done = run("fit", path, "--components", "1:2", "--covariance", "spherical", "--restarts", 2, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "out" / "parameters.json").read_text())
    assert about["columns"] == ["column 1"] and about["n_components"] == 2 and about["n_rows"] == 40
    assert (tmp_path / "out" / "picture.png").exists()


@pytest.mark.published
def test_a_constant_column_ends_with_a_status(tmp_path):
    path = tmp_path / "constant.csv"
    path.write_text("a,b\n" + "".join(f"{i % 7},5\n" for i in range(30)))
    done = run("fit", path, "--components", "1,2", "--covariance", "diag", "--restarts", 2, "--out", tmp_path / "out")
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 1)
    assert "DEGENERATE: a component collapsed" in done.stdout


# --- interrupts and full disks -----------------------------------------------------------------
def one_fit(models, data, **options):
    """In place of `select`: the smallest model, and no fit."""
    params = {"weights": np.ones(1), "components": {"mean": data.mean(0)[None], "covariance": np.cov(data.T)}}
    one, count = np.float64(-1289.5), np.int32(2)
    restarts = jaxem.Restarts(one[None], one[None], count[None], count[None], np.zeros((1, 1)))
    result = jaxem.Result(params, None, one, one, np.int32(1), np.int32(1), count, np.zeros(1), restarts, models[-1])
    return jaxem.Selection((jaxem.Candidate(models[-1], result, 5, 2607.0),), "bic")


@pytest.fixture
def at_once(monkeypatch):
    """The command in this process, its fits made up."""
    before = jax.config.jax_enable_x64
    monkeypatch.setattr(cli, "select", one_fit)
    yield lambda *argv: main(["demo", "--components", "1,2", "--covariance", "tied", *map(str, argv)])
    jax.config.update("jax_enable_x64", before)


def test_an_interrupt_writes_what_is_finished(at_once, tmp_path, capsys):
    assert at_once("--out", tmp_path) == 130
    assert capsys.readouterr().err == f"jaxem: interrupted: 1 of 2 models were fitted, and are in {tmp_path}/\n"
    assert json.loads((tmp_path / "parameters.json").read_text())["n_components"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "parameters.json", "parameters.npz", "picture.png", "responsibilities.csv", "table.csv",
    ]  # fmt: skip


@pytest.mark.published
def test_ctrl_c_in_a_process_of_its_own(tmp_path):
    """After the first of four models, two in work at once."""
    code = """
import os, signal, sys
from jaxem import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
select, once = cli.select, iter([os.getpid()])
def interrupted(*args, on_fit, **options):
    return select(*args, on_fit=lambda c: [on_fit(c), *(os.kill(pid, signal.SIGINT) for pid in once)], **options)
cli.select = interrupted
cli.command()
"""
    argv = ["demo", "--components", "1:4", "--covariance", "spherical", "--restarts", "2", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=300)
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("jaxem: interrupted: ") and done.stderr.count("\n") == 1
    assert len(list(tmp_path.iterdir())) == 5


def test_an_interrupt_before_the_first_is_one_line(at_once, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "select", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert at_once("--out", tmp_path) == 130
    assert capsys.readouterr() == ("", "jaxem: interrupted\n") and not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_the_fit_is_not_lost(at_once, tmp_path, capsys, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(cli, "write_bytes", full)
    assert at_once("--out", tmp_path) == 2
    said = capsys.readouterr()
    assert (
        said.err
        == f"jaxem: error: {tmp_path}/parameters.json: No space left on device; the parameters are on standard output\n"
    )
    assert json.loads(said.out[said.out.index("\n{") :])["n_components"] == 1


# --- what a user can get wrong ---------------------------------------------------------------
FILES = {
    "empty": ("", "the file is empty"),
    "blank": ("\n\n  \n", "the file is empty"),
    "header": ("a,b\n", "no rows below the header"),
    "word": ("a,b\n1,2\n3,x\n", "column 'b', line 3: 'x' is not a number"),
    "no header": ("1,2\n3,4\n5,six\n", "column 'column 2', line 3: 'six' is not a number"),
    "half a header": ("1,b\n1,2\n", "column 'column 2', line 1: 'b' is not a number"),
    "missing": ("a,b\n1,2\n,4\n", "column 'a', line 3: the value is missing"),
    "nan": ("a,b\n1,2\nnan,4\n", "column 'a', line 3: 'nan' is not finite"),
    "infinite": ("a,b\n1,2\n1,-inf\n", "column 'b', line 3: '-inf' is not finite"),
    "underscore": ("a,b\n1,2\n1_0,4\n", "column 'a', line 3: '1_0' is not a number"),
    "ragged": ("a,b\n1,2\n3\n", "line 3 has 1 fields where 2 were expected"),
    "short": ("a,b\n1,2\n3,4\n", "too short: 2 rows, and up to 9 components need at least 9"),
    "one": ("a,b\n1,2\n", "too short: 1 row, "),
}


def fails(capsys, argv, *fragments):
    assert main([str(a) for a in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("jaxem: error: ") and captured.err.count("\n") == 1
    for fragment in fragments:
        assert fragment in captured.err


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_one_line(tmp_path, capsys, name):
    content, message = FILES[name]
    path = tmp_path / "data.csv"
    path.write_text(content)
    fails(capsys, ["fit", path, "--out", tmp_path / "out"], str(path), message)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_a_directory_and_bytes(tmp_path, capsys):
    fails(capsys, ["fit", tmp_path / "none.csv"], "none.csv: no such file")
    fails(capsys, ["fit", tmp_path], "is a directory")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x01")
    fails(capsys, ["fit", tmp_path / "bytes.csv"], "not a UTF-8 text file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--components", "0:3"], "--components must be"),
        (["--components", "3:1"], "--components must be a range that rises"),
        (["--components", "1:2:3"], "--components must be"),
        (["--components", "two"], "--components must be"),
        (["--components", "273"], "too short: 272 rows"),
        (["--covariance", "round"], "--covariance must be of full, tied, diag, spherical; got 'round'"),
        (["--restarts", "0"], "--restarts must be an integer of at least 1"),
        (["--restarts", "1.5"], "--restarts must be"),
        (["--seed", "-1"], "--seed"),
        (["--seed", "x"], "--seed must be"),
        (["--unknown"], "--unknown"),
    ],
)
def test_a_bad_option_is_one_line(capsys, options, message):
    fails(capsys, ["demo", *options], message)


def test_no_command_is_one_line(capsys):
    fails(capsys, [], "required")


def test_out_that_is_a_file(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    fails(capsys, ["demo", "--out", tmp_path / "out"], "--out", "cannot make the directory")


@pytest.mark.parametrize("name", ["rich", "matplotlib"])
def test_a_missing_extra_says_how_to_get_it(monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)
    fails(capsys, ["demo"], f"{name} is not installed", 'pip install "jaxem[cli]"')


def test_plot_without_matplotlib(monkeypatch):
    from jaxem import plot

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "jaxem\[plot\]"'):
        plot.require_matplotlib()


def test_errors_leave_the_precision_of_jax_alone(capsys):
    before = jax.config.jax_enable_x64
    fails(capsys, ["fit", "none.csv"], "no such file")
    assert jax.config.jax_enable_x64 == before


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"jaxem {jaxem.__version__}\n"
