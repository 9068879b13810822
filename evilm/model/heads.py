"""Pre-training heads. Table 8 counts the pooler and the matching head, but not the other two."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from evilm.model.layers import init_linear


class MatchHead(nn.Module):
    """Pooler and two-way matching head over [CLS]. Class 1 = caption and video belong together. Paper: Table 8."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(dim, dim)
        self.match = nn.Linear(dim, 2)
        self.apply(init_linear)

    def forward(self, cls: Float[Tensor, "clip dim"]) -> Float[Tensor, "clip 2"]:
        return self.match(self.pooler(cls).tanh())


class MlmHead(nn.Module):
    """Vocabulary scores of word states, tied to the text encoder's word table. Not in Table 8.

    An untied Linear of 384 x 9,157 would make the whole model a fifth larger.
    """

    def __init__(self, dim: int, text_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(dim, text_dim), nn.GELU(), nn.LayerNorm(text_dim))
        self.bias = nn.Parameter(Tensor(vocab_size).zero_())
        self.apply(init_linear)

    def forward(
        self, states: Float[Tensor, "*words dim"], word_table: Float[Tensor, "vocab text_dim"]
    ) -> Float[Tensor, "*words vocab"]:
        return F.linear(self.transform(states), word_table, self.bias)


class MvmHead(nn.Module):
    """Scores of region states over the codes of the video tokenizer. Not in Table 8. Paper: Eq. 3."""

    def __init__(self, dim: int, num_codes: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))
        self.codes = nn.Linear(dim, num_codes)
        self.apply(init_linear)

    def forward(self, states: Float[Tensor, "*regions dim"]) -> Float[Tensor, "*regions num_codes"]:
        return self.codes(self.transform(states))
