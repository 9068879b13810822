"""Link the MLflow runs of all commands: tags to filter by, and a description in Markdown.

A run says what it made (`evilm.made`) and what from (`evilm.input.<name>`), by fingerprint. Whoever made an input is
found by these in the same store, and named in `evilm.from.<name>` and, as a link, in the description.
"""

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from evilm.config.secrets import public_uri
from evilm.config.stage_settings import StageConfig
from evilm.io import storage

if TYPE_CHECKING:
    from mlflow.entities import RunInfo

logger = logging.getLogger(__name__)

RUN_FILE = "mlflow.json"
"""File of an output folder: its run, the store of that run, and what was sent there."""
NOTE = "mlflow.note.content"
MADE, FROM, INPUT = "evilm.made", "evilm.from.", "evilm.input."
_QUOTE_BREAKS = ("'", '"', "\\")


def read_run_file(out: str) -> dict[str, Any]:
    """Return what an output folder knows of its run; nothing where it has none."""
    kept = storage.join(out, RUN_FILE)
    return dict(storage.read_json(kept)) if storage.exists(kept) else {}


def write_run_file(out: str, known: Mapping[str, Any]) -> None:
    """Keep what is known of the run of an output folder."""
    storage.write_json(storage.join(out, RUN_FILE), dict(known))


def identity_tags(config: StageConfig, stage: str, out: str, inputs: Mapping[str, str]) -> dict[str, str]:
    """Return the tags to filter runs by: command, place, root folder, preset, version, fingerprint of each input."""
    import evilm

    tags = {
        "evilm.stage": stage,
        "evilm.out": out,
        "evilm.root": root_of(out),
        "evilm.version": evilm.__version__,
        "mlflow.source.name": f"{type(config).folder}/{stage}.py",
        "mlflow.source.type": "PROJECT",
    }
    if config.preset:
        tags["evilm.preset"] = config.preset.rsplit("/", 1)[-1]
    return tags | {INPUT + name: value for name, value in inputs.items() if value}


def root_of(out: str) -> str:
    """Return the name of the folder that a workflow's outputs lie in: `demo` for runs/demo/model."""
    parts = [part for part in out.split("://")[-1].split("/") if part]
    return parts[-2] if len(parts) > 1 else ""


def find_sources(client: Any, uri: str, inputs: Mapping[str, tuple[str, str]]) -> "dict[str, RunInfo]":
    """Return the runs of this store that made the inputs, by name of the input; those that none made are left out.

    Args:
        inputs: fingerprint and place of each input.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = {}
    for name, (fingerprint_, place) in inputs.items():
        source = _by_fingerprint(client, experiments, fingerprint_) or _by_place(client, uri, place)
        if source:
            found[name] = source
    return found


def _by_fingerprint(client: Any, experiments: list[str], fingerprint_: str) -> "RunInfo | None":
    if not fingerprint_ or not experiments or any(sign in fingerprint_ for sign in _QUOTE_BREAKS):
        return None
    wanted = f"tags.`{MADE}` = '{fingerprint_}'"
    runs = client.search_runs(experiments, wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return runs[0].info if runs else None


def _by_place(client: Any, uri: str, place: str) -> "RunInfo | None":
    """Find it by the note that a command leaves in its output folder; a manifest is a file in one."""
    if not place or any(sign in place for sign in ",*?"):
        return None
    for folder in (place, place.rpartition("/")[0]):
        try:
            known = read_run_file(folder) if folder else {}
            if public_uri(known.get("uri", "")) == public_uri(uri):
                return client.get_run(known["run_id"]).info
        except Exception as error:  # no note, somebody else's file, a run that is gone: a link less, and no more
            logger.debug("no run known by %s: %s", folder, error)
    return None


def describe_experiment(config: StageConfig, stage: str) -> str:
    """Markdown above the runs of one command."""
    about = inspect.cleandoc(type(config).__doc__ or "")
    return (
        f"{about}\n\nOne run for each output folder of `{type(config).folder}/{stage}.py`; a restart continues it. "
        "Filter with `tags.evilm.root = 'demo'`, ``tags.`evilm.input.frames` = '<fingerprint>'``, "
        "``metrics.`summary/val.loss` < 10``."
    )


def write_note(
    about: str,
    out: str,
    inputs: Mapping[str, tuple[str, str]],
    sources: "Mapping[str, RunInfo]",
    summary: Mapping[str, Any],
) -> str:
    """Describe a run in Markdown: what it is, what it was made from (with links), what came out.

    Args:
        inputs: fingerprint and place of each input.
        summary: the command's summary; empty while it runs.
    """
    made = summary.get("fingerprint")
    lines = [about, "", f"Output: `{out}`" + (f", fingerprint `{made}`" if made else "")]
    links = {name: f"[{s.run_name}](#/experiments/{s.experiment_id}/runs/{s.run_id})" for name, s in sources.items()}
    rows = [
        f"| {name} | `{digest}` | {links.get(name, '')} | {f'`{place}`' if place else ''} |"
        for name, (digest, place) in inputs.items()
        if digest
    ]
    if rows:
        lines += ["", "### Made from", "", "| input | fingerprint | run | place |", "|---|---|---|---|", *rows]
    figures = list(main_figures(summary))
    if figures:
        lines += ["", "### Came out", "", "| figure | value |", "|---|---|"]
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
"""What a description tells of a summary, in this order; everything else is in summary.json and the metrics."""


def figure_at(summary: Mapping[str, Any], dotted: str, shown: str) -> str:
    """Return a number of a summary as text; '' where it is missing or no number."""
    value: Any = summary
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return shown.format(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def main_figures(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the figures of a summary that a description tells, as text; a benchmark's beside guessing."""
    found = ((name, figure_at(summary, name, shown)) for name, shown in _FIGURES.items())
    yield from ((name, text) for name, text in found if text)
    best = summary.get("best")
    if isinstance(best, Mapping):
        for name, value in dict(best.get("values") or {}).items():
            yield f"best {name}", str(value)
    for name, figure in dict(summary.get("metrics") or {}).items():
        if isinstance(figure, Mapping):
            shown = "{:.1f}" if name.endswith("rank") else "{:.1%}"
            value, chance = shown.format(figure["value"]), shown.format(figure["chance"])
            yield name, f"{value} (guessing {chance}, {figure['sigmas_above_chance']:.1f} standard errors)"
