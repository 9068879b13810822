"""Captions to word pieces: reading captions, building a vocabulary, encoding."""

from evilm.text.vocab import Vocab

__all__ = ["Vocab"]
