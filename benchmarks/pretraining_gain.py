"""Compare fine-tuned models that were pre-trained with models from scratch: Table 5's first row against its last.

    python benchmarks/pretraining_gain.py --preset tiny --root runs/demo --seeds 3
    python benchmarks/pretraining_gain.py --preset tiny --root runs/demo --tasks msvd-qa --finetune schedule.epochs=4

Fine-tunes each task from --root/model and from random weights, with the same seeds, settings and order of items, and
scores all models on test. A model of `msrvtt-retrieval` (7k list) is also scored on MSRVTT-MC. Prints the mean over the
seeds, its range, and the difference with a 95 % interval by a bootstrap over videos, which does not cover the variation
over seeds. Finished models are reused.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from harness import count

from evilm.config.presets import defaults
from evilm.eval.benchmark import benchmark
from evilm.eval.item_figures import difference
from evilm.io.text_table import text_table
from evilm.tasks.finetune import finetune

_ARMS = {"pretrained": False, "scratch": True}
_SCORED_ON = {"msrvtt-retrieval": ("msrvtt-retrieval", "msrvtt-mc")}
"""Tasks that a model is scored on, if not only on its own."""
_FIGURE = {"msrvtt-retrieval": "t2v_r10", "didemo-retrieval": "t2v_r10"}
"""Figure of a task; accuracy for the others."""


def main() -> None:
    """Train and score all models, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--root", default="runs/demo")
    parser.add_argument("--tasks", nargs="+", default=["msvd-qa", "msrvtt-retrieval"])
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--finetune", nargs="*", default=[], metavar="NAME=VALUE", help="settings of all fine-tunings")
    parser.add_argument("--json", default="", help="write the figures to this file")
    given = parser.parse_args()
    found: dict[str, dict[str, list[Path]]] = {}
    for task in given.tasks:
        for seed in range(given.seeds):
            for arm, scratch in _ARMS.items():
                for scored, out in train_and_score(given, task, seed, arm, scratch).items():
                    found.setdefault(scored, {}).setdefault(arm, []).append(out)
    rows = [row(task, arms) for task, arms in found.items()]
    header = ["", "items", *_ARMS, "range", "range", "difference", "95 % interval"]
    print(text_table(header, [format_row(values) for values in rows], right=range(1, len(header))))
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1))


def train_and_score(given: argparse.Namespace, task: str, seed: int, arm: str, scratch: bool) -> dict[str, Path]:
    """Fine-tune a model and score it; return the folders of its scores by task."""
    root = Path(given.root)
    settings: dict[str, Any] = dict(_named(text) for text in given.finetune)
    protocol = {"items.protocol": "7k"} if task == "msrvtt-retrieval" else {}
    model = str(root / f"{task}-model-{arm}{seed}")
    values = {"root": given.root, "task": task, "from_scratch": scratch, "schedule.seed": seed, "out": model}
    finetune(defaults("finetune", given.preset).override(values | protocol | settings))  # type: ignore[arg-type]
    outs = {}
    for scored in _SCORED_ON.get(task, (task,)):
        outs[scored] = root / f"{scored}-scores-{arm}{seed}"
        values = {"root": given.root, "task": scored, "model": model, "out": str(outs[scored])}
        items = protocol if scored == task else {}
        benchmark(defaults("benchmark", given.preset).override(values | items))  # type: ignore[arg-type]
    return outs


def _named(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, yaml.safe_load(value)


def row(task: str, arms: dict[str, list[Path]]) -> dict[str, Any]:
    """Compare the arms of a task over all seeds."""
    tables = {arm: [pq.read_table(out / "predictions.parquet") for out in outs] for arm, outs in arms.items()}
    ranked = task in _FIGURE
    hits = {
        arm: np.stack([t["rank"].to_numpy() <= 10 if ranked else t["correct"].to_numpy() for t in own]).astype(float)
        for arm, own in tables.items()
    }
    clip_ids = tables["scratch"][0]["clip_id"].to_pylist()
    gain, low, high = difference(hits["pretrained"].mean(0), hits["scratch"].mean(0), clip_ids)
    values = {arm: own.mean(1).tolist() for arm, own in hits.items()}
    figure = _FIGURE.get(task, "accuracy")
    return {"task": task, "figure": figure, "items": len(clip_ids), **values, "gain": gain, "interval": [low, high]}


def format_row(values: dict[str, Any]) -> list[str]:
    """Format a row of the table."""
    means = [f"{np.mean(values[arm]):.1%}" for arm in _ARMS]
    ranges = [f"{min(values[arm]):.1%} .. {max(values[arm]):.1%}" for arm in _ARMS]
    low, high = values["interval"]
    title = f"{values['task']}, {values['figure']}"
    return [title, f"{values['items']:,}", *means, *ranges, f"{values['gain']:+.1%}", f"{low:+.1%} .. {high:+.1%}"]


if __name__ == "__main__":
    main()
