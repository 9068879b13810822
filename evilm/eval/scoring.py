"""The scores of all clips against all captions, and codes of masked regions, by a pool of model actors (Ray Data)."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evilm.cluster import actor_options
from evilm.config.models import EViLMConfig
from evilm.config.resources import ActorPoolConfig, ScorerConfig
from evilm.config.training import ObjectivesConfig
from evilm.dataloader.clip_reader import ClipAugmentation, load_clips, show
from evilm.dataloader.masking import region_masks
from evilm.dataloader.sampler import EVAL_EPOCH
from evilm.eval.eval_clips import ClipBlock
from evilm.io import storage
from evilm.jobs.runner import our_error
from evilm.model.evilm_model import EViLMModel
from evilm.model.warm_start import refit
from evilm.seeds import clip_keys
from evilm.text.vocab import Vocab

logger = logging.getLogger(__name__)

T = TypeVar("T")
_TEXTS_AT_A_TIME = 64
_LOG_EVERY_S = 15.0


@dataclass(frozen=True)
class ScoreJob:
    """All that an actor needs; small, since it travels to each of them."""

    model: str
    blocks: list[ClipBlock]
    captions: list[str]
    """Distinct captions."""
    caption_of: list[int]
    """Index of each clip's caption."""
    objectives: ObjectivesConfig
    seed: int
    threads: int = 1
    use_gpu: bool = False
    num_views: int = 1
    """Views that were coded; the first, the whole frame, is scored."""
    only: Int[np.ndarray, "caption best"] | None = None
    """Indices of the clips that each caption is scored against; None: all."""
    arch: EViLMConfig | None = None
    """The model's, or that for texts and clips of other lengths; None: the model's."""


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores of all clips against all captions, and predicted codes."""

    match: Float[np.ndarray, "clip caption"]
    """Logit of match minus logit of mismatch for every clip and distinct caption."""
    code_ids: Int[np.ndarray, "clip masked"] | None
    """The cached code of each masked region."""
    predicted: Int[np.ndarray, "clip masked"] | None
    """The model's code of each masked region."""


