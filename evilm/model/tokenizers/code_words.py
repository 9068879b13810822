"""Describe the codes of a video tokenizer in words, with its word decoder. Paper: Sec. 3.3, Eq. 5."""

from collections.abc import Iterable, Sequence

import torch

from evilm.model.tokenizers.base_tokenizer import BaseVideoTokenizer
from evilm.text.vocab import Vocab, split_words

_USUAL = 128  # codes that give the average probability of a word
_TOGETHER = 32
_MOST = 8  # words that are kept of a code


class CodeWords:
    """Words that are more probable if all regions of a clip have a code than if they have an average one."""

    def __init__(self, tokenizer: BaseVideoTokenizer, vocab: Vocab, captions: Iterable[str] = ()) -> None:
        """Describe the codes of this tokenizer; without its decoder, codes have no words.

        Args:
            vocab: of the tokenizer.
            captions: texts with the words that are shown. Without them, the first piece stands for a word.
        """
        self._tokenizer, self._vocab = tokenizer, vocab
        self._known: dict[int, list[str]] = {}
        self._usual: torch.Tensor | None = None
        self._words = self._by_first_piece({word for caption in captions for word in split_words(caption)})
        self._shown = torch.zeros(vocab.size, dtype=torch.bool)
        self._shown[list(self._words)] = True

    def words(self, codes: Sequence[int], top: int = 2) -> list[list[str]]:
        """Return the best words of each code, best first; none if the tokenizer was saved without its decoder."""
        if not self._tokenizer.has_words:
            return [[] for _ in codes]
        if new := sorted(set(codes) - self._known.keys()):
            usual = self._chances_of_any()
            for start in range(0, len(new), _TOGETHER):
                some = new[start : start + _TOGETHER]
                chances = self._chances(some)
                gain = (chances * (chances / usual).log()).masked_fill(~self._shown, -torch.inf)
                best = gain.topk(min(_MOST, len(self._words))).indices.tolist()
                for code, first, own in zip(some, best, chances / usual, strict=True):
                    self._known[code] = [self._likeliest(piece, own) for piece in first]
        return [self._known[code][:top] for code in codes]

    def _by_first_piece(self, words: set[str]) -> dict[int, dict[str, list[int]]]:
        """Return the words that begin with each piece, and their further pieces; not single letters or full stops."""
        found: dict[int, dict[str, list[int]]] = {}
        if not words:
            words = {piece for piece in self._vocab.pieces if not piece.startswith(("##", "["))}
        for word in sorted(words):
            first, *rest = self._vocab.cut([word])[0]
            if len(word) > 1 and word[0].isalnum() and first != self._vocab.unk_id:
                found.setdefault(first, {})[word] = rest
        return found

    def _likeliest(self, first: int, ratios: torch.Tensor) -> str:
        """Return the word with this first piece whose further pieces are the most probable, compared with usual."""
        words = self._words[first]
        return max(words, key=lambda word: float(ratios[words[word]].log().mean()) if words[word] else 0.0)

    def _chances(self, codes: Sequence[int]) -> torch.Tensor:
        """Compute the probability of each word (code, vocab)."""
        tokenizer = self._tokenizer
        num_regions = tokenizer.num_frames * tokenizer.grid**2
        clips = torch.tensor(codes, device=tokenizer.device)[:, None].expand(-1, num_regions)
        return tokenizer.word_logits(clips).float().sigmoid().clamp(1e-6, 1).cpu()

    def _chances_of_any(self) -> torch.Tensor:
        """Average the probability of each word over codes spread evenly over the codebook."""
        if self._usual is None:
            num_codes = self._tokenizer.codebook.num_codes
            some = sorted({k * num_codes // _USUAL for k in range(_USUAL)})
            parts = [self._chances(some[start : start + _TOGETHER]) for start in range(0, len(some), _TOGETHER)]
            self._usual = torch.cat(parts).mean(0)
        return self._usual
