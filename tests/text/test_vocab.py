"""Encoding and decoding captions."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evilm.errors import VocabError
from evilm.text import Vocab
from evilm.text.vocab import SPECIALS, read_pieces
from evilm.text.vocab_builder import train_wordpiece

PIECES = [*SPECIALS, "a", "red", "ball", "##s", "roll", "##ing", "dog", ",", "."]
VOCAB = Vocab(PIECES)
LETTERS = Vocab(train_wordpiece(["the quick brown fox jumps over the lazy dog 0123456789 x-ray's é ü ☃ 犬"], 400))


def test_encode_by_hand():
    assert VOCAB.encode("A red  BALL, rolling.", 40) == [2, 5, 6, 7, 12, 9, 10, 13, 3]
    assert VOCAB.decode(VOCAB.encode("A red  BALL, rolling.")) == "a red ball , rolling ."
    assert VOCAB.encode("", 40) == [2, 3]


def test_unknown_word_is_unk_and_others_stay():
    assert VOCAB.encode("a cat red") == [2, 5, 1, 6, 3]
    assert VOCAB.decode(VOCAB.encode("a cat red")) == "a [UNK] red"


@pytest.mark.parametrize("max_text_len", [2, 3, 4, 5, 6, 40])
def test_truncation_keeps_sep(max_text_len: int):
    ids = VOCAB.encode("a red ball", max_text_len)
    assert len(ids) == min(max_text_len, 5)
    assert (ids[0], ids[-1]) == (VOCAB.cls_id, VOCAB.sep_id)
    assert VOCAB.is_truncated("a red ball", max_text_len) == (max_text_len < 5)


def test_max_text_len_below_two_is_rejected():
    with pytest.raises(VocabError, match="max_text_len = 1"):
        VOCAB.encode("a", 1)


def test_batch_is_padded_to_the_longest():
    input_ids, lengths = VOCAB.encode_batch(["a red ball", "", "dog"], 4)
    assert input_ids.tolist() == [[2, 5, 6, 3], [2, 3, 0, 0], [2, 11, 3, 0]]
    assert lengths.tolist() == [4, 2, 3]
    assert input_ids.dtype == np.int64
    assert VOCAB.encode_batch([], 4)[0].shape == (0, 0)


def test_caption_words_exclude_specials_and_are_not_truncated():
    assert VOCAB.words_of("a red red cat [SEP]") == {5, 6}
    target = VOCAB.caption_words(["a red red cat", "dogs"])
    assert [np.flatnonzero(row).tolist() for row in target] == [[5, 6], [8, 11]]


def test_special_tokens_cannot_be_written_in_a_caption():
    ids = LETTERS.encode("a [SEP] [MASK] dog")
    assert ids.count(LETTERS.sep_id) == 1
    assert LETTERS.mask_id not in ids


def test_lone_surrogates_and_long_words_are_encoded():
    assert LETTERS.encode("dog \ud800")[:2] == LETTERS.encode("dog")[:2]
    assert LETTERS.encode("x" * 500) == [LETTERS.cls_id, LETTERS.unk_id, LETTERS.sep_id]


@settings(deadline=None)
@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyzABCXYZ0123456789 \t\n-'éÜ☃犬", max_size=60))
def test_round_trip_is_exact_where_all_characters_are_known(caption: str):
    decoded = LETTERS.decode(LETTERS.encode(caption, 10_000))
    assert decoded == LETTERS.normalise(caption)
    # Nothing but case, accents, white space and spacing of punctuation is lost.
    folded = caption.lower().replace("é", "e").replace("ü", "u")
    assert "".join(decoded.split()) == "".join(folded.split())


@settings(deadline=None)
@given(st.text(max_size=60))
def test_round_trip_is_exact_up_to_unk(caption: str):
    words = LETTERS.normalise(caption).split(" ")
    decoded = LETTERS.decode(LETTERS.encode(caption, 10_000)).split(" ")
    assert len(words) == len(decoded)
    assert all(there in (word, "[UNK]") for word, there in zip(words, decoded, strict=True))


def test_save_load_pickle_and_fingerprint(tmp_path):
    VOCAB.save(str(tmp_path / "v"))
    loaded = Vocab.load(str(tmp_path / "v"))
    assert loaded.pieces == VOCAB.pieces
    assert loaded.fingerprint == VOCAB.fingerprint == pickle.loads(pickle.dumps(VOCAB)).fingerprint
    swapped = [*PIECES[:5], PIECES[6], PIECES[5], *PIECES[7:]]
    assert Vocab(swapped).fingerprint != VOCAB.fingerprint


def test_plain_bert_folder_loads_and_odd_lines_survive(tmp_path):
    pieces = [*SPECIALS, "a", "\u2028", "b"]
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(pieces).encode())
    assert list(Vocab.load(str(tmp_path)).pieces) == pieces
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert list(Vocab.load(str(tmp_path)).pieces) == pieces


def test_invalid_vocabularies_are_named(tmp_path):
    with pytest.raises(VocabError, match="no vocabulary at"):
        Vocab.load(str(tmp_path / "none"))
    with pytest.raises(VocabError, match=r"without \[SEP\]"):
        Vocab([p for p in PIECES if p != "[SEP]"])
    with pytest.raises(VocabError, match="'red' more than once"):
        Vocab([*PIECES, "red"])
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(VocabError, match="not UTF-8"):
        read_pieces(str(tmp_path))
    VOCAB.save(str(tmp_path / "v"))
    settings = tmp_path / "v" / "config.json"
    settings.write_text(settings.read_text().replace('"lowercase": true', '"lowercase": false'))
    with pytest.raises(VocabError, match="other text rules"):
        Vocab.load(str(tmp_path / "v"))
