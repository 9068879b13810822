"""Build a vocabulary: keep the frequent part of an existing one, or train word pieces on the captions.

Paper: Sec. 4.1 (the 30 % most frequent words of a 30,522-entry WordPiece vocabulary).
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer

from evilm.config.base import fingerprint
from evilm.config.models import EViLMConfig
from evilm.config.stages import BuildVocab
from evilm.errors import ConfigError, VocabError
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.manifests.captions import read_captions
from evilm.text.vocab import SPECIALS, UNK, Vocab, clean, piece_tokenizer, read_pieces, split_words

logger = logging.getLogger(__name__)

_MAX_WORDS: int = EViLMConfig.model_fields["max_text_len"].default
_BLOCK = 10_000


def build_vocab(config: BuildVocab) -> dict[str, Any]:
    """Build the vocabulary of a caption corpus in `config.out`, or reuse the one that exists there.

    Raises:
        ManifestError: the captions can't be read.
        VocabError: the base vocabulary, or the one that exists, can't be read.
    """
    if not config.manifest:
        raise ConfigError("--manifest is missing; name a table with captions, a COCO captions JSON, or a .txt")
    if not config.out:
        raise ConfigError("--out is missing; name the folder for the vocabulary")
    out = storage.absolute(config.out)
    captions = read_captions(config.manifest, config.columns, config.split)
    base = read_pieces(config.base_vocab) if config.base_vocab else []
    inputs = {"captions": fingerprint(sorted(captions)), "base_vocab": fingerprint(base) if base else ""}
    with Output(config, out, inputs, needs=lambda _: Vocab.FILES) as output:
        if output.done:
            Vocab.load(out)
            logger.info("%s is finished, reused: %s words", out, output.done["num_words"])
            return output.done | {"reused": True}
        return output.close(_build(config, output, captions, base))


def _build(config: BuildVocab, output: Output, captions: list[str], base: list[str]) -> dict[str, Any]:
    """Write the vocabulary and return the summary."""
    started = time.monotonic()
    if base:
        pieces = keep_frequent(base, captions, config.words.keep_ratio)
    else:
        pieces = train_wordpiece(captions, config.words.train_size, config.words.min_frequency)
    vocab = Vocab(pieces)
    output.check()
    vocab.save(output.out, output.publish)
    summary = describe(vocab, captions) | {
        "out": output.out,
        "inputs": output.inputs,
        "method": "keep_frequent" if base else "train_wordpiece",
        "base_words": len(base),
        "reused": False,
        "seconds": round(time.monotonic() - started, 2),
    }
    logger.info(
        "%d words from %d captions, %.3f %% of the words are [UNK], %d entries never used",
        vocab.size, len(captions), 100 * summary["unk_ratio"], summary["unseen"],
    )  # fmt: skip
    return summary


def describe(vocab: Vocab, captions: Sequence[str]) -> dict[str, Any]:
    """Measure how a vocabulary fits a corpus: share of [UNK], unused entries, caption lengths in word pieces."""
    counts, lengths = np.zeros(vocab.size, dtype=np.int64), []
    for start in range(0, len(captions), _BLOCK):
        block = captions[start : start + _BLOCK]
        counts += vocab.count_pieces(block)
        lengths.append(vocab.num_words(block))
    length = np.concatenate(lengths)
    return {
        "num_words": vocab.size,
        "num_captions": len(captions),
        "unk_ratio": float(counts[vocab.unk_id] / max(1, counts.sum())),
        "unseen": int((counts == 0).sum()) - sum(int(counts[i] == 0) for i in vocab.special_ids),
        "words_mean": round(float(length.mean()), 3),
        "words_max": int(length.max()),
        "truncated_ratio": float((length > _MAX_WORDS).mean()),
        "max_text_len": _MAX_WORDS,
        "fingerprint": vocab.fingerprint,
    }


def keep_frequent(base: Sequence[str], captions: Sequence[str], ratio: float) -> list[str]:
    """Keep the most frequent entries of a vocabulary, `round(ratio x size)` in all, in the base's order.

    Counts come from the captions tokenized with the whole base vocabulary. Special tokens have priority. Next are
    single characters that are ASCII or occur in the captions, so that a word without entry is spelled instead of
    becoming [UNK]. Then come entries by count, with ties in base order. If the captions use fewer entries than wanted,
    unseen ones follow in base order (BERT's is by frequency), foreign characters and [unusedN] last.

    Raises:
        VocabError: the base has no special tokens, or is too small.
    """
    counts = _count(Vocab(base), captions)
    characters = {c for chunk in _chunks(captions) for word in split_words(chunk) for c in word}
    size = round(ratio * len(base))
    if size < len(SPECIALS) + 1:
        raise VocabError(
            f"keep_ratio = {ratio} of {len(base)} entries leaves {size}; keep at least {len(SPECIALS) + 1}"
        )

    def rank(index: int) -> tuple[int, int, int]:
        piece, count = base[index], int(counts[index])
        character = piece.removeprefix("##") if len(piece) > 2 else piece
        if piece in SPECIALS:
            return 0, 0, index
        if len(character) == 1 and (character.isascii() or character in characters):
            return 1, -count, index
        if count:
            return 2, -count, index
        reserved = piece.startswith("[unused")
        return 5 if reserved else 4 if len(character) == 1 else 3, 0, index

    kept = sorted(sorted(range(len(base)), key=rank)[:size])
    return [base[index] for index in kept]


def train_wordpiece(captions: Sequence[str], size: int, min_frequency: int = 1) -> list[str]:
    """Train a WordPiece vocabulary of at most `size` entries on captions, independent of their order.

    Special tokens come first, then characters, which fill at most half of the entries; the rarest are left out.
    A small corpus gives fewer than `size` entries.
    """
    words: Counter[str] = Counter()
    for chunk, count in _chunks(captions).items():
        for word in split_words(chunk):
            words[word] += count
    characters = _frequent_characters(words, (size - len(SPECIALS)) // 4)
    known = set(characters)
    # The trainer numbers inner characters (##x) in the order of a randomly seeded hash table and breaks ties by these
    # numbers. Listed up front like special tokens, they get fixed numbers, which makes the result reproducible.
    inner = sorted(f"##{c}" for c in characters if len(split_words("a" + c)) == 1)
    trainer = WordPieceTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        special_tokens=[*SPECIALS, *inner],
        initial_alphabet=characters,
        show_progress=False,
    )
    tokenizer = piece_tokenizer(SPECIALS)
    tokenizer.model = WordPiece({}, unk_token=UNK)
    tokenizer.train_from_iterator(_repeated({w: n for w, n in words.items() if known.issuperset(w)}), trainer)
    ids = tokenizer.get_vocab()
    return sorted(ids, key=lambda piece: ids[piece])


def _chunks(captions: Sequence[str]) -> Counter[str]:
    """Count the substrings between spaces. BERT's rules never look across a space, so this loses nothing."""
    counts: Counter[str] = Counter()
    for caption in clean(captions):
        counts.update(caption.split(" "))
    return counts


def _count(vocab: Vocab, captions: Sequence[str]) -> np.ndarray:
    """Count the uses of each entry; every distinct substring is tokenized once and weighted by its count."""
    chunks, counts = list(_chunks(captions).items()), np.zeros(vocab.size, dtype=np.int64)
    for start in range(0, len(chunks), _BLOCK):
        block = chunks[start : start + _BLOCK]
        for ids, (_, number) in zip(vocab.cut([chunk for chunk, _ in block]), block, strict=True):
            np.add.at(counts, ids, number)
    return counts


def _frequent_characters(words: Counter[str], most: int) -> list[str]:
    """List the characters of the words, sorted; at most the `most` most frequent ones."""
    counts: Counter[str] = Counter()
    for word, number in words.items():
        for character in word:
            counts[character] += number
    kept = sorted(counts, key=lambda character: (-counts[character], character))[:most]
    if len(kept) < len(counts):
        logger.warning("%d rare characters left out of the vocabulary: too many for its size", len(counts) - len(kept))
    return sorted(kept)


def _repeated(words: dict[str, int]) -> Iterator[str]:
    """Yield each word as often as it occurs, sorted, in lines of bounded length."""
    for word in sorted(words):
        for start in range(0, words[word], _BLOCK):
            yield " ".join([word] * min(_BLOCK, words[word] - start))
