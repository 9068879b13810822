"""Zero-shot scores of a pre-trained model on a split of frame shards. Paper: Sec. 4.4, Table 4."""

import io
import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from evilm.config.base import validate
from evilm.config.models import EViLMConfig
from evilm.config.stages import Benchmark
from evilm.config.training import ObjectivesConfig
from evilm.errors import ConfigError, ShardError
from evilm.eval.eval_clips import EvalClip, choose_clips, make_blocks, open_shards
from evilm.eval.score_table import figures_table
from evilm.eval.zero_shot import (
    choice_figures,
    distinct_captions,
    draw_choices,
    group_recalls,
    masked_code_figures,
    retrieval_figures,
)
from evilm.io import storage
from evilm.io.figures import to_png
from evilm.io.outputs import Output
from evilm.shards import CodesManifest, FrameManifest, check_num_frames, find_codes

logger = logging.getLogger(__name__)

SCORES = "scores.parquet"
"""File of a benchmark's output with all scores."""
_BLOCK_CLIPS = 8


@dataclass(frozen=True)
class BenchmarkInputs:
    """The model, the clips and the codes of a benchmark."""

    model: str
    model_fingerprint: str
    arch: EViLMConfig
    objectives: ObjectivesConfig
    frames: FrameManifest
    codes: CodesManifest | None


def benchmark(config: Benchmark) -> dict[str, Any]:
    """Score a model: retrieval both ways, multiple choice, masked codes; or return the scores that exist at `out`.

    Returns:
        The summary: `metrics` by name, each with value, chance, standard error and sigmas above chance.

    Raises:
        CheckpointError: no model, or one whose scores tell nothing apart.
        ShardError: no frames of the split, or codes that belong to other frames.
    """
    if config.task:
        from evilm.eval.task_benchmark import benchmark_task

        return benchmark_task(config)
    out = storage.absolute(config.out or storage.join(config.root, "benchmark"))
    subject = open_inputs(config)
    inputs = {"model": subject.model_fingerprint, "frames": subject.frames.fingerprint}
    inputs["codes"] = subject.codes.fingerprint if subject.codes else ""
    with Output(config, out, inputs, needs=lambda _: [SCORES]) as output:
        if output.done:
            logger.info("%s is finished, reused\n%s", out, figures_table(output.done["metrics"]))
            return output.done | {"reused": True}
        return output.close(_score(config, subject, output))


def _score(config: Benchmark, subject: BenchmarkInputs, output: Output) -> dict[str, Any]:
    """Score the clips of the split, and write table and figure; the summary."""
    began = time.monotonic()
    pairs = open_shards(subject.frames, config.split, subject.codes)
    clips = choose_clips(pairs, config.max_clips, config.seed)
    captions, caption_of = distinct_captions(clips)
    choices = draw_choices(clips, caption_of, config.num_choices, config.seed)

    from evilm.eval.scoring import ScoreJob, score_clips

    blocks = make_blocks(pairs, clips, _BLOCK_CLIPS)
    threads = max(1, int(config.cluster.cpus_per_worker))
    job = ScoreJob(
        subject.model, blocks, captions, caption_of, subject.objectives, config.seed, threads, config.cluster.uses_gpus,
        subject.codes.num_views if subject.codes else 1,
    )  # fmt: skip
    logger.info("scoring %d clips against %d captions", len(clips), len(captions))
    scores = score_clips(job, config.cluster)

    figures, ranks = retrieval_figures(scores.match, caption_of)
    figures |= group_recalls(ranks["t2v"], clips) | choice_figures(scores.match, choices, clips)
    if scores.code_ids is not None and scores.predicted is not None and subject.codes is not None:
        histogram = subject.codes.histograms.get("train") or subject.codes.histograms[config.split]
        figures |= masked_code_figures(scores.code_ids, scores.predicted, histogram)
    output.check()
    storage.write_bytes(storage.join(output.out, "ranks.png"), _draw_ranks(ranks, len(clips)))
    storage.write_bytes(storage.join(output.out, SCORES), _scores_file(scores.match, clips, caption_of))
    table = figures_table(figures)
    logger.info("%s split, %d clips:\n%s", config.split, len(clips), table)
    summary = {
        "out": output.out,
        "inputs": output.inputs,
        "model": subject.model,
        "split": config.split,
        "num_clips": len(clips),
        "num_captions": len(captions),
        "num_choices": config.num_choices,
        "num_masked_regions": 0 if scores.code_ids is None else int(scores.code_ids.size),
        "metrics": {name: figure.as_dict() for name, figure in figures.items()},
        "reused": False,
        "seconds": round(time.monotonic() - began, 1),
    }
    return summary


