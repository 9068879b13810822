"""E-ViLM with the head of a downstream task. Its folder is that of a model, with `task.json` and the head's weights."""

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from evilm.config.base import fingerprint, validate
from evilm.config.finetune_command import HeadConfig
from evilm.config.models import EViLMConfig
from evilm.errors import CheckpointError, ConfigError
from evilm.io import storage
from evilm.items.item import Kind
from evilm.model import checkpoint_folder, pretrained
from evilm.model.evilm_model import DecoderOutput, EViLMModel
from evilm.model.identity import model_fingerprint
from evilm.model.task_heads import MaskedAnswer, MatchScore, RetrievalHead, answer_pieces, build_head
from evilm.text.vocab import Vocab

TASK_FILE, HEAD_WEIGHTS = "task.json", "head.safetensors"
_PREFIX = "head."


@dataclass(frozen=True)
class TaskSpec:
    """Task, kind, labels and head settings of a fine-tuned model."""

    task: str
    kind: Kind
    labels: tuple[str, ...]
    """Answers or classes, in order; empty for choices and retrieval."""
    head: HeadConfig

    def __post_init__(self) -> None:
        """Check that the head fits the kind of the task.

        Raises:
            ConfigError: it does not.
        """
        wanted = {"mlm": "answer", "match": "choice"}.get(self.head.type, self.kind)
        if self.kind != wanted:
            raise ConfigError(
                f"head.type = {self.head.type!r} is for tasks of kind {wanted}; {self.task} is of kind {self.kind}"
            )

    @property
    def trains_match(self) -> bool:
        """Return True if the matching head is trained."""
        return self.head.type == "match" or (self.kind == "retrieval" and self.head.match_weight > 0)

    def as_json(self) -> dict[str, Any]:
        """Return what `read_task` reads."""
        content = {"task": self.task, "kind": self.kind, "labels": list(self.labels)}
        return content | {"head": self.head.model_dump(mode="json")}


def read_task(uri: str) -> TaskSpec | None:
    """Read what a model was fine-tuned for; None for one that was only pre-trained.

    Raises:
        CheckpointError: the file is damaged.
    """
    place = storage.join(uri, TASK_FILE)
    if not storage.exists(place):
        return None
    content: Any = storage.read_json(place)
    try:
        kind: Kind = content["kind"]
        if kind not in get_args(Kind):
            raise ValueError(f"kind = {kind!r}")
        head = validate(HeadConfig, content["head"], where=place)
        return TaskSpec(content["task"], kind, tuple(content["labels"]), head)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place} is damaged ({error}); take another copy of the model") from None


class TextInputs(Protocol):
    """Texts of items, as `evilm.text.item_texts` encodes them."""

    input_ids: Int[Tensor, "text word"]
    padding_mask: Bool[Tensor, "text word"]
    masked_at: Int[Tensor, " item"]


class ItemInputs(TextInputs, Protocol):
    """Items with the frames of their clips and their texts, as the data loader's `ItemBatch` has them."""

    frames: UInt8[Tensor, "clip frame row col 3"]
    clip_of: Int[Tensor, " text"]

    @property
    def num_items(self) -> int:
        """Return the number of items."""
        ...


