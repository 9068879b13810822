"""Describe the codes of a video tokenizer in words, with its word decoder. Paper: Sec. 3.3, Eq. 5."""

from collections.abc import Sequence

import torch

from evilm.model.tokenizers.base_tokenizer import BaseVideoTokenizer
from evilm.text.vocab import Vocab

_USUAL = 128  # codes that give the average probability of a word
_TOGETHER = 32


class CodeWords:
    """Words that are more probable if all regions of a clip have a code than if they have an average one."""

    def __init__(self, tokenizer: BaseVideoTokenizer, vocab: Vocab) -> None:
        """Describe the codes of this tokenizer; without its decoder, codes have no words."""
        self._tokenizer, self._vocab = tokenizer, vocab
        self._known: dict[int, list[int]] = {}
        self._usual: torch.Tensor | None = None
        shown = [piece[0].isalnum() and len(piece) > 1 for piece in vocab.pieces]
        self._shown = torch.tensor(shown)  # words and first pieces of words, not "##s" or full stops

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
                best = gain.topk(min(8, gain.shape[1])).indices.tolist()
                self._known |= dict(zip(some, best, strict=True))
        return [[self._vocab.pieces[word] for word in self._known[code][:top]] for code in codes]

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
