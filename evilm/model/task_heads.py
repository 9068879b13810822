"""Heads of downstream tasks: scores of answers, classes and options, and features of retrieval."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from evilm.config.finetune_command import HeadConfig
from evilm.model.evilm_model import EViLMModel
from evilm.model.layers import init_linear
from evilm.text.vocab import Vocab

_CHOICE_HIDDEN = 256


class Classifier(nn.Module):
    """An MLP on the pooled [CLS]; one output per answer or class, or a single one that scores an option."""

    def __init__(self, dim: int, hidden: int, outputs: int, dropout: float) -> None:
        super().__init__()
        layers = (nn.Dropout(dropout), nn.Linear(dim, hidden), nn.LayerNorm(hidden), nn.GELU())
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, outputs))
        self.apply(init_linear)

    def forward(self, student: EViLMModel, cls: Float[Tensor, "text dim"]) -> Float[Tensor, "text outputs"]:
        return self.layers(student.match_head.pooler(cls).tanh())


class MatchScore(nn.Module):
    """The log-odds of a match by the model's own matching head; without weights of its own."""

    def forward(self, student: EViLMModel, cls: Float[Tensor, "text dim"]) -> Float[Tensor, "text 1"]:
        logits = student.match_logits(cls)
        return logits[:, 1:] - logits[:, :1]


class MaskedAnswer(nn.Module):
    """Scores of answers that are one word piece, by the model's own MLM head at [MASK]; other answers get -inf."""

    def __init__(self, pieces: Int64[Tensor, " answer"]) -> None:
        """Keep the word piece of each answer, -1 for answers that are not one piece."""
        super().__init__()
        self.pieces: Tensor
        self.register_buffer("pieces", pieces)

    def forward(self, student: EViLMModel, states: Float[Tensor, "item dim"]) -> Float[Tensor, "item answer"]:
        logits = student.mlm_logits(states).float().index_select(1, self.pieces.clamp(min=0))
        return logits.masked_fill(self.pieces < 0, float("-inf"))


class RetrievalHead(nn.Module):
    """Projections of video and text, decoded separately, to one space with unit vectors."""

    def __init__(self, dim: int, embed_dim: int) -> None:
        super().__init__()
        self.video = nn.Linear(dim, embed_dim)
        self.text = nn.Linear(dim, embed_dim)
        self.apply(init_linear)

    def embed_video(self, cls: Float[Tensor, "clip dim"]) -> Float[Tensor, "clip embed"]:
        """Project [CLS] of decoded videos."""
        return F.normalize(self.video(cls).float(), dim=-1)

    def embed_text(self, cls: Float[Tensor, "text dim"]) -> Float[Tensor, "text embed"]:
        """Project [CLS] of decoded texts."""
        return F.normalize(self.text(cls).float(), dim=-1)


def build_head(kind: str, config: HeadConfig, dim: int, num_labels: int, pieces: Int64[Tensor, " answer"]) -> nn.Module:
    """Build the head of a task, initialised randomly.

    Args:
        kind: of the task: answer, choice, retrieval or label.
        dim: width of the decoder.
        num_labels: answers or classes.
        pieces: what `answer_pieces` returned; for `type` = mlm.
    """
    if kind == "retrieval":
        return RetrievalHead(dim, config.embed_dim)
    if config.type == "match":
        return MatchScore()
    if config.type == "mlm":
        return MaskedAnswer(pieces)
    choice = kind == "choice"
    hidden = config.hidden or (_CHOICE_HIDDEN if choice else max(1, dim // 2))
    return Classifier(dim, hidden, 1 if choice else num_labels, config.dropout)


def answer_pieces(answers: Sequence[str], vocab: Vocab) -> Int64[Tensor, " answer"]:
    """Return the word piece of each answer; -1 for answers of several pieces or with unknown characters."""
    pieces = [ids[0] if len(ids) == 1 else vocab.unk_id for ids in vocab.cut(answers)]
    return torch.tensor([-1 if piece == vocab.unk_id else piece for piece in pieces], dtype=torch.int64)
