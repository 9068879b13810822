"""Use a pre-trained E-ViLM: embed videos and captions, score matches, predict masked words and regions.

import evilm
model = evilm.EViLM.from_pretrained("runs/demo/model")
model.match(["clip.mp4"], ["a red ball rolls to the left", "a blue star blinks"])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from evilm.config.models import EViLMConfig
from evilm.errors import ConfigError
from evilm.io import storage
from evilm.items.seen_clips import SEEN_FILE
from evilm.model.evilm_model import EViLMModel
from evilm.model.preprocess import Preprocessor, Video
from evilm.text.vocab import Vocab

FILES = (
    *("config.json", "model.safetensors", "preprocessor_config.json", "README.md", SEEN_FILE),
    *("vocab/vocab.txt", "vocab/config.json", "vocab/tokenizer_config.json"),
)
"""All files of a saved model; the model card, README.md, and the set of clips that it has seen are optional."""
VOCAB = "vocab"
"""Folder of the vocabulary, beside the weights."""
MASK = "[MASK]"
_VIDEOS_AT_A_TIME = 16
_TEXTS_AT_A_TIME = 64


@dataclass(frozen=True)
class Texts:
    """Encoded captions: one vector per word piece, [CLS] and [SEP] included."""

    words: Float[Tensor, "caption word dim"]
    padding: Bool[Tensor, "caption word"]
    """True = padding."""
    input_ids: Int64[Tensor, "caption word"]

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, places: slice) -> "Texts":
        """Select captions; padding common to all of them is dropped."""
        longest = int((~self.padding[places]).sum(1).max()) if len(self.padding[places]) else 0
        return Texts(*(part[places, :longest] for part in (self.words, self.padding, self.input_ids)))


class Prediction(NamedTuple):
    """A predicted word or code with its probability."""

    value: str | int
    probability: float


Videos = Sequence[Video] | Tensor
"""Videos, or the output of `embed_videos` for them."""
Captions = Sequence[str] | Texts
"""Captions, or the output of `embed_texts` for them."""


class EViLM:
    """An E-ViLM model with its vocabulary and preprocessing. Paper: Eq. 1-2."""

    def __init__(self, student: EViLMModel, vocab: Vocab, preprocessor: Preprocessor) -> None:
        self.student, self.vocab, self.preprocessor = student.eval(), vocab, preprocessor
        if vocab.size != student.config.vocab_size:
            raise ConfigError(
                f"a vocabulary of {vocab.size} words, the model knows {student.config.vocab_size}; "
                "use the vocabulary that it was trained with"
            )
        self._seen_clips = ""

    @classmethod
    def from_pretrained(
        cls, uri: str | Path, dtype: str | torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> Self:
        """Load the model saved at `uri`.

        Args:
            uri: folder written by pre-training or `save_pretrained`, or one of the checkpoints in it; a local path or
                s3://bucket/key.
            dtype: float32, bfloat16 or float16; None keeps the saved one.
            device: cpu, cuda, cuda:1, ...

        Raises:
            CheckpointError: there is no model, a file is missing, or the weights do not fit the config.
            ConfigError: the dtype or device can't be used, or the vocabulary is another model's.
        """
        place = str(uri)
        student = EViLMModel.from_pretrained(place, dtype, device)
        vocab = Vocab.load(storage.join(place, VOCAB))
        model = cls(student, vocab, Preprocessor.load(place, student.config))
        model._seen_clips = storage.join(place, SEEN_FILE)
        return model

    def save_pretrained(self, uri: str | Path) -> None:
        """Write weights, config, vocabulary and preprocessing, from which `from_pretrained` loads an equal model."""
        place = str(uri)
        save_rules(place, self.vocab, self.preprocessor, self.student.config)
        if self._seen_clips and storage.exists(self._seen_clips):
            storage.write_bytes(storage.join(place, SEEN_FILE), storage.read_bytes(self._seen_clips))
        with torch.no_grad():
            self.student.save_pretrained(place)

    @torch.inference_mode()
    def embed_videos(
        self, videos: Sequence[Video], mask: Bool[np.ndarray, "video frame grid grid"] | None = None
    ) -> Float[Tensor, "video region dim"]:
        """Return one vector per region, ordered by frame, row and column; regions under `mask` (True) are black.

        Raises:
            DecodeError: a video can't be decoded.
            ConfigError: a video has too few frames, or `videos` is a single video.
        """
        if isinstance(videos, str | Path | bytes):
            raise ConfigError(f"videos = {videos!r} is one video; pass a list of videos")
        parts = []
        for start in range(0, len(videos), _VIDEOS_AT_A_TIME):
            some = slice(start, start + _VIDEOS_AT_A_TIME)
            frames = torch.from_numpy(np.stack([self.preprocessor(video) for video in videos[some]]))
            masked = None if mask is None else torch.from_numpy(mask[some])
            parts.append(self.student.encode_video(frames.to(self.student.device), masked))
        return torch.cat(parts) if parts else torch.empty(0, self.student.config.num_regions, self.student.config.dim)

    def embed_texts(self, captions: Sequence[str]) -> Texts:
        """Return one vector per word piece; captions are truncated to `max_text_len` pieces. `[MASK]` masks a piece."""
        if isinstance(captions, str):
            raise ConfigError(f"captions = {captions!r} is one caption; pass a list of captions")
        return self._encode([self._word_ids(caption) for caption in captions])

    @torch.inference_mode()
    def match(self, videos: Videos, captions: Captions) -> Float[np.ndarray, "video caption"]:
        """Return the probability that video and caption match, for every pair.

        Raises:
            DecodeError: a video can't be decoded.
        """
        regions, texts = self._videos(videos), self._texts(captions)
        scores = np.empty((len(regions), len(texts)), dtype=np.float32)
        for row, video in zip(scores, regions, strict=True):
            for start in range(0, len(row), _TEXTS_AT_A_TIME):
                some = texts[start : start + _TEXTS_AT_A_TIME]
                row[start : start + len(some)] = self._match(video.expand(len(some), -1, -1), some)
        return scores

    @torch.inference_mode()
    def match_pairs(self, videos: Videos, captions: Captions) -> Float[np.ndarray, " pair"]:
        """Return the probability that they match, for the first video with the first caption, and so on."""
        if len(videos) != len(captions):
            raise ConfigError(f"{len(videos)} videos and {len(captions)} captions; pairs need as many of both")
        # One at a time, so that the other pairs do not change the last digits of a pair's score.
        ones = [slice(k, k + 1) for k in range(len(videos))]
        rows = [self._match(self._videos(videos[one]), self._texts(captions[one])) for one in ones]
        return np.concatenate(rows) if rows else np.empty(0, dtype=np.float32)

    @torch.inference_mode()
    def fill_words(self, video: Video | None, caption: str, top: int = 5) -> list[list[Prediction]]:
        """Predict the likeliest words for each [MASK] of a caption, from the video and caption or the caption only."""
        texts = self._encode([self._word_ids(caption)])
        regions = None if video is None else self.embed_videos([video])
        states = self.student.decode(regions, texts.words, texts.padding).words
        masked = texts.input_ids == self.vocab.mask_id
        chances = self.student.mlm_logits(states[masked]).float().softmax(-1)
        return [[Prediction(self.vocab.pieces[i], p) for i, p in zip(*_top(row, top), strict=True)] for row in chances]

    @torch.inference_mode()
    def fill_regions(
        self, video: Video, caption: str, mask: Bool[np.ndarray, "frame grid grid"], top: int = 5
    ) -> list[list[Prediction]]:
        """Predict the likeliest codes of the video tokenizer for each masked region, in order."""
        texts = self.embed_texts([caption])
        regions = self.embed_videos([video], mask[None])
        states = self.student.decode(regions, texts.words, texts.padding).regions
        masked = torch.from_numpy(mask[None]).flatten(1).to(states.device)
        chances = self.student.mvm_logits(states[masked]).float().softmax(-1)
        return [[Prediction(i, p) for i, p in zip(*_top(row, top), strict=True)] for row in chances]

    def _match(self, regions: Tensor, texts: Texts) -> np.ndarray:
        logits = self.student.match_logits(self.student.decode(regions, texts.words, texts.padding).cls)
        return logits.float().softmax(-1)[:, 1].cpu().numpy()

    def _videos(self, videos: Videos) -> Tensor:
        return videos if isinstance(videos, Tensor) else self.embed_videos(videos)

    def _texts(self, captions: Captions) -> Texts:
        return captions if isinstance(captions, Texts) else self.embed_texts(captions)

    @torch.inference_mode()
    def _encode(self, rows: Sequence[Sequence[int]]) -> Texts:
        """Encode captions given as ids, padded to the longest."""
        longest = max((len(row) for row in rows), default=0)
        input_ids = torch.full((len(rows), longest), self.vocab.pad_id)
        for ids, row in zip(input_ids, rows, strict=True):
            ids[: len(row)] = torch.tensor(row)
        input_ids = input_ids.to(self.student.device)
        padding = input_ids == self.vocab.pad_id
        lots = zip(input_ids.split(_TEXTS_AT_A_TIME), padding.split(_TEXTS_AT_A_TIME), strict=True)
        words = [self.student.encode_text(*lot) for lot in lots if len(lot[0])]
        if not words:
            words = [torch.empty(0, longest, self.student.config.dim, dtype=self.student.dtype)]
        return Texts(torch.cat(words), padding, input_ids)

    def _word_ids(self, caption: str) -> list[int]:
        """Return the ids of a caption; [MASK] is a masked piece."""
        first, *rest = self.vocab.cut(caption.split(MASK))
        ids = list(first)
        for part in rest:
            ids += [self.vocab.mask_id, *part]
        return [self.vocab.cls_id, *ids[: self.student.config.max_text_len - 2], self.vocab.sep_id]


def save_rules(place: str, vocab: Vocab, preprocessor: Preprocessor, config: EViLMConfig) -> None:
    """Write vocabulary and preprocessing beside the weights of a model."""
    vocab.save(storage.join(place, VOCAB))
    # With this file, transformers' BertTokenizer loads the vocabulary folder and tokenizes captions in the same way.
    rules = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": None}
    rules |= {"model_max_length": config.max_text_len}
    storage.write_json(storage.join(place, VOCAB, "tokenizer_config.json"), rules)
    preprocessor.save(place, config)


def _top(chances: Tensor, count: int) -> tuple[list[int], list[float]]:
    """Return the likeliest entries and their probabilities."""
    best = chances.topk(min(count, len(chances)))
    return best.indices.tolist(), best.values.tolist()
