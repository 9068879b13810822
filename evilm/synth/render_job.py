"""Render the embedded corpus with Ray tasks; each writes its clips atomically, so a rerun adds only missing ones."""

import logging
import time
from typing import Any

from evilm.cluster import connect
from evilm.config.base import fingerprint
from evilm.config.data import CorpusConfig
from evilm.config.stages import RenderCorpus
from evilm.errors import UsageError
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.synth import VIDEOS_NAME, PlannedClip, plan_corpus, render_and_write, write_manifests
from evilm.synth.corpus_annotations import FOLDER, write_annotations

logger = logging.getLogger(__name__)

_TASK_CLIPS = 50


def render_corpus(config: RenderCorpus) -> dict[str, Any]:
    """Render the corpus to `out`: `manifest.csv` and `videos/`.

    Returns:
        The summary: clips by split, paths, fingerprint, seconds.
    """
    if not config.out:
        raise UsageError("--out is missing; name the folder for the corpus")
    out = storage.absolute(config.out)
    with Output(config, out, {}, needs=lambda done: [done["manifest"].rsplit("/", 1)[-1], VIDEOS_NAME]) as output:
        if not output.done:
            return output.close(_write_corpus(config, output))
    if not storage.exists(storage.join(out, FOLDER)):  # of a version before them
        write_annotations(plan_corpus(config.corpus), config.corpus.seed, out)
    return output.done | {"reused": True}


def _write_corpus(config: RenderCorpus, output: Output) -> dict[str, Any]:
    """Render missing clips and return the summary."""
    began, out = time.monotonic(), output.out
    planned = plan_corpus(config.corpus)
    connect()
    _render(planned, config, out)
    output.check()
    manifest = write_manifests(planned, config.corpus, out)
    write_annotations(planned, config.corpus.seed, out)
    by_split: dict[str, int] = {}
    for clip in planned:
        by_split[clip.split] = by_split.get(clip.split, 0) + 1
    summary = {
        "out": out,
        "inputs": {},
        "manifest": manifest,
        "videos": storage.join(out, VIDEOS_NAME),
        "annotations": storage.join(out, FOLDER),
        "clips": by_split,
        "heldout_clips": sum(clip.heldout for clip in planned),
        "words": len({word for clip in planned for word in clip.caption.lower().replace(",", " ").split()}),
        "fingerprint": fingerprint(config.identity),
        "seconds": round(time.monotonic() - began, 1),
    }
    return summary


def _render(planned: list[PlannedClip], config: RenderCorpus, out: str) -> None:
    """Render chunks of clips in at most `num_workers` tasks at a time, and log progress."""
    import ray

    remote = ray.remote(num_cpus=1, max_retries=3)(_render_chunk)
    chunks = [planned[start : start + _TASK_CLIPS] for start in range(0, len(planned), _TASK_CLIPS)]
    waiting, running, done, began, reported = list(reversed(chunks)), {}, 0, time.monotonic(), time.monotonic()
    while waiting or running:
        while waiting and len(running) < config.cluster.num_workers:
            chunk = waiting.pop()
            running[remote.remote(chunk, config.corpus, out)] = len(chunk)
        ready, _ = ray.wait(list(running), num_returns=1)
        for reference in ready:
            ray.get(reference)
            done += running.pop(reference)
        if time.monotonic() - reported > 10:
            reported, rate = time.monotonic(), done / (time.monotonic() - began)
            left = (len(planned) - done) / rate
            logger.info("corpus: %d of %d clips, %.0f clips/s, %.0f s left", done, len(planned), rate, left)


def _render_chunk(planned: list[PlannedClip], corpus: CorpusConfig, out: str) -> int:
    return render_and_write(planned, corpus, out)
