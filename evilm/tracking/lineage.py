"""Link the MLflow runs of all commands: tags to filter by, and a description in Markdown.

A run says what it made (`evilm.made`) and what from (`evilm.input.<name>`), by fingerprint. Whoever made an input is
found by these in the same store, and named in `evilm.from.<name>` and, as a link, in the description.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from evilm.config.stage_settings import StageConfig
from evilm.tracking.experiment import ROOT, STAGE, TASK
from evilm.tracking.run_file import read_run_file

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

MADE, FROM, INPUT, PARENT = "evilm.made", "evilm.from.", "evilm.input.", "mlflow.parentRunId"
_QUOTE_BREAKS = ("'", '"', "\\")
_ADOPTING = ("pretrain", "finetune", "benchmark")
_ADOPTED = ("render_corpus", "shard_videos", "build_vocab", "train_tokenizer", "precompute_codes", "build_items")


def identity_tags(config: StageConfig, stage: str, out: str, inputs: Mapping[str, str]) -> dict[str, str]:
    """Return the tags to filter runs by: command, place, root folder, preset, version, fingerprint of each input."""
    import evilm

    tags = {
        STAGE: stage,
        "evilm.out": out,
        ROOT: root_of(out),
        "evilm.version": evilm.__version__,
        "mlflow.source.name": f"{type(config).folder}/{stage}.py",
        "mlflow.source.type": "PROJECT",
    }
    if config.preset:
        tags["evilm.preset"] = config.preset.rsplit("/", 1)[-1]
    if task := getattr(config, "task", ""):
        tags[TASK] = task
    return tags | {INPUT + name: value for name, value in inputs.items() if value}


def root_of(out: str) -> str:
    """Return the name of the folder that a workflow's outputs lie in: `demo` for runs/demo/model."""
    parts = [part for part in out.split("://")[-1].split("/") if part]
    return parts[-2] if len(parts) > 1 else ""


def find_sources(client: Any, uri: str, inputs: Mapping[str, tuple[str, str]]) -> "dict[str, Run]":
    """Return the runs of this store that made the inputs, by name of the input; those that none made are left out.

    `inputs` has the fingerprint and place of each input.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = {}
    for name, (fingerprint_, place) in inputs.items():
        source = _by_fingerprint(client, experiments, fingerprint_) or _by_place(client, uri, place)
        if source:
            found[name] = source
    return found


def _by_fingerprint(client: Any, experiments: list[str], fingerprint_: str) -> "Run | None":
    if not fingerprint_ or not experiments or any(sign in fingerprint_ for sign in _QUOTE_BREAKS):
        return None
    wanted = f"tags.`{MADE}` = '{fingerprint_}'"
    runs = client.search_runs(experiments, wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return runs[0] if runs else None


def _by_place(client: Any, uri: str, place: str) -> "Run | None":
    """Find it by the note that a command leaves in its output folder; a manifest is a file in one."""
    if not place or any(sign in place for sign in ",*?"):
        return None
    for folder in (place, place.rpartition("/")[0]):
        try:
            if known := read_run_file(folder, uri) if folder else {}:
                return client.get_run(known["run_id"])
        except Exception as error:  # no note, somebody else's file, a run that is gone: a link less, and no more
            logger.debug("no run known by %s: %s", folder, error)
    return None


def nest_stages(client: Any, run_id: str, tags: Mapping[str, str], sources: "Mapping[str, Run]") -> None:
    """Show the stages that prepared the data of a training or benchmark below its run, unless they are below another.

    `tags` are those of the run; the trials of a sweep share their inputs, so they take none.
    """
    if tags[STAGE] not in _ADOPTING or (tags[STAGE] == "pretrain" and PARENT in tags):
        return
    found = list(sources.values())
    while found:
        source = found.pop()
        its = source.data.tags
        if its.get(STAGE) in _ADOPTED and its.get(ROOT) == tags[ROOT]:
            if PARENT not in its:
                client.set_tag(source.info.run_id, PARENT, run_id)
            found += [client.get_run(source_run) for name, source_run in its.items() if name.startswith(FROM)]


def write_note(
    about: str,
    out: str,
    inputs: Mapping[str, tuple[str, str]],
    sources: "Mapping[str, Run]",
    summary: Mapping[str, Any],
) -> str:
    """Describe a run in Markdown: what it is, what it was made from (with links), what came out.

    Args:
        inputs: fingerprint and place of each input.
        summary: the command's summary; empty while it runs.
    """
    made = summary.get("fingerprint")
    lines = [about, "", f"Output: `{out}`" + (f", fingerprint `{made}`" if made else "")]
    source_runs = {name: source.info for name, source in sources.items()}
    links = {
        name: f"[{run.run_name}](#/experiments/{run.experiment_id}/runs/{run.run_id})"
        for name, run in source_runs.items()
    }
    rows = [
        f"| {name} | `{digest}` | {links.get(name, '')} | {f'`{place}`' if place else ''} |"
        for name, (digest, place) in inputs.items()
        if digest
    ]
    if rows:
        lines += ["", "### Inputs", "", "| input | fingerprint | run | path |", "|---|---|---|---|", *rows]
    figures = list(main_figures(summary))
    if figures:
        lines += ["", "### Results", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in figures]
    return "\n".join(lines)


_FIGURES = {
    "num_clips": "{:,}",
    "num_quarantined": "{:,}",
    "num_words": "{:,}",
    "unk_ratio": "{:.2%}",
    "num_codes": "{:,}",
    "parameters": "{:,}",
    "steps": "{:,}",
    "published.step": "{:,}",
    "val.loss": "{:.4f}",
    "val.code_usage": "{:.1%}",
    "val.word_map": "{:.3f}",
    "val.mlm_accuracy": "{:.1%}",
    "val.vtm_accuracy": "{:.1%}",
    "val.mvm_accuracy": "{:.1%}",
    "val.match_auc": "{:.3f}",
    "code_usage.train": "{:.1%}",
    "best.mean": "{:.4f}",
    "best.spread": "{:.4f}",
    "seconds": "{:,.0f}",
}
"""What a description tells of a summary, in this order; everything else is in summary.json."""
_SCORES = ("accuracy", "t2v_r10", "t2v_r1")
"""Metrics of benchmarks of which the first that is there is shown in the table of runs."""


def main_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a command that are metrics of its run; a training has its curves, a benchmark its scores.

    A chart of each number of a summary would hide those.
    """
    if "steps" in summary or "metrics" in summary:
        return {}
    return {name: value for name in _FIGURES if (value := _number_at(summary, name)) is not None}


