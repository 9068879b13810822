"""Report what the runs under a root have made, from each stage's summary: the last page of a workflow."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from evilm.config.stages import Report
from evilm.errors import ConfigError, ShardError
from evilm.eval.paper_tables import draw_tables, our_rows, render_tables
from evilm.eval.score_table import figures_table
from evilm.eval.task_scores import read_scores, read_tracked
from evilm.io import storage
from evilm.io.outputs import CONFIG, SUMMARY
from evilm.io.text_table import text_table
from evilm.tracking.lineage import figure_at

Summary = Mapping[str, Any]


def report(config: Report) -> dict[str, Any]:
    """Print one table over all stages under `config.root`, and the benchmark's figures; or the tables of the paper.

    Returns:
        The summary: state and seconds of each stage, the benchmark's values; of `report_tables` with `config.tables`.

    Raises:
        ConfigError: there is nothing at the root.
    """
    root = storage.absolute(config.root)
    if config.tables and config.tracking.uri:
        return report_tables(root, config.out, config.tracking.uri)
    if not storage.list_names(root):
        raise ConfigError(f"nothing at {root}; run pipelines/pretrain.py --preset tiny --root {config.root} first")
    if config.tables:
        return report_tables(root, config.out)
    stages = {name: read_stage(root, name) for name in STAGES}
    sys.stdout.write(render(stages) + "\n\n")
    summaries = {name: summary for name, (_, summary) in stages.items()}
    return {
        "root": root,
        "stages": {name: {"state": state, "seconds": _seconds(summary)} for name, (state, summary) in stages.items()},
        "metrics": {name: f["value"] for name, f in summaries["benchmark"].get("metrics", {}).items()},
        "seconds": round(sum(_seconds(summary) for summary in summaries.values()), 1),
    }


def report_tables(root: str, out: str = "", uri: str = "") -> dict[str, Any]:
    """Print Tables 1-4 of the paper with our scores, and write `tables.md` and `tables.png`.

    Args:
        out: folder of the files; '' is ROOT/tables.
        uri: MLflow store that has the scores in place of the root.

    Returns:
        The summary: root, out, number of our rows, seconds.

    Raises:
        ConfigError: there is nothing at the root, or no such store.
    """
    began, out = time.monotonic(), storage.absolute(out or storage.join(root, "tables"))
    rows = our_rows(read_tracked(uri) if uri else read_scores(root))
    text, picture = render_tables(rows), draw_tables(rows)
    storage.write_bytes(storage.join(out, "tables.md"), (text + "\n").encode())
    storage.write_bytes(storage.join(out, "tables.png"), picture)
    sys.stdout.write(text + "\n\n")
    seconds = round(time.monotonic() - began, 1)
    return {"root": root, "out": out, "rows": len(rows), "seconds": seconds}


def read_stage(root: str, name: str) -> tuple[str, Summary]:
    """Return 'done', 'unfinished', 'not run' or 'damaged' for a stage, and its summary where there is one."""
    folder = storage.join(root, name)
    place = storage.join(folder, SUMMARY)
    if storage.exists(place):
        try:
            summary = storage.read_json(place)
        except ShardError:
            return "damaged", {}
        return ("done", summary) if isinstance(summary, dict) else ("damaged", {})
    begun = storage.exists(storage.join(folder, CONFIG)) or bool(storage.list_names(folder))
    return ("unfinished" if begun else "not run"), {}


def render(stages: Mapping[str, tuple[str, Summary]]) -> str:
    """Format the stages' table with one row per group of figures, then the benchmark's own table."""
    rows = []
    for name, (state, summary) in stages.items():
        what, parts = STAGES[name]
        lines = _lines(summary, parts) or [state]
        seconds = f"{_seconds(summary):,.0f} s" if summary else ""
        rows.append([name, what, lines[0], seconds])
        rows += [["", "", line, ""] for line in lines[1:]]
    total = sum(_seconds(summary) for _, summary in stages.values())
    rows.append(["", "", "in all", f"{total:,.0f} s"])
    text = text_table(["stage", "what", "result", "time"], rows, right=(3,))
    metrics = stages["benchmark"][1].get("metrics")
    return f"{text}\n\n{figures_table(metrics)}" if metrics else text


def _splits(summary: Summary) -> str:
    clips = summary.get("clips")
    if not isinstance(clips, dict):
        return figure_at(summary, "num_clips", "{:,} clips")
    order = {"train": 0, "val": 1, "test": 2}
    parts = sorted(clips.items(), key=lambda item: (order.get(item[0], 3), item[0]))
    return f"{sum(clips.values()):,} clips ({', '.join(f'{name} {count:,}' for name, count in parts)})"


def _megabytes(summary: Summary) -> str:
    size = summary.get("num_bytes")
    return f"{size / 2**20:,.1f} MiB" if isinstance(size, int | float) else ""


def _quarantined(summary: Summary) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dict(summary.get("reasons") or {}).items()))
    return figure_at(summary, "num_quarantined", "{:,} quarantined") + (f" ({reasons})" if reasons else "")


def _usage(summary: Summary) -> str:
    usage = summary.get("code_usage")
    shown = ", ".join(f"{split} {share:.1%}" for split, share in usage.items()) if isinstance(usage, dict) else ""
    return f"code usage {shown}" if shown else ""


def _accuracies(summary: Summary) -> str:
    shown = (
        figure_at(summary, f"val.{name}_accuracy", name.upper() + " {:.1%}")
        + figure_at(summary, f"val.{name}_chance", " (chance {:.1%})")
        for name in ("mlm", "vtm", "mvm")
    )
    shown = ", ".join(filter(None, shown))
    return f"held-out accuracy {shown}" if shown else ""


def _scored(summary: Summary) -> str:
    return figure_at(summary, "num_clips", "{:,} clips") + (f" of {summary['split']}" if "split" in summary else "")


def _beside_chance(name: str, label: str) -> Callable[[Summary], str]:
    """Return what describes a metric of the benchmark."""

    def describe(summary: Summary) -> str:
        value = figure_at(summary, f"metrics.{name}.value", "{:.1%}")
        chance = figure_at(summary, f"metrics.{name}.chance", "{:.1%}")
        sigmas = figure_at(summary, f"metrics.{name}.sigmas_above_chance", "{:.1f}")
        title = label.format(summary.get("num_choices", "?"))
        return f"{title} {value} (chance {chance}, {sigmas} standard errors)" if value and chance and sigmas else ""

    return describe


Part = Callable[[Summary], str] | tuple[str, str]
"""A part of a line: a function of the summary, or a dotted name in it and how its number is shown."""
STAGES: dict[str, tuple[str, list[list[Part]]]] = {
    "corpus": (
        "captioned videos",
        [[_splits, ("heldout_clips", "{:,} of unseen combinations"), ("words", "{:,} words")]],
    ),
    "frames": ("frame shards", [[_splits, ("num_shards", "{:,} shards"), _megabytes], [_quarantined]]),
    "vocab": (
        "words",
        [
            [
                *(("num_words", "{:,} word pieces"), ("num_captions", "of {:,} captions")),
                *(("unk_ratio", "[UNK] {:.2%}"), ("words_mean", "{:.1f} pieces a caption")),
            ]
        ],
    ),
    "tokenizer": (
        "video tokenizer",
        [
            [("num_codes", "{:,} codes"), ("steps", "{:,} steps")],
            [
                ("val.code_usage", "held-out code usage {:.1%}"),
                *(("val.code_perplexity", "perplexity {:.0f}"), ("val.word_map", "word mAP {:.3f}")),
            ],
        ],
    ),
    "codes": ("codes of all clips", [[("num_shards", "{:,} shards"), _megabytes, _usage]]),
    "model": (
        "pre-trained E-ViLM",
        [
            [("parameters", "{:,} parameters"), ("steps", "{:,} steps"), ("val.loss", "held-out loss {:.3f}")],
            [_accuracies],
        ],
    ),
    "benchmark": (
        "zero-shot scores",
        [
            [_scored],
            [_beside_chance("choice_accuracy", "multiple choice of {}")],
            [_beside_chance("t2v_r10", "text to video R@10")],
            [_beside_chance("mvm_accuracy", "masked codes")],
        ],
    ),
}
"""Stages by their folder under the root, in the order they run: what they make, and the lines about it."""


def _lines(summary: Summary, lines: list[list[Part]]) -> list[str]:
    """Return the lines about a stage, without parts that its summary does not have, as that of another version."""
    written = (
        ", ".join(filter(None, (figure_at(summary, *p) if isinstance(p, tuple) else p(summary) for p in parts)))
        for parts in lines
    )
    return [line for line in written if line]


def _seconds(summary: Summary) -> float:
    seconds = summary.get("seconds", 0)
    return float(seconds) if isinstance(seconds, int | float) else 0.0