class TaskModel:
    """E-ViLM with a task head: scores items, or embeds their videos and captions."""

    def __init__(self, student: EViLMModel, spec: TaskSpec, vocab: Vocab) -> None:
        """Join a model with a fresh head.

        Raises:
            ConfigError: no answer is one word piece.
        """
        self.student, self.spec, self.vocab = student, spec, vocab
        pieces = answer_pieces(spec.labels if spec.kind == "answer" else (), vocab)
        self.head: nn.Module = build_head(spec.kind, spec.head, student.config.dim, len(spec.labels), pieces)
        if isinstance(self.head, MaskedAnswer) and bool((pieces < 0).all()):
            raise ConfigError(
                f"no answer of {spec.task} is one word piece of the model's vocabulary, so the MLM head can't answer; "
                "fine-tune with --head.type mlp"
            )

    def scores(self, batch: ItemInputs) -> Float[Tensor, "item score"]:
        """Score the answers, classes or options of each item."""
        video = self.student.encode_video(batch.frames).index_select(0, batch.clip_of)
        scores = self.text_scores(video, batch)
        return scores.view(batch.num_items, -1) if self.spec.kind == "choice" else scores

    def text_scores(self, video: Float[Tensor, "text region dim"], batch: TextInputs) -> Float[Tensor, "text score"]:
        """Score each text with its encoded video: all answers of a question, one option of a choice; or all classes."""
        head, states = self.head, self.decode_with(video, batch)
        if isinstance(head, MaskedAnswer):
            items = torch.arange(len(batch.masked_at), device=states.words.device)
            return head(self.student, states.words[items, batch.masked_at])
        return head(self.student, states.cls)

    def decode_with(self, video: Float[Tensor, "text region dim"], batch: TextInputs) -> DecoderOutput:
        """Decode each text with an encoded video."""
        if self.spec.kind == "label":
            return self.student.decode(video, None)
        text = self.student.encode_text(batch.input_ids, batch.padding_mask)
        return self.student.decode(video, text, batch.padding_mask)

    def embed(self, batch: ItemInputs) -> Float[Tensor, "item two embed"]:
        """Embed the video (item, 0) and the caption (item, 1) of each item of a retrieval task."""
        return self.embed_encoded(self.student.encode_video(batch.frames), batch)

    def embed_encoded(
        self, video: Float[Tensor, "clip region dim"], batch: ItemInputs
    ) -> Float[Tensor, "item two embed"]:
        """Embed likewise, given the encoded videos."""
        assert isinstance(self.head, RetrievalHead)
        items = batch.num_items
        videos = self.head.embed_video(self.student.decode(video, None).cls)
        padding = batch.padding_mask[:items]
        text = self.student.encode_text(batch.input_ids[:items], padding)
        texts = self.head.embed_text(self.student.decode(None, text, padding).cls)
        return torch.stack([videos.index_select(0, batch.clip_of[:items]), texts], dim=1)

    def unused(self) -> list[nn.Module]:
        """List the parts of the model that this task's training gives no gradient."""
        student, kind, head = self.student, self.spec.kind, self.spec.head.type
        matches = self.spec.trains_match
        pools = matches or (kind != "retrieval" and head == "mlp")
        parts: list[nn.Module] = [student.mvm_head]
        parts += [] if head == "mlm" else [student.mlm_head]
        parts += [] if matches else [student.match_head.match]
        parts += [] if pools else [student.match_head.pooler]
        parts += [student.text_encoder, student.text_projection] if kind == "label" else []
        return parts

    def save_pretrained(self, uri: str) -> None:
        """Write weights and settings of model and head."""
        digests: dict[str, str] = {}
        if not isinstance(self.head, MatchScore):
            digests = pretrained.save_weights(uri, HEAD_WEIGHTS, self.head.state_dict())
        storage.write_json(storage.join(uri, TASK_FILE), self.spec.as_json() | {pretrained.DIGESTS: digests})
        with torch.no_grad():
            self.student.save_pretrained(uri)

    @classmethod
    def from_pretrained(cls, uri: str, student: EViLMModel | None = None) -> "TaskModel":
        """Load a fine-tuned model or one of its checkpoints, in eval mode.

        `student` is the model without its head, if it is loaded already; the head gets its dtype and device.

        Raises:
            CheckpointError: the model is missing or damaged, or was not fine-tuned.
        """
        spec, vocab = read_task(uri), Vocab.load(storage.join(uri, pretrained.VOCAB))
        if spec is None:
            raise CheckpointError(f"{uri} was not fine-tuned: there is no {TASK_FILE}; use pipelines/finetune.py")
        model = cls(student or EViLMModel.from_pretrained(uri), spec, vocab)
        if model.head.state_dict():
            kept = checkpoint_folder.read_model(uri, _PREFIX)
            content = storage.read_json(storage.join(uri, TASK_FILE))
            state = pretrained.read_weights(uri, HEAD_WEIGHTS, content) if kept is None else kept
            pretrained.load_into(model.head, state, uri)
        model.head.to(model.student.device, model.student.dtype).eval()
        return model


def masked_pieces(spec: TaskSpec, vocab: Vocab) -> Int[np.ndarray, " answer"] | None:
    """Return the word piece of each answer, -1 for those that are not one piece, which the MLM head can't give.

    Returns:
        None for other heads.
    """
    is_masked = spec.kind == "answer" and spec.head.type == "mlm"
    return answer_pieces(spec.labels, vocab).numpy() if is_masked else None


def task_fingerprint(uri: str) -> str:
    """Return the fingerprint of a model with its head, if it has one.

    Raises:
        CheckpointError: the model is missing or damaged.
    """
    model, spec = model_fingerprint(uri), read_task(uri)
    if spec is None:
        return model
    state = TaskModel.from_pretrained(uri).head.state_dict()
    digest = hashlib.sha256(pretrained.weight_bytes(state)).hexdigest() if state else ""
    return fingerprint({"model": model, "task": spec.as_json(), "head": digest})


def arch_for(arch: EViLMConfig, max_text_len: int, num_frames: int) -> EViLMConfig:
    """Return an architecture for texts and clips of these lengths; 0 keeps what it has.

    Raises:
        ConfigError: more words than the model has positions for.
    """
    changes = {"max_text_len": max_text_len or arch.max_text_len, "num_frames": num_frames or arch.num_frames}
    return validate(EViLMConfig, arch.model_dump() | changes)
