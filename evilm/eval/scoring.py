"""The scores of all clips against all captions, and codes of masked regions, by a pool of model actors (Ray Data)."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evilm.cluster import actor_options
from evilm.config.resources import PoolConfig, ScorerConfig
from evilm.config.training import ObjectivesConfig
from evilm.dataloader.clip_reader import ClipAugmentation, load_clips, show
from evilm.dataloader.masking import region_masks
from evilm.dataloader.sampler import EVAL_EPOCH
from evilm.eval.eval_clips import ClipBlock
from evilm.io import storage
from evilm.jobs.runner import our_error
from evilm.model.evilm_model import EViLMModel
from evilm.seeds import clip_keys
from evilm.text.vocab import Vocab

logger = logging.getLogger(__name__)

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
    only: list[list[int]] | None = None
    """Indices of the captions that each clip is scored against; the others get -inf. None: all."""


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
        self._student = EViLMModel.from_pretrained(job.model).to(device)
        vocab = Vocab.load(storage.join(job.model, "vocab"))
        input_ids, lengths = vocab.encode_batch(job.captions, self._student.config.max_text_len)
        self._word_ids = torch.from_numpy(input_ids).to(device)
        self._padding = torch.from_numpy(np.arange(input_ids.shape[1]) >= lengths[:, None]).to(device)
        self._device = device
        with torch.inference_mode():
            lots = [] if job.only is not None else _by_length(lengths)  # only some pairs: encoded as they come
            self._texts = [self._encode(places) for places in lots]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score the one block whose number the batch holds; one row per clip."""
        block = self._job.blocks[int(batch["block"][0])]
        clips = load_clips(block.pair, block.group)
        augmentation = ClipAugmentation(num_frames=self._student.config.num_frames, num_views=self._job.num_views)
        pixels, code_ids = show(augmentation, [(clips, row) for row in block.rows], EVAL_EPOCH)
        frames = torch.from_numpy(pixels)
        with torch.inference_mode():
            rows: dict[str, np.ndarray] = {"place": np.array(block.places), "match": self._match(frames, block.places)}
            if code_ids is not None:
                clip_ids = [clips.clip_ids[row] for row in block.rows]
                rows |= self._masked_codes(frames, clip_ids, code_ids, block.places)
        return rows

    def _match(self, frames: Tensor, clips: Sequence[int]) -> np.ndarray:
        """Match scores (clip, caption): each video is encoded once and decoded with every caption asked for."""
        regions = self._student.encode_video(frames.to(self._device))
        scores = torch.full((len(frames), len(self._job.captions)), -torch.inf, device=self._device)
        only = self._job.only
        for clip, video in enumerate(regions):
            texts = self._texts if only is None else self._some_texts(only[clips[clip]])
            for places, text, padding in texts:
                pairs = self._student.decode(video.expand(len(places), -1, -1), text, padding)
                logits = self._student.match_logits(pairs.cls)
                scores[clip, places] = (logits[:, 1] - logits[:, 0]).float()
        return scores.cpu().numpy()

    def _some_texts(self, captions: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
        places = torch.tensor(captions, dtype=torch.int64)
        return [self._encode(lot) for lot in places.split(_TEXTS_AT_A_TIME)] if captions else []

    def _masked_codes(
        self, frames: Tensor, clip_ids: Sequence[str], code_ids: np.ndarray, places: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Codes of regions masked as in pre-training, given the visible regions and the whole caption."""
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
    """Captions in lots of similar length, so that little padding is decoded."""
    order = torch.from_numpy(np.argsort(lengths, kind="stable"))
    return list(order.split(_TEXTS_AT_A_TIME))


def score_clips(job: ScoreJob, cluster: ScorerConfig) -> ScoreMatrix:
    """Score all blocks of `job` with up to `cluster.num_workers` actors; the result does not depend on their number.

    Raises:
        EvilmError: the model or the shards can't be used.
    """
    import ray

    resources = cluster.model_dump(include={"num_workers", "cpus_per_worker", "gpus_per_worker"})
    options, _ = actor_options(PoolConfig(memory_gb=0, **resources), len(job.blocks))
    blocks = ray.data.from_items([{"block": n} for n in range(len(job.blocks))], override_num_blocks=len(job.blocks))
    scored = blocks.map_batches(Scorer, fn_constructor_args=(job,), batch_size=1, **options)
    try:
        return _collect(scored, job)
    except Exception as error:  # Ray wraps what an actor raised in several layers of its own
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
