"""Build the word-piece vocabulary and encode captions with it."""

from evilm.text.vocab import Vocab

__all__ = ["Vocab"]