class Scorer:
    """A model that holds the encoded captions and scores blocks of clips against them."""

    def __init__(self, job: ScoreJob) -> None:
        """Load the model and encode each caption once."""
        torch.set_num_threads(job.threads)
        self._job = job
        device = torch.device("cuda" if job.use_gpu else "cpu")
        student = EViLMModel.from_pretrained(job.model).to(device)
        self._student = student if job.arch is None else refit(student, job.arch)
        vocab = Vocab.load(storage.join(job.model, "vocab"))
        input_ids, lengths = vocab.encode_batch(job.captions, self._student.config.max_text_len)
        self._word_ids = torch.from_numpy(input_ids).to(device)
        self._padding = torch.from_numpy(np.arange(input_ids.shape[1]) >= lengths[:, None]).to(device)
        self._device = device
        if job.only is not None:  # captions are encoded as they come: all of them may not fit into memory
            self._pairs_of = pairs_by_clip(job.only, len(job.caption_of))
            return
        with torch.inference_mode():
            self._texts = [self._encode(places) for places in _by_length(lengths)]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score the block whose number the batch holds; one row per clip, or per pair if only some are asked for."""
        block = self._job.blocks[int(batch["block"][0])]
        clips = load_clips(block.pair, block.group)
        augmentation = ClipAugmentation(num_frames=self._student.config.num_frames, num_views=self._job.num_views)
        pixels, code_ids = show(augmentation, [(clips, row) for row in block.rows], EVAL_EPOCH)
        frames = torch.from_numpy(pixels)
        with torch.inference_mode():
            if self._job.only is not None:
                return self._some_pairs(frames, block.places)
            rows: dict[str, np.ndarray] = {"place": np.array(block.places), "match": self._match(frames)}
            if code_ids is not None:
                clip_ids = [clips.clip_ids[row] for row in block.rows]
                rows |= self._masked_codes(frames, clip_ids, code_ids, block.places)
        return rows

    def _match(self, frames: Tensor) -> np.ndarray:
        """Match scores (clip, caption): each video is encoded once and decoded with every caption."""
        regions = self._student.encode_video(frames.to(self._device))
        scores = torch.empty((len(frames), len(self._job.captions)), device=self._device)
        for clip, video in enumerate(regions):
            for text in self._texts:
                scores[clip, text[0]] = self._pair_scores(video, *text)
        return scores.cpu().numpy()

    def _some_pairs(self, frames: Tensor, clips: Sequence[int]) -> dict[str, np.ndarray]:
        """Compute match scores of the pairs that are asked for, by their places in the job's `only`."""
        assert self._job.only is not None
        regions = self._student.encode_video(frames.to(self._device))
        pairs = [self._pairs_of[clip] for clip in clips]
        found = [np.empty(0, dtype=np.float32)]
        for own, video in zip(pairs, regions, strict=True):
            captions = torch.from_numpy(own // self._job.only.shape[1])
            for lot in captions.split(_TEXTS_AT_A_TIME) if len(own) else ():
                found.append(self._pair_scores(video, *self._encode(lot)).cpu().numpy())
        return {"pair": np.concatenate(pairs), "match": np.concatenate(found)}

    def _pair_scores(self, video: Tensor, places: Tensor, text: Tensor, padding: Tensor) -> Tensor:
        pairs = self._student.decode(video.expand(len(places), -1, -1), text, padding)
        logits = self._student.match_logits(pairs.cls)
        return (logits[:, 1] - logits[:, 0]).float()

    def _masked_codes(
        self, frames: Tensor, clip_ids: Sequence[str], code_ids: np.ndarray, places: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Predict codes of regions masked as in pre-training, given the visible regions and the whole caption."""
        job = self._job
        mask = torch.from_numpy(self._masks(clip_ids)).to(self._device)
        captions = torch.tensor([job.caption_of[place] for place in places], device=self._device)
        _, text, padding = self._encode(captions)
        video = self._student.encode_video(frames.to(self._device), mask)
        masked = mask.flatten(1)
        states = self._student.decode(video, text, padding).regions[masked]
        predicted = self._student.mvm_logits(states).argmax(dim=-1).view(len(clip_ids), -1)
        truth = code_ids[masked.cpu().numpy()].reshape(len(clip_ids), -1)
        return {"code_ids": truth, "predicted": predicted.cpu().numpy()}

    def _masks(self, clip_ids: Sequence[str]) -> np.ndarray:
        config, how = self._student.config, self._job.objectives
        keys = clip_keys("benchmark", self._job.seed, 0, clip_ids)
        return region_masks(how.mask_shape, config.grid, config.num_frames, how.mask_ratio, keys)

    def _encode(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode some captions, cut to the longest of them: their indices, words for the decoder, and padding."""
        places = places.to(self._device)
        padding = self._padding[places]
        longest = int((~padding).sum(dim=1).max())
        padding = padding[:, :longest]
        return places, self._student.encode_text(self._word_ids[places, :longest], padding), padding


def _by_length(lengths: np.ndarray) -> list[Tensor]:
    """Return the numbers of captions in batches of similar length, so that little padding is decoded."""
    order = torch.from_numpy(np.argsort(lengths, kind="stable"))
    return list(order.split(_TEXTS_AT_A_TIME))


def pairs_by_clip(only: Int[np.ndarray, "caption best"], num_clips: int) -> list[Int[np.ndarray, " pair"]]:
    """List for each clip the places in `only` that name it, in order."""
    order = np.argsort(only, axis=None, kind="stable")
    return np.split(order, np.searchsorted(only.ravel()[order], np.arange(1, num_clips)))


def score_clips(job: ScoreJob, cluster: ScorerConfig) -> ScoreMatrix:
    """Score all blocks of `job` with up to `cluster.num_workers` actors; the result does not depend on their number.

    Raises:
        EvilmError: the model or the shards can't be used.
    """
    return _with_our_errors(lambda: _collect(_start(job, cluster), job))


def score_some(job: ScoreJob, cluster: ScorerConfig) -> Float[np.ndarray, "caption best"]:
    """Score only the pairs that `job.only` asks for, likewise.

    Raises:
        EvilmError: the model or the shards can't be used.
    """
    assert job.only is not None
    only = job.only
    return _with_our_errors(lambda: gather_pairs(only, _start(job, cluster).iter_batches(batch_size=None)))


def gather_pairs(only: Int[np.ndarray, "caption best"], batches: Iterable[dict[str, np.ndarray]]) -> np.ndarray:
    """Put the scores of pairs in the places of these pairs in `only`, in whatever order they come."""
    scores, done, reported = np.full(only.size, np.nan, dtype=np.float32), 0, time.monotonic()
    for batch in batches:
        scores[batch["pair"]] = batch["match"]
        done += len(batch["pair"])
        if time.monotonic() - reported > _LOG_EVERY_S:
            reported = time.monotonic()
            logger.info("scored %d of %d pairs", done, only.size)
    assert done == only.size, f"{done} of {only.size} pairs came back"
    return scores.reshape(only.shape)


def _start(job: ScoreJob, cluster: ScorerConfig) -> Any:
    """Return the data set of scored rows, which are computed as they are read."""
    import ray

    resources = cluster.model_dump(include={"num_workers", "cpus_per_worker", "gpus_per_worker"})
    options, _ = actor_options(ActorPoolConfig(memory_gb=0, **resources), len(job.blocks))
    blocks = ray.data.from_items([{"block": n} for n in range(len(job.blocks))], override_num_blocks=len(job.blocks))
    return blocks.map_batches(Scorer, fn_constructor_args=(job,), batch_size=1, **options)


def _with_our_errors(work: Callable[[], T]) -> T:
    """Call a function that reads scored rows; what an actor raised comes out of the layers that Ray wraps it in."""
    try:
        return work()
    except Exception as error:
        cause = our_error(error)
        if cause is None:
            raise
        raise cause from None


def _collect(scored: Any, job: ScoreJob) -> ScoreMatrix:
    """Put rows in place, in whatever order they come; log progress now and then."""
    num_clips = len(job.caption_of)
    found: dict[int, dict[str, Any]] = {}
    first = reported = time.monotonic()
    for row in scored.iter_rows():
        now = time.monotonic()
        first = first if found else now  # the start of the actors says nothing about the rate
        found[int(row["place"])] = row
        if now - reported > _LOG_EVERY_S:
            reported, left = now, num_clips - len(found)
            rest = f", {left * (now - first) / len(found):.0f} s left" if now > first else ""
            logger.info("scored %d of %d clips%s", len(found), num_clips, rest)
    assert len(found) == num_clips, f"{len(found)} of {num_clips} clips came back"

    def column(name: str) -> np.ndarray:
        return np.stack([np.asarray(found[place][name]) for place in range(num_clips)])

    has_codes = "code_ids" in found[0]
    return ScoreMatrix(column("match"), *((column("code_ids"), column("predicted")) if has_codes else (None, None)))
