"""Describe the codes of a video tokenizer in words, by its own word decoder. Paper: Sec. 3.3, Eq. 5."""

from collections.abc import Sequence

import torch

from evilm.model.tokenizers.base import BaseVideoTokenizer
from evilm.text.vocab import Vocab

_USUAL = 128  # codes that tell how likely a word is anyway
_TOGETHER = 32


class CodeWords:
    """Words that a code, put into every region of a clip, makes likelier than other codes do."""

    def __init__(self, tokenizer: BaseVideoTokenizer, vocab: Vocab) -> None:
        """Take a tokenizer; one without its decoder has no words for its codes."""
        self._tokenizer, self._vocab = tokenizer, vocab
        self._known: dict[int, list[int]] = {}
        self._usual: torch.Tensor | None = None
        shown = [piece[0].isalnum() and len(piece) > 1 for piece in vocab.pieces]
        self._shown = torch.tensor(shown)  # whole words and beginnings of words; no "##s", no full stops

    def words(self, codes: Sequence[int], top: int = 2) -> list[list[str]]:
        """The best words of each code, best first; none where the tokenizer was saved without its decoder."""
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
        """Probability of each word (code, vocab)."""
        tokenizer = self._tokenizer
        num_regions = tokenizer.num_frames * tokenizer.grid**2
        clips = torch.tensor(codes, device=tokenizer.device)[:, None].expand(-1, num_regions)
        return tokenizer.word_logits(clips).float().sigmoid().clamp(1e-6, 1).cpu()

    def _chances_of_any(self) -> torch.Tensor:
        """Mean probability of each word over codes spread evenly over the codebook."""
        if self._usual is None:
            num_codes = self._tokenizer.codebook.num_codes
            some = sorted({k * num_codes // _USUAL for k in range(_USUAL)})
            parts = [self._chances(some[start : start + _TOGETHER]) for start in range(0, len(some), _TOGETHER)]
            self._usual = torch.cat(parts).mean(0)
        return self._usual
