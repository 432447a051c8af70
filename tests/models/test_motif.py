"""Motifs in DNA: CRP sites against MEME's, planted motifs, strands, erasing, and sums over all sites."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import DATA

import jaxem

#: First bases, from zero, of the sites that MEME 4.12 prints (-dna -nmotifs 3, zoops), in the order of the sequences.
MEME = np.array([63, 57, 52, 9, 26, 41, 11, 16, 31, 43, 50, 73, 19, 55, 86, 80])


def crp():
    blocks = (DATA / "crp.fasta").read_text().split(">")[1:]
    return jaxem.dna(["".join(block.split("\n")[1:]).strip() for block in blocks])


def best(model, data, **options):
    starts = model.starts(data)
    return jaxem.fit(model, data, init=starts, n_restarts=len(starts), **options)


@pytest.mark.published
def test_crp_sites(x64):
    """Every subsequence as a start: at least 14 of MEME's 16 sites within 2 bases."""
    model, data = jaxem.Motif(15), crp()
    result = best(model, data)
    start, strand, probability = (np.asarray(x) for x in model.predict(result.params, data))
    assert ((np.abs(start - MEME) <= 2) & (probability > 0.5)).sum() >= 14
    assert (strand == 0).all()
    letters = "".join(np.array(list("ACGT"))[np.asarray(result.params["motif"]).argmax(1)])
    assert letters.startswith("TGTGA") and letters.endswith("TCAC")


def planted(seed, n=20, length=60, width=10):
    """Sequences of which 17 of 20 hold a motif whose letters are right four times in five."""
    rng = np.random.default_rng(seed)
    x = rng.integers(4, size=(n, length))
    consensus, place = rng.integers(4, size=width), rng.integers(length - width, size=n)
    for row, start in zip(x[:17], place, strict=False):
        wrong = rng.random(width) < 0.2
        row[start : start + width] = np.where(wrong, rng.integers(4, size=width), consensus)
    return {"x": x.astype(np.int8), "open": np.ones(x.shape, np.float32)}, place[:17]


@pytest.mark.published
def test_planted_motifs(optimised):
    model, found = jaxem.Motif(10), 0
    for seed in range(100):
        data, place = planted(seed)
        starts = model.starts(data)
        # One shape for all: a start too many repeats the first.
        filled = jax.tree.map(lambda a: jnp.concatenate([a, jnp.repeat(a[:1], 1020 - len(a), 0)]), starts.params)
        result = jaxem.fit(model, data, init=jaxem.init.Each(filled), n_restarts=1020, max_steps=20)
        start = np.asarray(model.predict(result.params, data)[0])[:17]
        found += (np.abs(start - place) <= 2).mean() > 0.5
    assert found >= 90


def enumerated(model, params, data):
    """Log-density of each sequence by adding up all places of a site."""
    motif, background, presence = (np.asarray(params[name]) for name in ("motif", "background", "presence"))
    out = []
    for x, free in zip(data["x"], data["open"], strict=True):
        x = x[x < 4]
        nothing = background[x].prod()
        sites = []
        for start, reverse in itertools.product(range(len(x) - model.width + 1), range(1 + model.both_strands)):
            site = x[start : start + model.width]
            inside = motif[np.arange(model.width), 3 - site[::-1] if reverse else site].prod()
            share = free[start : start + model.width].min()
            sites.append(share * inside * nothing / background[site].prod())
        out.append(np.log((1 - presence) * nothing + presence * np.sum(sites) / len(sites)))
    return np.array(out)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("every", [False, True])
def test_equals_the_sum_over_all_sites(x64, both, every):
    rng = np.random.default_rng(0)
    data = jaxem.dna(["ACGTACGTTA", "GGATC", "TTTTACGA"])
    data["open"] = rng.uniform(0.2, 1, data["x"].shape)
    model = jaxem.Motif(3, both_strands=both, every=every)
    params = {
        "motif": jnp.asarray(rng.dirichlet(np.ones(4), 3)),
        "background": jnp.asarray(rng.dirichlet(np.ones(4))),
        "presence": jnp.asarray(1.0 if every else 0.6),
    }
    data = model.validate(data)
    data["open"] = data["open"].astype(float)
    np.testing.assert_allclose(model.log_prob(params, data), enumerated(model, params, data), rtol=1e-10)


@pytest.mark.published
def test_both_strands(x64):
    """A motif planted on either strand at random."""
    data, place = planted(3)
    turned = np.random.default_rng(0).random(20) < 0.5
    x = np.where(turned[:, None], 3 - data["x"][:, ::-1], data["x"]).astype(np.int8)
    model = jaxem.Motif(10, both_strands=True)
    result = best(model, {**data, "x": x}, max_steps=50)
    start, strand, _ = (np.asarray(a)[:17] for a in model.predict(result.params, {**data, "x": x}))
    right = np.abs(start - np.where(turned[:17], 60 - 10 - place, place)) <= 2
    assert right.mean() > 0.7
    strands = (strand == turned[:17])[right]
    assert max(strands.mean(), 1 - strands.mean()) == 1  # up to turning everything round


@pytest.mark.published
def test_erasing_finds_the_next_motif(x64):
    data, _ = planted(1)
    model = jaxem.Motif(10)
    first = best(model, data, max_steps=50)
    erased = model.erased(first.params, model.validate(data))
    site = np.asarray(model.predict(first.params, data)[0])[:17]
    covered = np.take_along_axis(np.asarray(erased["open"])[:17], site[:, None] + np.arange(10), 1)
    assert np.median(covered) < 0.1
    second = best(model, jax.tree.map(np.asarray, erased), max_steps=50)
    again = np.asarray(model.predict(second.params, erased)[0])[:17]
    assert (np.abs(again - site) > 2).mean() > 0.8


def test_every_window_is_a_start_once():
    data = jaxem.dna(["ACGTA", "ACGNN"])
    starts = jaxem.Motif(3).starts(data)
    letters = ["".join(np.array(list("ACGT"))[window.argmax(1)]) for window in np.asarray(starts.params["motif"])]
    assert len(starts) == 3 and sorted(letters) == ["ACG", "CGT", "GTA"]


def test_letters():
    data = jaxem.dna(["ACGTU", "nacgt"])
    np.testing.assert_array_equal(data["x"], [[0, 1, 2, 3, 3], [4, 0, 1, 2, 3]])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: jaxem.dna("ACGT"), TypeError, "list of strings"),
        (lambda: jaxem.dna([]), ValueError, "at least one sequence"),
        (lambda: jaxem.dna(["ACG", ""]), ValueError, "none empty"),
        (lambda: jaxem.fit(jaxem.Motif(5), jaxem.dna(["ACGTACGT", "ACGNACGT"])), ValueError, "sequence 1 has not"),
        (lambda: jaxem.fit(jaxem.Motif(9), jaxem.dna(["ACGTACGT"])), ValueError, "width=9 known letters"),
        (lambda: jaxem.fit(jaxem.Motif(3), np.zeros((3, 5))), ValueError, "as jaxem.dna makes it"),
        (lambda: jaxem.fit(jaxem.Motif(0), jaxem.dna(["ACGT"])), ValueError, "width must be an integer of at least 1"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
