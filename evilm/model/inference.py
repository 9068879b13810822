"""Use a trained E-ViLM: embed videos and captions, score matches, predict masked words, regions, answers and classes.

import evilm
model = evilm.EViLM.from_pretrained("runs/demo/model")
model.match(["clip.mp4"], ["a red ball rolls to the left", "a blue star blinks"])
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from evilm.config.models import EViLMConfig
from evilm.errors import ConfigError, DecodeError
from evilm.io import storage
from evilm.items.seen_clips import SEEN_FILE
from evilm.model import pretrained
from evilm.model.evilm_model import KIND, VOCAB_FILE, EViLMModel
from evilm.model.inputs import (
    Video,
    Videos,
    as_mask,
    as_text,
    as_video,
    check_pairs,
    is_embedded,
    list_texts,
    list_videos,
)
from evilm.model.prediction import Prediction, likeliest
from evilm.model.preprocess import Preprocessor
from evilm.model.pretrained import VOCAB
from evilm.model.task_inference import TaskMethods, TaskPredictor
from evilm.model.task_model import HEAD_WEIGHTS, TASK_FILE, TaskModel, read_task
from evilm.text.vocab import Vocab

FILES = (
    *("config.json", "model.safetensors", "preprocessor_config.json", "README.md", SEEN_FILE),
    *(VOCAB_FILE, "vocab/config.json", "vocab/tokenizer_config.json", TASK_FILE, HEAD_WEIGHTS),
)
"""All files of a saved model; the model card, README.md, the set of clips that it has seen and a head are optional."""
MASK = "[MASK]"
_VIDEOS_AT_A_TIME, _TEXTS_AT_A_TIME = 16, 64


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


Captions = Iterable[str] | Texts
"""Captions, or the output of `embed_texts` for them."""


class EViLM(TaskMethods):
    """An E-ViLM model with vocabulary, preprocessing and, if it was fine-tuned, a head. Paper: Eq. 1-2."""

    def __init__(
        self, student: EViLMModel, vocab: Vocab, preprocessor: Preprocessor, task: TaskModel | None = None
    ) -> None:
        self.student, self.vocab, self.preprocessor = student.eval(), vocab, preprocessor
        if vocab.size != student.config.vocab_size:
            raise ConfigError(
                f"the vocabulary has {vocab.size} word pieces, the model {student.config.vocab_size}; "
                "use the one it was trained with"
            )
        self.task, self._seen_clips = task, ""
        self._predictor = None if task is None else TaskPredictor(task)

    def __repr__(self) -> str:
        config, student = self.config, self.student
        count = sum(parameter.numel() for parameter in student.parameters())
        dtype = str(student.dtype).removeprefix("torch.")
        task = "" if self.task is None else f", fine-tuned on {self.task.spec.task}"
        return (
            f"EViLM({count / 1e6:.2f}M parameters, {dtype} on {student.device}{task}; "
            f"videos: {config.num_frames} frames of {config.input_px} x {config.input_px} px in {config.grid} x "
            f"{config.grid} regions; texts: up to {config.max_text_len} word pieces of {config.vocab_size:,}; "
            f"{config.num_codes:,} codes)"
        )

    @property
    def config(self) -> EViLMConfig:
        """Return the sizes of the model."""
        return self.student.config

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
            CheckpointError: there is no model, a file is missing or was changed, or the weights do not fit the config.
            VocabError: the vocabulary is missing or was changed.
            ConfigError: the dtype or device can't be used, or the vocabulary is another model's.
        """
        place = str(uri)
        student = EViLMModel.from_pretrained(place, dtype, device)
        vocab, written = Vocab.load(storage.join(place, VOCAB)), storage.read_bytes(storage.join(place, VOCAB_FILE))
        pretrained.check_digest(place, VOCAB_FILE, pretrained.read_config(place, KIND), written)
        task = None if read_task(place) is None else TaskModel.from_pretrained(place, student)
        model = cls(student, vocab, Preprocessor.load(place, student.config), task)
        model._seen_clips = storage.join(place, SEEN_FILE)
        return model

    def save_pretrained(self, uri: str | Path) -> None:
        """Write all files from which `from_pretrained` loads an equal model."""
        place = str(uri)
        save_rules(place, self.vocab, self.preprocessor, self.student.config)
        if self._seen_clips and storage.exists(self._seen_clips):
            storage.write_bytes(storage.join(place, SEEN_FILE), storage.read_bytes(self._seen_clips))
        with torch.no_grad():
            (self.task or self.student).save_pretrained(place)

    def embed_videos(
        self,
        videos: Iterable[Video] | np.ndarray | Tensor,
        mask: Bool[np.ndarray, "video frame grid grid"] | None = None,
    ) -> Float[Tensor, "video region dim"]:
        """Return one vector per region, ordered by frame, row and column; regions under `mask` (True) are black.

        Raises:
            DecodeError: a video can't be decoded.
            ConfigError: a video has too few frames or is not a video, or `videos` is a single video.
        """
        found, config = list_videos(videos), self.config
        shape = (len(found), config.num_frames, config.grid, config.grid)
        return self._embed(found, None if mask is None else as_mask(mask, shape).to(self.student.device))

    def embed_texts(self, captions: Iterable[str]) -> Texts:
        """Return one vector per word piece; captions are truncated to `max_text_len` pieces. `[MASK]` masks a piece.

        Raises:
            ConfigError: a caption is not text, or `captions` is a single caption.
        """
        return self._encode([self._word_ids(caption) for caption in list_texts(captions)])

    @torch.inference_mode()
    def match(self, videos: Videos, captions: Captions) -> Float[np.ndarray, "video caption"]:
        """Return the probability that video and caption match, for every pair.

        Raises:
            DecodeError: a video can't be decoded.
            ConfigError: an item is not a video or not a caption.
        """
        texts, regions = self._texts(captions), self._videos(videos)
        scores = np.empty((len(regions), len(texts)), dtype=np.float32)
        for row, video in zip(scores, regions, strict=True):
            for start in range(0, len(row), _TEXTS_AT_A_TIME):
                some = texts[start : start + _TEXTS_AT_A_TIME]
                row[start : start + len(some)] = self._match(video.expand(len(some), -1, -1), some)
        return scores

    @torch.inference_mode()
    def match_pairs(self, videos: Videos, captions: Captions) -> Float[np.ndarray, " pair"]:
        """Return the probability that they match, for the first video with the first caption, and so on."""
        videos = videos if is_embedded(videos) else list_videos(videos)
        captions = captions if isinstance(captions, Texts) else list_texts(captions)
        check_pairs(len(videos), len(captions), "captions")
        # One at a time, so that the other pairs do not change the last digits of a pair's score.
        ones = [slice(k, k + 1) for k in range(len(videos))]
        rows = [self._match(self._videos(videos[one], one.start), self._texts(captions[one])) for one in ones]
        return np.concatenate(rows) if rows else np.empty(0, dtype=np.float32)

    @torch.inference_mode()
    def fill_words(self, video: Video | None, caption: str, top: int = 5) -> list[list[Prediction]]:
        """Predict the likeliest words for each [MASK] of a caption, from the video and caption or the caption only.

        Raises:
            DecodeError: the video can't be decoded.
            ConfigError: the caption has no [MASK], or one of them is beyond `max_text_len` word pieces.
        """
        texts = self._encode([self._word_ids(as_text(caption, "caption"))])
        masked = texts.input_ids == self.vocab.mask_id
        wanted, found = caption.count(MASK), int(masked.sum())
        if not wanted:
            raise ConfigError(f"caption = {caption!r} has no {MASK}; put {MASK} where a word is to be predicted")
        if found < wanted:
            limit = self.config.max_text_len
            raise ConfigError(
                f"{wanted - found} of {wanted} {MASK} are beyond the {limit} word pieces of a text; shorten it"
            )
        regions = None if video is None else self.embed_videos([as_video(video)])
        states = self.student.decode(regions, texts.words, texts.padding).words
        return likeliest(self.student.mlm_logits(states[masked]), top, self.vocab.pieces)

    @torch.inference_mode()
    def fill_regions(
        self, video: Video, caption: str, mask: Bool[np.ndarray, "frame grid grid"], top: int = 5
    ) -> list[list[Prediction]]:
        """Predict the likeliest codes of the video tokenizer for each masked region, ordered by frame, row and column.

        Raises:
            DecodeError: the video can't be decoded.
            ConfigError: the mask has another shape or masks nothing.
        """
        texts, config = self.embed_texts([as_text(caption, "caption")]), self.config
        masked = as_mask(mask, (config.num_frames, config.grid, config.grid))
        if not masked.any():
            raise ConfigError("mask is False everywhere; set the regions that are to be predicted to True")
        regions = self.embed_videos([as_video(video)], masked[None].cpu().numpy())
        states = self.student.decode(regions, texts.words, texts.padding).regions
        return likeliest(self.student.mvm_logits(states[masked[None].flatten(1).to(states.device)]), top)

    def _read(self, video: Video, place: int) -> np.ndarray:
        """Return the frames of a video; errors name it by its index, or by its path."""
        try:
            return self.preprocessor(video)
        except ConfigError as error:
            raise ConfigError(f"videos[{place}]: {error}") from None
        except DecodeError as error:
            about = error.detail if isinstance(video, str | Path) else f"videos[{place}]: {error.detail}"
            raise DecodeError(error.reason, about) from None

    def _match(self, regions: Tensor, texts: Texts) -> np.ndarray:
        logits = self.student.match_logits(self.student.decode(regions, texts.words, texts.padding).cls)
        return logits.float().softmax(-1)[:, 1].cpu().numpy()

    def _videos(self, videos: Videos, first: int = 0) -> Float[Tensor, "video region dim"]:
        """Return encoded videos, given them or videos of which the first is the caller's item number `first`."""
        if not is_embedded(videos):
            return self._embed(list_videos(videos), None, first)
        wanted = (self.config.num_regions, self.config.dim)
        if tuple(videos.shape[1:]) != wanted:
            raise ConfigError(
                f"videos of shape {tuple(videos.shape)}; embed_videos gives (video, {wanted[0]}, {wanted[1]})"
            )
        return videos

    @torch.inference_mode()
    def _embed(self, videos: Sequence[Video], mask: Tensor | None, first: int = 0) -> Tensor:
        config, student = self.config, self.student
        parts = [torch.empty(0, config.num_regions, config.dim, dtype=student.dtype, device=student.device)]
        for start in range(0, len(videos), _VIDEOS_AT_A_TIME):
            some = slice(start, start + _VIDEOS_AT_A_TIME)
            frames = np.stack([self._read(video, first + place) for place, video in enumerate(videos[some], start)])
            pixels = torch.from_numpy(frames).to(student.device)
            parts.append(student.encode_video(pixels, None if mask is None else mask[some]))
        return torch.cat(parts)

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
        batches = zip(input_ids.split(_TEXTS_AT_A_TIME), padding.split(_TEXTS_AT_A_TIME), strict=True)
        words = [self.student.encode_text(*batch) for batch in batches if len(batch[0])]
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
