"""Predict with a fine-tuned model: answers, options and classes of encoded videos, and vectors for retrieval."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from evilm.errors import ConfigError
from evilm.items.item import Kind
from evilm.model.inputs import Videos, check_pairs, is_embedded, list_of, list_texts, list_videos
from evilm.model.prediction import Prediction, likeliest
from evilm.model.task_heads import MaskedAnswer, RetrievalHead
from evilm.model.task_model import TaskModel
from evilm.text.item_texts import encode_choices, encode_texts

_AT_A_TIME = 64
_METHODS: dict[Kind, str] = {
    "answer": "answer(videos, questions)",
    "choice": "choose(videos, questions, options)",
    "retrieval": "similarity(videos, captions)",
    "label": "classify(videos)",
}


@dataclass
class _Texts:
    """Encoded texts, as `TextInputs` describes them."""

    input_ids: Int64[Tensor, "text word"]
    padding_mask: Bool[Tensor, "text word"]
    masked_at: Int64[Tensor, " text"]

    def part(self, some: slice) -> "_Texts":
        """Return some of the texts."""
        return _Texts(self.input_ids[some], self.padding_mask[some], self.masked_at[some])


class TaskPredictor:
    """A fine-tuned model that predicts for encoded videos, with the same texts and scores as the benchmark's."""

    def __init__(self, model: TaskModel) -> None:
        self._model, self._student, self.spec = model, model.student, model.spec

    def answer(
        self, regions: Float[Tensor, "item region dim"], questions: Sequence[str], top: int
    ) -> list[list[Prediction]]:
        """Predict the answers to a question about each video."""
        texts = self._encode(questions, masked=isinstance(self._model.head, MaskedAnswer))
        return likeliest(self._scores(regions, texts), top, self.spec.labels)

    def choose(
        self,
        regions: Float[Tensor, "item region dim"],
        questions: Sequence[str],
        options: Sequence[Sequence[str]],
    ) -> list[list[Prediction]]:
        """Predict the right option of a question about each video."""
        counts = torch.tensor([len(own) for own in options], dtype=torch.int64)
        encoded = encode_choices(self._model.vocab, questions, options, self._student.config.max_text_len)
        clip_of = torch.arange(len(regions)).repeat_interleave(counts).to(regions.device)
        scores = self._scores(regions, self._as_texts(*encoded), clip_of).flatten()
        bounds = pairwise(accumulate(counts.tolist(), initial=0))
        return [
            likeliest(scores[None, start:end], end - start, own)[0]
            for own, (start, end) in zip(options, bounds, strict=True)
        ]

    def classify(self, regions: Float[Tensor, "item region dim"], top: int) -> list[list[Prediction]]:
        """Predict the class of each video."""
        none = torch.empty(len(regions), 0, dtype=torch.int64, device=regions.device)
        return likeliest(self._scores(regions, _Texts(none, none.bool(), none)), top, self.spec.labels)

    def video_vectors(self, regions: Float[Tensor, "video region dim"]) -> Float[Tensor, "video embed"]:
        """Embed videos for retrieval, as unit vectors."""
        head = self._retrieval_head()
        none = torch.empty(0, head.video.out_features, device=regions.device)
        return _in_batches(
            len(regions), lambda some: head.embed_video(self._student.decode(regions[some], None).cls), none
        )

    def text_vectors(self, captions: Sequence[str]) -> Float[Tensor, "caption embed"]:
        """Embed captions for retrieval, as unit vectors."""
        head, texts = self._retrieval_head(), self._encode(captions)

        def embed(some: slice) -> Tensor:
            own = texts.part(some)
            words = self._student.encode_text(own.input_ids, own.padding_mask)
            return head.embed_text(self._student.decode(None, words, own.padding_mask).cls)

        return _in_batches(len(captions), embed, torch.empty(0, head.text.out_features, device=self._student.device))

    def _scores(
        self, regions: Float[Tensor, "clip region dim"], texts: _Texts, clip_of: Int64[Tensor, " text"] | None = None
    ) -> Float[Tensor, "text score"]:
        """Score texts with the videos that they are about."""

        def score(some: slice) -> Tensor:
            video = regions[some] if clip_of is None else regions.index_select(0, clip_of[some])
            return self._model.text_scores(video, texts.part(some))

        none = torch.empty(0, max(1, len(self.spec.labels)), device=regions.device)
        return _in_batches(len(texts.input_ids), score, none)

    def _encode(self, texts: Sequence[str], masked: bool = False) -> _Texts:
        return self._as_texts(*encode_texts(self._model.vocab, texts, self._student.config.max_text_len, masked))

    def _as_texts(self, input_ids: Int64[np.ndarray, "text word"], lengths: Int64[np.ndarray, " text"]) -> _Texts:
        device = self._student.device
        ids, ends = torch.from_numpy(input_ids).to(device), torch.from_numpy(lengths).to(device)
        padding = torch.arange(ids.shape[1], device=device) >= ends[:, None]
        return _Texts(ids, padding, ends - 2)  # [MASK], if there is one, stands before [SEP]

    def _retrieval_head(self) -> RetrievalHead:
        assert isinstance(self._model.head, RetrievalHead)
        return self._model.head