def score_text(summary: Mapping[str, Any]) -> str:
    """Return the main score of a finished command as the table of runs shows it; '' if it has none."""
    metrics, best = dict(summary.get("metrics") or {}), summary.get("best")
    if name := next((name for name in _SCORES if name in metrics), ""):
        leak = "" if summary.get("leak", False) is False else ", trained on these videos or unknown"
        return f"{name} {figure_at(metrics, f'{name}.value', '{:.1%}')}{leak}"
    if isinstance(best, Mapping) and "score" in summary:
        return f"{summary['score']} {figure_at(best, 'mean', '{:.4g}')}"
    loss = figure_at(summary, "val.loss", "{:.4g}")
    return f"val/loss {loss}" if loss else ""


def figure_at(summary: Mapping[str, Any], dotted: str, shown: str) -> str:
    """Return a number of a summary as text; '' where it is missing or no number."""
    value = _number_at(summary, dotted)
    return "" if value is None else shown.format(value)


def _number_at(summary: Mapping[str, Any], dotted: str) -> float | None:
    value: Any = summary
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def main_figures(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the figures of a summary that a description tells, as text; a benchmark's beside chance."""
    found = ((name, figure_at(summary, name, shown)) for name, shown in _FIGURES.items())
    for name, text in found:
        chance = figure_at(summary, name.replace("_accuracy", "_chance"), " (chance {:.1%})")
        if text:
            yield name, text + chance * name.endswith("_accuracy")
    best = summary.get("best")
    if isinstance(best, Mapping):
        for name, value in dict(best.get("values") or {}).items():
            yield f"best {name}", str(value)
    for name, figure in dict(summary.get("metrics") or {}).items():
        if isinstance(figure, Mapping):
            shown = "{:.1f}" if name.endswith("rank") else "{:.1%}"
            value, chance = shown.format(figure["value"]), shown.format(figure["chance"])
            yield name, f"{value} (chance {chance}, {figure['sigmas_above_chance']:.1f} standard errors)"
