"""Files of every format, damaged and forged: they are read, or refused by ValueError, in little time and memory."""

import copy
import json
import os
import resource
import time
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import jaxem
from jaxem.data.tables import read_table
from jaxem.storage import archive

#: How many mutations of each format, so many to an example.
TOTAL, EACH = 10_000, 20
TEXTS = {
    "newick": b"((human:0.1,'brown rat':2e-2)90:0.3[a note],(mouse:1,cow:2):.5,dog)root;",
    "fasta": b">human first\nACGTRY-N\nACGU\n>mouse\nacgtnnACACGT\n>cow\nACGTACGTACGT\n",
    "phylip": b"3 8\nhuman ACGT\nmouse ACGT\ncow ACGT\n\nRY-N\nAC GT\nNNNN\n",
    "csv": b'"a",b,c\n1,2.5,-3e2\n4,"5",6\n\n7,8,9\n',
}
PIECES = (
    b"( ) , : ; [ ] ' \" \n \r \t \0 \x0b \x1c \xff \xef\xbb\xbf \xe2\x80\xa8 \xd9\xa3 nan inf 1_0 1e999 -1 0x1 ,, >".split(
        b" "
    )
)


def read_text(name, path):
    if name == "newick":
        return jaxem.read_newick(path.read_bytes().decode("utf-8", "replace"))
    return read_table(path) if name == "csv" else jaxem.read_alignment(path)


def damaged(content, codes):
    """The bytes after an edit for each code."""
    for code in codes:
        code, kind = divmod(code, 6)
        code, at = divmod(code, len(content) + 1)
        code, length = divmod(code, 9)
        piece = PIECES[code % len(PIECES)]
        before, within, after = content[:at], content[at : at + length], content[at + length :]
        content = {
            0: before + after,
            1: before + piece + within + after,
            2: before + piece + after,
            3: before + within * (code % 50) + after,
            4: before + bytes(byte ^ 1 << code % 8 for byte in within) + after,
            5: before,
        }[kind]
    return content


def fuzzed(test, total=TOTAL):
    """`test` of so many cases, one to three codes each; each soon, all in a few megabytes."""

    @settings(
        max_examples=total // EACH,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn=st.binary(min_size=16 * EACH, max_size=16 * EACH))
    def run(drawn):
        for case in np.frombuffer(drawn, "<u4").reshape(EACH, 4).tolist():
            begun = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    test(case[: 1 + case[3] % 3])
                except ValueError as error:
                    assert str(error) and len(str(error)) < 2000
            assert time.process_time() - begun < 2

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


@pytest.mark.published
@pytest.mark.parametrize("name", TEXTS)
def test_texts(tmp_path, name):
    read = []

    def one(codes):
        (tmp_path / "file").write_bytes(damaged(TEXTS[name], codes))
        read.append(read_text(name, tmp_path / "file"))

    fuzzed(one)
    assert len(read) > TOTAL // 50  # and not all of it refused


@pytest.fixture
def archived(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    one, count = jnp.float32(-1.25), jnp.int32(3)
    restarts = jaxem.Restarts(one[None], one[None], count[None], count[None], jnp.zeros((1, 2)))
    params = {"weights": jnp.full(2, 0.5), "components": {"rate": jnp.ones((2, 1))}}
    model = jaxem.Mixture(2, jaxem.Poisson(jaxem.GammaPrior(2.0, 0.5)))
    result = jaxem.Result(params, None, one, one, jnp.int32(1), count, count, jnp.zeros(2), restarts, model)
    path = tmp_path / "r.npz"
    jaxem.save(path, result)
    return path


@pytest.mark.published
def test_damaged_archives(archived):
    content, whole = archived.read_bytes(), jaxem.load(archived)

    def one(codes):
        archived.write_bytes(damaged(content, codes))
        assert str(jaxem.load(archived)) == str(whole)

    fuzzed(one)


ODD = [None, True, -1, 999, 1e308, "x", [], {}, {"dict": 3}, {"tuple": [1]}, {"array": "params.weights", "numpy": True},
       {"struct": "jaxem.Poisson", "fields": {}}, {"struct": "jaxem.Dirichlet", "fields": {"concentration": "x"}}]  # fmt: skip
ARRAYS = [
    lambda x: x[:0] if x.ndim else x[None], lambda x: x[..., None], lambda x: np.full_like(x, -1), lambda x: x.astype("U3"),
    lambda x: np.full(x.shape, np.nan), lambda x: x.T[::-1] if x.ndim else x, lambda x: np.concatenate([x.ravel()] * 3),
    lambda x: x.astype(bool), lambda x: x.astype(complex), lambda x: np.full_like(x, 999),
]  # fmt: skip


@pytest.mark.published
def test_forged_archives(archived):
    """Their digests are right."""
    stored = archive._unpacked(archived)
    header = json.loads(stored.pop("jaxem.header").tobytes())
    del stored["jaxem.digest"], stored["jaxem.format"]
    loaded = []

    def places(x, at=()):
        items = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
        items = items if len(at) < 20 else ()  # what was put into itself
        return [at] * bool(at) + [place for key, inner in items for place in places(inner, (*at, key))]

    def one(codes):
        about, arrays = copy.deepcopy(header), dict(stored)
        for code in codes:
            code, kind = divmod(code, 3)
            if kind == 0 and arrays:
                code, i = divmod(code, len(arrays))
                name = sorted(arrays)[i]
                arrays[name] = ARRAYS[code % len(ARRAYS)](arrays[name])
                about["arrays"][name] = [None, str(arrays[name].dtype), list(arrays[name].shape)]
                continue
            code, i = divmod(code, len(known := places(about)))
            *way, last = known[i]
            inner = about
            for key in way:
                inner = inner[key]
            if kind == 1:
                inner[last] = ODD[code % len(ODD)]
            else:
                del inner[last]
            if not isinstance(about.get("arrays"), dict) or about["arrays"].keys() != header["arrays"].keys():
                break
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        digest = np.frombuffer(archive._digest(text, arrays), np.uint8)
        np.savez(archived, **{"jaxem.format": np.int64(2), "jaxem.header": text, "jaxem.digest": digest, **arrays})
        loaded.append(jaxem.load(archived, model=jaxem.Mixture(2, jaxem.Poisson()) if codes[0] % 5 == 0 else None))

    fuzzed(one, TOTAL // 5)
    assert loaded and all(isinstance(result, jaxem.Result) for result in loaded)