def _in_batches(count: int, compute: Callable[[slice], Tensor], none: Tensor) -> Tensor:
    """Concatenate the results for some entries at a time; `none` is the result for no entries."""
    found = [compute(slice(k, k + _AT_A_TIME)) for k in range(0, count, _AT_A_TIME)]
    return torch.cat(found) if found else none


def predictor_for(kind: Kind, predictor: TaskPredictor | None) -> TaskPredictor:
    """Return the predictor of a model if it is for this kind of task.

    Raises:
        ConfigError: the model was not fine-tuned, or for another kind.
    """
    if predictor is None:
        raise ConfigError(
            f"this model was only pre-trained: it has no head for {_METHODS[kind]}; load one that finetune wrote, "
            "or use match, fill_words and fill_regions"
        )
    if predictor.spec.kind != kind:
        raise ConfigError(
            f"this model was fine-tuned on {predictor.spec.task} and has no head for {_METHODS[kind]}; use "
            f"{_METHODS[predictor.spec.kind]}"
        )
    return predictor


class TaskMethods(ABC):
    """The methods of `EViLM` that need the head of a fine-tuned model."""

    _predictor: TaskPredictor | None

    @abstractmethod
    def _videos(self, videos: Videos) -> Float[Tensor, "video region dim"]:
        """Encode videos; embeddings are returned as they are."""

    @torch.inference_mode()
    def answer(self, videos: Videos, questions: Iterable[str], top: int = 5) -> list[list[Prediction]]:
        """Predict the likeliest answers to the first question about the first video, and so on, by a fine-tuned head.

        Raises:
            DecodeError: a video can't be decoded.
            ConfigError: the model was not fine-tuned on questions, or there are not as many videos as questions.
        """
        predictor, regions, asked = self._asked("answer", videos, questions)
        return predictor.answer(regions, asked, top)

    @torch.inference_mode()
    def choose(
        self, videos: Videos, questions: Iterable[str], options: Iterable[Iterable[str]]
    ) -> list[list[Prediction]]:
        """Predict the right one of each question's options, all of them by probability, by a fine-tuned head.

        Raises:
            DecodeError: a video can't be decoded.
            ConfigError: the model was not fine-tuned on choices, there are not as many videos, questions and lists of
                options, or a list is empty.
        """
        predictor = predictor_for("choice", self._predictor)
        choices = [list_texts(own, f"options[{place}]") for place, own in enumerate(list_of(options, "options"))]
        if empty := [place for place, own in enumerate(choices) if not own]:
            raise ConfigError(f"options[{empty[0]}] is empty; pass at least one option for each question")
        predictor, regions, asked = self._asked("choice", videos, questions)
        check_pairs(len(regions), len(choices), "lists of options")
        return predictor.choose(regions, asked, choices)

    @torch.inference_mode()
    def classify(self, videos: Videos, top: int = 5) -> list[list[Prediction]]:
        """Predict the likeliest classes of each video, by a fine-tuned head.

        Raises:
            DecodeError: a video can't be decoded.
            ConfigError: the model was not fine-tuned on classes.
        """
        return predictor_for("label", self._predictor).classify(self._videos(videos), top)

    @torch.inference_mode()
    def retrieval_vectors(
        self, videos: Videos = (), captions: Iterable[str] = ()
    ) -> tuple[Float[np.ndarray, "video embed"], Float[np.ndarray, "caption embed"]]:
        """Return unit vectors of videos and captions, whose dot products are similarities, by a fine-tuned head.

        Raises:
            DecodeError: a video can't be decoded.
            ConfigError: the model was not fine-tuned on retrieval.
        """
        predictor, texts = predictor_for("retrieval", self._predictor), list_texts(captions)
        vectors = predictor.video_vectors(self._videos(videos)), predictor.text_vectors(texts)
        return vectors[0].cpu().numpy(), vectors[1].cpu().numpy()

    def similarity(self, videos: Videos, captions: Iterable[str]) -> Float[np.ndarray, "video caption"]:
        """Return the cosine similarity of every video and caption, -1 to 1, by a head fine-tuned on retrieval."""
        of_videos, of_captions = self.retrieval_vectors(videos, captions)
        return of_videos @ of_captions.T

    def _asked(
        self, kind: Kind, videos: Videos, questions: Iterable[str]
    ) -> tuple[TaskPredictor, Float[Tensor, "video region dim"], list[str]]:
        """Return the predictor, encoded videos and questions, as many of both."""
        predictor, asked = predictor_for(kind, self._predictor), list_texts(questions, "questions")
        found = videos if is_embedded(videos) else list_videos(videos)
        check_pairs(len(found), len(asked), "questions")
        return predictor, self._videos(found), asked
