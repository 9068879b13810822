"""Two runs of `build_vocab` on one folder: the vocabulary that can be loaded is that of one run, and of its summary."""

import random
from functools import partial
from pathlib import Path

import pytest

from evilm.config.stages import BuildVocab
from evilm.errors import VocabError
from evilm.io import ownership, storage
from evilm.io.outputs import SUMMARY
from evilm.text.vocab import Vocab
from evilm.text.vocab_builder import build_vocab
from helpers.two_drivers import finish, start

pytestmark = pytest.mark.faults


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    place = tmp_path / "captions.txt"
    place.write_text("".join(f"a {color} ball rolls {n} times\n" for color in ("red", "blue") for n in range(20)))
    return place


def settings(captions: Path, out: str, words: int = 80, **values: object) -> BuildVocab:
    there = {"manifest": str(captions), "out": out, "words.train_size": words, "tracking.enabled": False}
    return BuildVocab().override(there | values)


def load(out: str) -> Vocab | None:
    """The vocabulary; None where its files are those of two runs."""
    try:
        return Vocab.load(out)
    except VocabError as error:
        if "was changed after it was written" not in str(error):
            raise
        return None


def test_late_write_of_a_run_that_was_taken_over_is_noticed(captions: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "vocab")
    build_vocab(settings(captions, out))
    other = Vocab.load(out)
    build_vocab(settings(captions, out, words=66, overwrite=True))
    storage.write_bytes(f"{out}/vocab.txt", ("\n".join(other.pieces) + "\n").encode())
    for read in (lambda: Vocab.load(out), lambda: build_vocab(settings(captions, out, words=66))):
        with pytest.raises(VocabError, match=r"vocab\.txt was changed after it was written: .*with --overwrite"):
            read()
    build_vocab(settings(captions, out, words=66, overwrite=True))
    assert Vocab.load(out).size <= 66


@pytest.mark.parametrize("trials", [range(3), pytest.param(range(3, 40), marks=pytest.mark.long)], ids=["few", "many"])
def test_vocabulary_is_that_of_the_newest_summary(captions: Path, out_uri: str, trials: range) -> None:
    for trial in trials:
        rng, out = random.Random(trial), f"{out_uri}{trial}"
        first = start(partial(build_vocab, settings(captions, out)), rng.randint(1, 40))
        taking = settings(captions, out, words=66, overwrite=True, take_over=True)
        second = start(partial(build_vocab, taking), rng.choice([0, rng.randint(1, 40)]))
        codes = finish(first), finish(second)
        assert 0 in codes
        found = load(out)
        if found is None:  # the first run was stopped within its last write
            build_vocab(taking)
            found = load(out)
        assert found
        assert found.fingerprint == ownership.published(out, SUMMARY)["fingerprint"], (trial, codes)
