"""Find or build the inputs of pre-training that the user did not name, with the functions of the other commands."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from evilm.config.data import ColumnsConfig
from evilm.config.stages import STAGES, Pretrain
from evilm.encode.encode_job import precompute_codes
from evilm.errors import ConfigError
from evilm.ingest.shard_videos import shard_videos
from evilm.io import storage
from evilm.manifests.manifest_files import is_tar, list_manifests
from evilm.synth.render_job import render_corpus
from evilm.tasks.train_tokenizer import train_tokenizer
from evilm.text.vocab_builder import build_vocab
from evilm.tracking.track_run import track

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Folders that pre-training reads."""

    frames: str
    codes: str
    vocab: str
    tokenizer: str


def build_missing(config: Pretrain, check: Callable[[str], None] = lambda frames: None) -> Inputs:
    """Return the inputs of pre-training, each named by the user or built under `config.root`; finished ones are reused.

    `check` is called with the folder of the frame shards before the tokenizer is trained for them.

    Raises:
        ConfigError: only one of videos and manifest is named, or codes are named without their frames.
    """
    needs_videos = config.manifest and not config.shard_videos.fetch.urls and not config.videos
    if needs_videos and all(map(is_tar, list_manifests(config.manifest))):
        needs_videos = False
    if needs_videos or (config.videos and not config.manifest):
        raise ConfigError(
            "--manifest and --videos go together; name both, or neither for the embedded corpus (tars need no --videos)"
        )
    if config.codes and not (config.frames and config.tokenizer):
        raise ConfigError("--codes belong to frames and a tokenizer; name --frames and --tokenizer with them")
    if not config.root.startswith("/") and "://" not in config.root and os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        logger.warning(
            "--root %s is in this job's temporary copy of the working dir; name a permanent folder", config.root
        )
    frames, vocab = build_data(config)
    check(frames)
    run = partial(_run_stage, config)
    root = storage.absolute(config.root)
    tokenizer = config.tokenizer or storage.join(root, "tokenizer")
    if not config.tokenizer:
        run("train_tokenizer", train_tokenizer, frames=frames, vocab=vocab, out=tokenizer)
    codes = config.codes
    if not codes:  # these views only; the folder may hold others
        places = {"frames": frames, "tokenizer": tokenizer, "out": storage.join(root, "codes")}
        views = {"views": config.views} if config.views else {}
        codes = run("precompute_codes", precompute_codes, **places, **views)["codes"]
    return Inputs(*(storage.absolute(place) for place in (frames, codes, vocab, tokenizer)))


def build_data(config: Pretrain) -> tuple[str, str]:
    """Return frame shards and vocabulary, each named by the user or built under `config.root`."""
    root = storage.absolute(config.root)
    manifest, videos = config.manifest, config.videos
    run = partial(_run_stage, config)
    columns: dict[str, Any] = {"columns": config.columns} if manifest and config.columns != ColumnsConfig() else {}
    if not manifest and not (config.frames and config.vocab):
        corpus = run("render_corpus", render_corpus, out=storage.join(root, "corpus"))
        manifest, videos = corpus["manifest"], corpus["videos"]
    frames = config.frames or storage.join(root, "frames")
    if not config.frames:
        run("shard_videos", shard_videos, manifest=manifest, videos=videos, out=frames, **columns)
    vocab = config.vocab or storage.join(root, "vocab")
    if not config.vocab:
        run("build_vocab", build_vocab, manifest=manifest, out=vocab, **columns)
    return storage.absolute(frames), storage.absolute(vocab)


def _run_stage(caller: Pretrain, stage: str, function: Any, **given: Any) -> dict[str, Any]:
    """Run an upstream command with its paths filled in; it is tracked like a separate call."""
    tracking = caller.tracking.model_copy(update={"run_name": "", "parent": ""})
    settings = dict(getattr(caller, stage)) | given | {"take_over": caller.take_over, "tracking": tracking}
    config = STAGES[stage].model_validate(settings)
    try:
        summary = function(config) if stage == "train_tokenizer" else track(stage, function, config)
    except ConfigError as error:
        raise ConfigError(
            f"{stage}, to build {given['out']}: {error} (here its settings are --set {stage}.NAME=VALUE; to overwrite "
            f"its output, run pipelines/{stage}.py)"
        ) from None
    logger.info("%s: %s in %s", stage, "reused" if summary.get("reused") else "made", summary.get("out", given["out"]))
    return summary
