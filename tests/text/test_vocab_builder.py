"""Keeping the frequent part of a vocabulary, and training one."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from evilm.config.data import VocabConfig
from evilm.config.stages import BuildVocab
from evilm.errors import ConfigError, VocabError
from evilm.manifests.captions import read_captions
from evilm.text import Vocab
from evilm.text.vocab import SPECIALS, read_pieces
from evilm.text.vocab_builder import build_vocab, describe, keep_frequent, train_wordpiece

BASE = [
    "[PAD]",
    "[unused0]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "b",
    "##b",
    "犬",
    "cat",
    "dog",
    "fish",
    "##gy",
    "cow",
]


def test_keep_frequent_by_hand():
    captions = ["doggy dog a", "dog  fish\tcow", "cow fish"]  # dog 3, ##gy 1, fish 2, cow 2
    # 5 special tokens, 3 ASCII characters, then dog, fish, cow by count (fish before cow: base order).
    assert keep_frequent(BASE, captions, 9 / 15) == [*SPECIALS, "a", "b", "##b", "dog"]
    assert keep_frequent(BASE, captions, 10 / 15) == [*SPECIALS, "a", "b", "##b", "dog", "fish"]
    assert keep_frequent(BASE, captions, 11 / 15)[-3:] == ["dog", "fish", "cow"]
    # Then unseen entries in base order, foreign characters and [unused] last.
    assert keep_frequent(BASE, captions, 13 / 15) == [*SPECIALS, "a", "b", "##b", "cat", "dog", "fish", "##gy", "cow"]
    assert "犬" in keep_frequent(BASE, captions, 14 / 15)
    assert keep_frequent(BASE, captions, 1.0) == BASE


def test_keep_frequent_without_captions_and_too_small():
    assert keep_frequent(BASE, [""], 9 / 15) == [*SPECIALS, "a", "b", "##b", "cat"]
    with pytest.raises(VocabError, match=r"keep_ratio = 0\.1"):
        keep_frequent(BASE, ["dog"], 0.1)
    with pytest.raises(VocabError, match=r"\[CLS\]"):
        keep_frequent(["a", "b"], ["a"], 1.0)


def test_seen_foreign_characters_are_kept_before_words():
    assert "犬" in keep_frequent(BASE, ["犬 dog dog dog dog"], 9 / 15)


def test_training_does_not_depend_on_row_order_or_process(shared_data: Path):
    captions = read_captions(str(shared_data / "clips.csv"))
    first = train_wordpiece(captions, 500)
    random.Random(0).shuffle(captions)
    assert train_wordpiece(captions, 500) == first
    code = (
        "import json, sys; from evilm.text.vocab_builder import train_wordpiece;"
        "print(json.dumps(train_wordpiece(json.load(sys.stdin), 500)))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(captions), capture_output=True, text=True, check=True
    )
    assert json.loads(other.stdout) == first
    assert len(first) == 500
    assert tuple(first[:5]) == SPECIALS
    assert describe(Vocab(first), captions)["unk_ratio"] == 0


def test_training_learns_words_that_are_frequent_enough():
    pieces = train_wordpiece(["zebra zebra zebra quagga"] * 10, 40, min_frequency=20)
    assert "zebra" in pieces
    assert "quagga" not in pieces
    assert Vocab(pieces).decode(Vocab(pieces).encode("zebra quagga")) == "zebra quagga"


def test_training_on_too_many_characters_stays_in_size():
    captions = ["".join(chr(0x4E00 + i) for i in range(600)) + " dog dog dog dog"]
    pieces = train_wordpiece(captions, 100)
    assert len(pieces) <= 100
    assert "dog" in Vocab(pieces).decode(Vocab(pieces).encode("dog"))


def test_build_vocab_reports_reuses_and_rejects(tmp_path: Path):
    (tmp_path / "c.csv").write_text("videoid,name,split\n1,a red ball,train\n2,a blue ball,train\n3,a zebra,test\n")
    config = BuildVocab(manifest=str(tmp_path / "c.csv"), out=str(tmp_path / "v"), words=VocabConfig(train_size=64))
    summary = build_vocab(config)
    assert summary["num_captions"] == 2
    assert summary["unk_ratio"] == 0
    assert summary["words_max"] == 5
    assert (summary["method"], summary["reused"]) == ("train_wordpiece", False)
    vocab = Vocab.load(str(tmp_path / "v"))
    assert (vocab.size, vocab.fingerprint) == (summary["num_words"], summary["fingerprint"])
    assert build_vocab(config)["reused"] is True
    (tmp_path / "v" / "vocab.txt").unlink()
    assert build_vocab(config)["reused"] is False
    assert Vocab.load(str(tmp_path / "v")).fingerprint == vocab.fingerprint
    with pytest.raises(ConfigError, match="train_size"):
        build_vocab(config.override({"words.train_size": 70}))
    with pytest.raises(ConfigError, match="--manifest is missing"):
        build_vocab(BuildVocab(out=str(tmp_path / "w")))


def test_bert_vocabulary_on_coco(shared_data: Path, tmp_path: Path):
    annotations = shared_data / "annotations"
    base_vocab = annotations / "bert" / "bert-base-uncased-vocab.txt"
    manifest = annotations / "coco_captions" / "captions_val2017.part.json"
    config = BuildVocab(manifest=str(manifest), base_vocab=str(base_vocab), out=str(tmp_path / "v"))
    summary = build_vocab(config)
    assert (summary["base_words"], summary["num_words"]) == (30522, 9157)
    assert summary["unk_ratio"] == 0
    # Exact counts: every entry the whole vocabulary uses on the captions is kept, since they are fewer than 9,157.
    base, captions = Vocab(read_pieces(str(base_vocab))), read_captions(str(manifest))
    used = Counter(piece for ids in base.cut(captions) for piece in ids)
    kept = set(Vocab.load(str(tmp_path / "v")).pieces)
    assert {base.pieces[index] for index in used} <= kept
    assert describe(Vocab.load(str(tmp_path / "v")), read_captions(str(shared_data / "clips.csv")))["unk_ratio"] == 0
