"""Encode the texts of downstream tasks: questions, captions, and questions with each of their options."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from jaxtyping import Int64

from evilm.text.vocab import Vocab


def encode_texts(
    vocab: Vocab, texts: Sequence[str], max_text_len: int, masked: bool = False
) -> tuple[Int64[np.ndarray, "text word"], Int64[np.ndarray, " text"]]:
    """Return padded ids and lengths of texts, with [CLS] and [SEP].

    Args:
        max_text_len: longest text, in word pieces; the end of a longer one is cut off.
        masked: put a [MASK] before each [SEP], which stands for the answer to a question.
    """
    if not masked:
        return vocab.encode_batch(texts, max_text_len)
    short, lengths = vocab.encode_batch(texts, max_text_len - 1)
    input_ids = np.concatenate([short, np.full((len(texts), 1), vocab.pad_id)], axis=1)
    rows = np.arange(len(texts))
    input_ids[rows, lengths - 1], input_ids[rows, lengths] = vocab.mask_id, vocab.sep_id
    return input_ids, lengths + 1


def encode_choices(
    vocab: Vocab, questions: Sequence[str], options: Sequence[Sequence[str]], max_text_len: int
) -> tuple[Int64[np.ndarray, "text word"], Int64[np.ndarray, " text"]]:
    """Return padded ids and lengths of question and option, for each option of each question in order.

    A text that is too long loses the end of its question.
    """
    room, found = max_text_len - 2, list[list[int]]()
    for question, own in zip(vocab.cut(questions), options, strict=True):
        for option in (ids[:room] for ids in vocab.cut(own)):
            found.append([vocab.cls_id, *question[: room - len(option)], *option, vocab.sep_id])
    lengths = np.array([len(ids) for ids in found], dtype=np.int64)
    input_ids = np.full((len(found), int(lengths.max(initial=0))), vocab.pad_id, dtype=np.int64)
    for row, ids in zip(input_ids, found, strict=True):
        row[: len(ids)] = ids
    return input_ids, lengths


def share_cut(
    vocab: Vocab, texts: Sequence[str], options: Sequence[Sequence[str]], max_text_len: int, masked: bool = False
) -> float:
    """Return the share of encoded texts that are over `max_text_len` pieces long, and so lose their end.

    Args:
        texts: questions or captions.
        options: those of each question; a question is encoded once with each.
        masked: each text ends with a [MASK].
    """
    lengths = vocab.num_words(texts) + int(masked)
    if any(options):
        beside = vocab.num_words(list(chain(*options))) - 2  # without [CLS] and [SEP], which the question counts
        lengths = lengths.repeat([len(own) for own in options]) + beside
    return float((lengths > max_text_len).mean()) if len(lengths) else 0.0
