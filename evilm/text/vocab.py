"""The word-piece vocabulary of the text encoder: convert captions to ids and back.

A vocabulary is a folder with `vocab.txt`, one piece per line in the order of ids, and `config.json`, its settings. A
BERT folder with only a `vocab.txt` can be loaded too.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from evilm.errors import ShardError, VocabError
from evilm.io import storage
from evilm.io.ownership import published

PAD, UNK, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SETTINGS: dict[str, int | str] = {
    "kind": "vocab",
    "schema": 1,
    "normalizer": "bert",
    "lowercase": True,
    "max_chars_per_word": 100,
}
"""How text is normalised before tokenization: BERT's uncased rules, accents stripped, punctuation split off."""
_TEXT, _JSON = "vocab.txt", "config.json"


class Vocab:
    """A list of word pieces; immutable and picklable. A caption can't contain special tokens."""

    FILES = (_TEXT, _JSON)

    def __init__(self, pieces: Sequence[str]) -> None:
        """Build a vocabulary from its pieces in the order of ids.

        Raises:
            VocabError: a special token is missing, or a piece occurs twice.
        """
        self.pieces = tuple(pieces)
        self._ids = {piece: index for index, piece in enumerate(self.pieces)}
        missing = [name for name in SPECIALS if name not in self._ids]
        if missing:
            raise VocabError(f"{len(pieces)} entries without {', '.join(missing)}; needed: {', '.join(SPECIALS)}")
        if len(self._ids) != len(self.pieces):
            twice = next(piece for index, piece in enumerate(self.pieces) if self._ids[piece] != index)
            raise VocabError(f"the vocabulary holds {twice!r} more than once; keep one line per piece")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (self._ids[name] for name in SPECIALS)
        self.special_ids = frozenset(self._ids[name] for name in SPECIALS)
        self._tokenizer = piece_tokenizer(self.pieces)

    def __reduce__(self) -> tuple[type["Vocab"], tuple[tuple[str, ...]]]:
        return Vocab, (self.pieces,)

    @property
    def size(self) -> int:
        """Return the number of entries, special tokens included."""
        return len(self.pieces)

    @property
    def fingerprint(self) -> str:
        """Return a digest of the pieces, their order and the normalisation."""
        text = "\n".join(self.pieces) + "\n" + json.dumps(SETTINGS, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @classmethod
    def load(cls, uri: str | Path) -> "Vocab":
        """Load a vocabulary from its folder.

        Raises:
            VocabError: there is no vocabulary, it is of another kind, or it was changed after it was written.
        """
        settings_uri, fingerprint = storage.join(str(uri), _JSON), None
        if storage.exists(settings_uri):
            try:
                found = published(str(uri), _JSON)
            except ShardError as error:
                raise VocabError(str(error)) from None
            ours = isinstance(found, dict) and found.get("kind") == SETTINGS["kind"]  # False for a BERT folder
            if ours and found != found | SETTINGS:
                raise VocabError(
                    f"{settings_uri} was made for other text rules than {SETTINGS}; rebuild the vocabulary"
                )
            fingerprint = found.get("fingerprint") if ours else None
        place = storage.join(str(uri), _TEXT)
        vocab = cls(read_pieces(place))
        if fingerprint not in (None, vocab.fingerprint):
            raise VocabError(
                f"{place} was changed after it was written: {settings_uri} is of another; "
                "restore the file, or build the vocabulary again with --overwrite"
            )
        return vocab

    def save(self, uri: str | Path, publish: Callable[[str, Any], None] | None = None) -> None:
        """Write the folder, from which `load` returns an equal vocabulary.

        `publish` writes its settings, in a folder that another run may take over; they name the pieces that belong to
        them.
        """
        storage.write_bytes(storage.join(str(uri), _TEXT), ("\n".join(self.pieces) + "\n").encode())
        settings = SETTINGS | {"num_words": self.size, "fingerprint": self.fingerprint}
        if publish:
            publish(_JSON, settings)
        else:
            storage.write_json(storage.join(str(uri), _JSON), settings)

    def encode(self, caption: str, max_text_len: int = 40) -> list[int]:
        """Return the ids of [CLS], pieces and [SEP]; a caption over `max_text_len` ids is truncated but keeps [SEP]."""
        return self._framed(self.cut([caption])[0], max_text_len)

    def encode_batch(
        self, captions: Sequence[str], max_text_len: int = 40
    ) -> tuple[Int64[np.ndarray, "caption word"], Int64[np.ndarray, "caption"]]:
        """Encode captions, padded with [PAD] to the longest; also return each length, including [CLS] and [SEP]."""
        rows = [self._framed(ids, max_text_len) for ids in self.cut(captions)]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        input_ids = np.full((len(rows), int(lengths.max(initial=0))), self.pad_id, dtype=np.int64)
        for row, ids in zip(input_ids, rows, strict=True):
            row[: len(ids)] = ids
        return input_ids, lengths

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text: pieces joined to words, without [PAD], [CLS] and [SEP] but with [UNK] and [MASK]."""
        left_out = {self.pad_id, self.cls_id, self.sep_id}
        words: list[str] = []
        for index in ids:
            if index in left_out:
                continue
            piece = self.pieces[index]
            if piece.startswith("##") and len(piece) > 2 and words:
                words[-1] += piece[2:]
            else:
                words.append(piece)
        return " ".join(words)

    def normalise(self, caption: str) -> str:
        """Normalise a caption: lower case, no accents, punctuation split off; `decode` returns this form."""
        return " ".join(split_words(caption))

    def words_of(self, caption: str) -> set[int]:
        """Return the distinct ids of the whole caption without special tokens, the target of Eq. 5-6."""
        return set(self.cut([caption])[0]) - self.special_ids

    def caption_words(self, captions: Sequence[str]) -> Bool[np.ndarray, "caption vocab"]:
        """Return `words_of` for many captions as multi-hot rows. Paper: Eq. 6, Sec. 3.3."""
        target = np.zeros((len(captions), self.size), dtype=bool)
        for row, ids in zip(target, self.cut(captions), strict=True):
            row[ids] = True
        target[:, sorted(self.special_ids)] = False
        return target

    def num_words(self, captions: Sequence[str]) -> Int64[np.ndarray, "caption"]:
        """Return the length of each caption without truncation, including [CLS] and [SEP]."""
        return np.array([len(ids) + 2 for ids in self.cut(captions)], dtype=np.int64)

    def is_truncated(self, caption: str, max_text_len: int = 40) -> bool:
        """Check if `encode` truncates this caption."""
        return int(self.num_words([caption])[0]) > max_text_len

    def count_pieces(self, captions: Sequence[str]) -> Int64[np.ndarray, "vocab"]:
        """Count how often captions use each entry, without truncation, [CLS] and [SEP]."""
        counts = np.zeros(self.size, dtype=np.int64)
        for ids in self.cut(captions):
            np.add.at(counts, ids, 1)
        return counts

    def cut(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the ids of each caption without truncation, [CLS] and [SEP]."""
        return [encoding.ids for encoding in self._encode(captions)]

    def _framed(self, ids: list[int], max_text_len: int) -> list[int]:
        if max_text_len < 2:
            raise VocabError(f"max_text_len = {max_text_len} leaves no room for [CLS] and [SEP]; use at least 3")
        return [self.cls_id, *ids[: max_text_len - 2], self.sep_id]

    def _encode(self, captions: Sequence[str]) -> list[Encoding]:
        return self._tokenizer.encode_batch_fast(clean(captions), add_special_tokens=False)


def read_pieces(uri: str) -> list[str]:
    """Read the lines of a vocab.txt, or of the one in a folder.

    Raises:
        VocabError: the file is missing or not UTF-8 text.
    """
    place = uri if uri.endswith(".txt") else storage.join(uri, _TEXT)
    try:
        text = storage.read_bytes(place).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise VocabError(f"no vocabulary at {place}; use a folder made by build_vocab, or a BERT vocab.txt") from None
    except UnicodeDecodeError as error:
        raise VocabError(f"{place} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    # Not splitlines(): pieces may be other line separators, such as U+2028.
    return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]


def piece_tokenizer(pieces: Sequence[str]) -> Tokenizer:
    """Build a tokenizer with BERT's uncased normalisation and greedy longest match over `pieces`.

    Special tokens are plain entries: '[SEP]' in a caption is split into '[', 'sep', ']'.
    """
    ids = {piece: index for index, piece in enumerate(pieces)}
    limit = int(SETTINGS["max_chars_per_word"])
    tokenizer = Tokenizer(WordPiece(ids, unk_token=UNK, max_input_chars_per_word=limit))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def split_words(text: str) -> list[str]:
    """Split a text into normalised whole words, before tokenization into pieces."""
    normalised = _NORMALIZER.normalize_str(clean([text])[0])
    return [word for word, _ in _SPLITTER.pre_tokenize_str(normalised)]


def clean(captions: Sequence[str]) -> list[str]:
    """Make captions valid Unicode: replace lone surrogates, which JSON can contain, by '?'."""
    return [c if c.isascii() else c.encode("utf-8", "replace").decode() for c in captions]


_NORMALIZER, _SPLITTER = BertNormalizer(lowercase=True), BertPreTokenizer()