def open_inputs(config: Benchmark) -> BenchmarkInputs:
    """Open model, frames and codes, each named by the user or found under `config.root`, and check that they fit."""
    from evilm.model import pretrained
    from evilm.model.evilm_model import KIND, EViLMModel
    from evilm.model.identity import model_fingerprint, read_objectives

    model = storage.absolute(config.model or storage.join(config.root, "model"))
    content = pretrained.read_config(model, KIND)
    arch = validate(EViLMConfig, content["config"], where=model)
    frames = FrameManifest.load(config.frames or storage.join(config.root, "frames"))
    check_num_frames(frames, arch.num_frames)
    fingerprint_ = model_fingerprint(model)
    EViLMModel.from_pretrained(model)  # damaged weights end here, in one line, and not in every scoring actor
    objectives, tokenizer = read_objectives(model)
    return BenchmarkInputs(model, fingerprint_, arch, objectives, frames, _find_codes(config, frames, arch, tokenizer))


def _find_codes(config: Benchmark, frames: FrameManifest, arch: EViLMConfig, tokenizer: str) -> CodesManifest | None:
    """Find the codes of these frames by the model's tokenizer; None, with a warning, where none fit."""
    if config.codes == "none":
        return None
    place = config.codes or storage.join(config.root, "codes")
    try:
        codes = CodesManifest.load(find_codes(place, tokenizer, plain=True) if tokenizer else place)
        if codes.num_codes != arch.num_codes:
            raise ShardError(f"{codes.uri} has {codes.num_codes} codes, the model {arch.num_codes}; give its own codes")
        if codes.grid != arch.grid:
            raise ShardError(
                f"{codes.uri} has {codes.grid} x {codes.grid} codes per frame, the model {arch.grid} x {arch.grid} "
                "regions; give its own codes"
            )
        open_shards(frames, config.split, codes)
    except (ShardError, ConfigError) as error:
        if config.codes:
            raise
        logger.warning("masked-code accuracy is left out: %s", error)
        return None
    return codes


def _draw_ranks(ranks: dict[str, Float[np.ndarray, "query"]], num_items: int) -> bytes:
    """Draw histograms of the ranks of the right videos and captions, beside the flat one of chance; a PNG."""
    from matplotlib.figure import Figure

    titles, edges = {"t2v": "text to video", "v2t": "video to text"}, rank_edges(num_items)
    figure = Figure(figsize=(4.5 * len(ranks), 3.4), layout="constrained")
    for place, (name, places) in enumerate(ranks.items(), start=1):
        axis, median = figure.add_subplot(1, len(ranks), place), float(np.median(places))
        axis.hist(places, bins=edges, color="tab:blue")
        chance = len(places) / num_items * np.diff(edges)  # the last bar may have fewer ranks
        axis.stairs(chance, edges, color="black", linestyle="--", linewidth=1, label="chance")
        axis.axvline(median, color="tab:red", linewidth=1, label=f"median {median:g}")
        axis.set_title(titles.get(name, name))
        axis.set_xlabel(f"rank of the right one among {num_items}")
        axis.set_ylabel("queries")
        axis.legend(fontsize="small")
    return to_png(figure)


def rank_edges(num_items: int, most: int = 40) -> list[float]:
    """Return the edges of a histogram of ranks 1 .. num_items: as many ranks in each bar, but maybe for the last."""
    width = -(-num_items // most)
    return [min(rank, num_items) + 0.5 for rank in range(0, num_items + width, width)]


def _scores_file(match: np.ndarray, clips: list[EvalClip], caption_of: list[int]) -> bytes:
    """Write the score matrix as Parquet: one row per clip, scores in the order of the distinct captions."""
    table = pa.table(
        {
            "clip_id": [clip.clip_id for clip in clips],
            "caption": [clip.caption for clip in clips],
            "caption_index": pa.array(caption_of, pa.int32()),
            "match": pa.array(list(match.astype(np.float32)), pa.list_(pa.float32())),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
