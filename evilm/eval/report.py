"""Report what the runs under a root have made, from each stage's summary: the last page of a workflow."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from evilm.config.stages import Report
from evilm.errors import ConfigError, ShardError
from evilm.eval.score_table import figures_table
from evilm.io import storage
from evilm.io.outputs import CONFIG, SUMMARY
from evilm.io.text_table import text_table

Summary = Mapping[str, Any]


def report(config: Report) -> dict[str, Any]:
    """Print one table over all stages under `config.root`, and the benchmark's figures; the table is the result.

    Returns:
        The summary: state and seconds of each stage, the benchmark's values.

    Raises:
        ConfigError: there is nothing at the root.
    """
    root = storage.absolute(config.root)
    if not storage.list_names(root):
        raise ConfigError(f"nothing at {root}; run pipelines/pretrain.py --preset tiny --root {config.root} first")
    stages = {name: read_stage(root, name) for name in STAGES}
    sys.stdout.write(render(stages) + "\n\n")
    summaries = {name: summary for name, (_, summary) in stages.items()}
    return {
        "root": root,
        "stages": {name: {"state": state, "seconds": _seconds(summary)} for name, (state, summary) in stages.items()},
        "metrics": {name: f["value"] for name, f in summaries["benchmark"].get("metrics", {}).items()},
        "seconds": round(sum(_seconds(summary) for summary in summaries.values()), 1),
    }


def read_stage(root: str, name: str) -> tuple[str, Summary]:
    """The state of a stage, 'done', 'unfinished', 'not run' or 'damaged', and its summary where there is one."""
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
    """The stages' table with one row per main figure group, then the benchmark's own table."""
    rows = []
    for name, (state, summary) in stages.items():
        what, describe = STAGES[name]
        lines = [line for line in describe(summary) if line] if summary else []
        lines = lines or [state]
        seconds = f"{_seconds(summary):,.0f} s" if summary else ""
        rows.append([name, what, lines[0], seconds])
        rows += [["", "", line, ""] for line in lines[1:]]
    total = sum(_seconds(summary) for _, summary in stages.values())
    rows.append(["", "", "in all", f"{total:,.0f} s"])
    text = text_table(["stage", "what", "result", "time"], rows, right=(3,))
    metrics = stages["benchmark"][1].get("metrics")
    return f"{text}\n\n{figures_table(metrics)}" if metrics else text


def _corpus(summary: Summary) -> list[str]:
    return [
        _join(
            _splits(summary),
            _some(summary, "heldout_clips", "{:,} of unseen combinations"),
            _some(summary, "words", "{:,} words"),
        )
    ]


def _frames(summary: Summary) -> list[str]:
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dict(summary.get("reasons") or {}).items()))
    return [
        _join(_splits(summary), _some(summary, "num_shards", "{:,} shards"), _megabytes(summary)),
        _join(_some(summary, "num_quarantined", "{:,} quarantined") + (f" ({reasons})" if reasons else "")),
    ]


def _vocab(summary: Summary) -> list[str]:
    return [
        _join(
            _some(summary, "num_words", "{:,} word pieces"),
            _some(summary, "num_captions", "of {:,} captions"),
            _some(summary, "unk_ratio", "[UNK] {:.2%}"),
            _some(summary, "words_mean", "{:.1f} pieces a caption"),
        )
    ]


def _tokenizer(summary: Summary) -> list[str]:
    return [
        _join(_some(summary, "num_codes", "{:,} codes"), _some(summary, "steps", "{:,} steps")),
        _join(
            _some(summary, "val.code_usage", "held-out code usage {:.1%}"),
            _some(summary, "val.code_perplexity", "perplexity {:.0f}"),
            _some(summary, "val.word_map", "word mAP {:.3f}"),
        ),
    ]


def _codes(summary: Summary) -> list[str]:
    usage = summary.get("code_usage")
    shown = ", ".join(f"{split} {share:.1%}" for split, share in usage.items()) if isinstance(usage, dict) else ""
    return [
        _join(_some(summary, "num_shards", "{:,} shards"), _megabytes(summary), f"code usage {shown}" if shown else "")
    ]


def _model(summary: Summary) -> list[str]:
    val = {name: _some(summary, f"val.{name}_accuracy", name.upper() + " {:.1%}") for name in ("mlm", "vtm", "mvm")}
    accuracies = _join(*val.values())
    return [
        _join(
            _some(summary, "parameters", "{:,} parameters"),
            _some(summary, "steps", "{:,} steps"),
            _some(summary, "val.loss", "held-out loss {:.3f}"),
        ),
        f"held-out accuracy {accuracies}" if accuracies else "",
    ]


def _benchmark(summary: Summary) -> list[str]:
    lines = [
        _join(_some(summary, "num_clips", "{:,} clips") + (f" of {summary['split']}" if "split" in summary else ""))
    ]
    for name, label in (
        ("choice_accuracy", f"multiple choice of {summary.get('num_choices', '?')}"),
        ("t2v_r10", "text to video R@10"),
        ("mvm_accuracy", "masked codes"),
    ):
        value = _some(summary, f"metrics.{name}.value", "{:.1%}")
        chance = _some(summary, f"metrics.{name}.chance", "{:.1%}")
        sigmas = _some(summary, f"metrics.{name}.sigmas_above_chance", "{:.1f}")
        lines.append(
            f"{label} {value} (guessing {chance}, {sigmas} standard errors)" if value and chance and sigmas else ""
        )
    return lines


STAGES: dict[str, tuple[str, Callable[[Summary], list[str]]]] = {
    "corpus": ("captioned videos", _corpus),
    "frames": ("frame shards", _frames),
    "vocab": ("words", _vocab),
    "tokenizer": ("video tokenizer", _tokenizer),
    "codes": ("codes of all clips", _codes),
    "model": ("pre-trained E-ViLM", _model),
    "benchmark": ("zero-shot scores", _benchmark),
}
"""Stages by their folder under the root, in the order they run."""


def _splits(summary: Summary) -> str:
    clips = summary.get("clips")
    if not isinstance(clips, dict):
        return _some(summary, "num_clips", "{:,} clips")
    order = {"train": 0, "val": 1, "test": 2}
    parts = sorted(clips.items(), key=lambda item: (order.get(item[0], 3), item[0]))
    return f"{sum(clips.values()):,} clips ({', '.join(f'{name} {count:,}' for name, count in parts)})"


def _megabytes(summary: Summary) -> str:
    size = summary.get("num_bytes")
    return f"{size / 2**20:,.1f} MiB" if isinstance(size, int | float) else ""


def _seconds(summary: Summary) -> float:
    seconds = summary.get("seconds", 0)
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def _some(summary: Summary, dotted: str, shown: str) -> str:
    """A number of the summary as text; '' where it is missing or no number, as in summaries of other versions."""
    value: Any = summary
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return shown.format(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
