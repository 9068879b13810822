"""Render and draw the paper's Tables 1-4: published figures beside our scores. Paper: Tables 1-4."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from evilm.config.base import Config, validate
from evilm.config.models import EViLMConfig
from evilm.config.yaml_files import parse_yaml
from evilm.errors import CheckpointError, ConfigError, ShardError, StorageError
from evilm.eval.task_scores import FoundScore, Score, training_kind
from evilm.io.figures import to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FILE = "published_results.yaml"
_OURS = "evilm"
_OTHER_FOLDS = ("fold2", "fold3")
"""How the folders of HMDB51's other splits begin after the task."""
_LEAKS = {True: "LEAKED", False: "", None: "leak unknown"}
_RECALLS = {"t2v_r1": "R@1", "t2v_r5": "R@5", "t2v_r10": "R@10"}
_INTRO = (
    "Percent. Published: as printed; ours: value [95 % interval], split, items. Compare scores on equal videos only."
)


class PublishedRow(Config):
    """A model's published figures, as printed."""

    model: str
    parameters: str = ""
    gflops: str = ""
    figures: Mapping[str, str] = {}
    """By column, in percent: figures of a cell are separated by slashes, those of several runs by a dash."""
    source: str
    note: str = ""
    peer: bool = False


class PaperTable(Config):
    """A table of the paper."""

    number: int
    title: str
    zero_shot: bool = False
    columns: Mapping[str, str]
    """Task by column; '' for a column of published figures only."""
    rows: tuple[PublishedRow, ...]
    note: str = ""


class OurRow(NamedTuple):
    """Our scores in a table, of models that were trained the same way and have the same size."""

    table: int
    name: str
    how: str
    parameters: str
    gmacs: str
    scores: Mapping[str, Score]  # by column


class _Key(NamedTuple):
    """Properties that the scores of a row share."""

    table: int
    source: str
    label: str
    how: str
    parameters: str
    gmacs: str


@cache
def published() -> tuple[PaperTable, ...]:
    """Return the paper's tables with all published rows."""
    tables = parse_yaml(_FILE, files("evilm.eval").joinpath(_FILE).read_text("utf-8"))
    return tuple(validate(PaperTable, table, where=_FILE) for table in tables)


def our_rows(scores: Iterable[FoundScore]) -> list[OurRow]:
    """Collect our rows from scores; of two for one cell, the later counts."""
    rows: dict[_Key, dict[str, Score]] = {}
    places = [(table, *column) for table in published() for column in table.columns.items()]
    for source, label, score in scores:
        zero_shot = score.zero_shot and not score.tuned_on
        found = [(table, column) for table, column, task in places if task == score.task]
        # Zero-shot answers have no table in the paper: they are a row of Table 1.
        for table, column in ([place for place in found if place[0].zero_shot == zero_shot] or found)[:1]:
            key = _Key(table.number, source, label, training_kind(score), *_cost(score.model))
            rows.setdefault(key, {})[column] = score
    _join_folds(rows)
    return [
        OurRow(
            key.table, f"{_OURS}, {key.source}{key.label and ': '}{key.label}", key.how, key.parameters, key.gmacs, own
        )
        for key, own in rows.items()
        if own
    ]


def _join_folds(rows: Mapping[_Key, dict[str, Score]]) -> None:
    """Put the mean of HMDB51's three splits into the row of the first, in place of the rows of the others.

    Splits that are marked differently, as one with a leak, stay apart.
    """
    for key, scores in rows.items():
        names = [f"{fold}-{key.label}" if key.label else fold for fold in _OTHER_FOLDS]
        others = [rows.get(key._replace(label=name), {}) for name in names]
        for column, score in scores.items():
            folds = [score, *(other[column] for other in others if column in other)]
            marks = {(fold.task, fold.split, fold.leak, fold.embedded) for fold in folds}
            if len(folds) == 3 and len(marks) == 1 and all("accuracy" in fold.metrics for fold in folds):
                mean = sum(fold.metrics["accuracy"]["value"] for fold in folds) / len(folds)
                scores[column] = score.model_copy(update={"mean_of_folds": mean})
                for other in others:
                    del other[column]


def render_tables(ours: Sequence[OurRow]) -> str:
    """Return Tables 1-4 as Markdown: published rows, today's peers, then ours."""
    tables = [_render(table, [row for row in ours if row.table == table.number]) for table in published()]
    return "\n\n".join([_INTRO, *tables])


def draw_tables(ours: Sequence[OurRow]) -> bytes:
    """Draw a PNG with a panel per table: published figures grey, ours in colour with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 10), layout="constrained")
    figure.suptitle(
        "Published figures and ours (bars: 95 % intervals; crosses: videos seen; triangles: embedded corpus)"
    )
    for axis, table in zip(figure.subplots(2, 2).flat, published(), strict=True):
        _draw(axis, table, [row for row in ours if row.table == table.number])
    return to_png(figure)


@cache
def _cost(model: str) -> tuple[str, str]:
    """Count the parameters and MACs of a model by its config; return empty texts without a config that can be read."""
    from evilm.model import cost, pretrained
    from evilm.model.evilm_model import KIND

    try:
        config = validate(EViLMConfig, pretrained.read_config(model, KIND)["config"])
    except (CheckpointError, ConfigError, ShardError, StorageError):
        return "", ""
    found = cost.report(config, min(30, config.text_positions))  # 30 words, as by the cost command
    return f"{found['table_8'][-1]['ours'] / 1e6:.3g}M", f"{found['macs']['total'] / 1e9:.3g} GMACs"


def _render(table: PaperTable, ours: Sequence[OurRow]) -> str:
    """Write a table, with its notes below."""
    distinct = dict.fromkeys(row.note for row in table.rows if row.note)
    notes = {note: f"({chr(ord('a') + place)})" for place, note in enumerate(distinct)}
    headers = [f"{column} {' / '.join(_metrics(task).values())}".strip() for column, task in table.columns.items()]
    lines = [["model", "parameters", "GFLOPs", *headers, "source"], ["---"] * (len(headers) + 4)]
    for row in sorted(table.rows, key=lambda row: row.peer):
        figures = [row.figures.get(column, "") for column in table.columns]
        model, source = f"{row.model} {notes.get(row.note, '')}".strip(), "as published: " * row.peer + row.source
        lines.append([model, row.parameters, row.gflops, *figures, source])
    for row in ours or [OurRow(table.number, _OURS, "not scored yet", "", "", {})]:
        cells = [_cell(row.scores[column]) if column in row.scores else "" for column in table.columns]
        lines.append([f"**{row.name}**", row.parameters, row.gmacs, *cells, row.how])
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    parts = [text, "  \n".join(f"{mark} {note}" for note, mark in notes.items()), table.note]
    return "\n\n".join([f"## Table {table.number}: {table.title}", *filter(None, parts)])


def _metrics(task: str) -> dict[str, str]:
    """Return the figures of a task's cell: metric and its name."""
    return _RECALLS if task.endswith("-retrieval") else {"accuracy": ""}


def _cell(score: Score) -> str:
    """Write a score with its interval, split, and what makes it doubtful."""
    shown = [_interval(score.metrics.get(metric, {})) for metric in _metrics(score.task)]
    parts = [" / ".join(shown), score.split, f"{score.num_items:,} items", _LEAKS[score.leak]]
    if score.mean_of_folds is not None:
        parts[1:1] = [f"mean of 3 splits {100 * score.mean_of_folds:.1f}", "split 1"]
    if score.embedded:
        parts.append("embedded corpus, not comparable")
    if score.tuned_on not in ("", score.task):
        parts.append(f"fine-tuned on {score.tuned_on}")
    if score.coverage < 1:
        parts.append(f"coverage {min(99.9, 100 * score.coverage):.1f} %")
    return ", ".join(filter(None, parts))


def _mark(score: Score) -> str:
    """Return the marker of a score: crosses and triangles can't be compared with the others."""
    return "^" if score.embedded else "o" if score.leak is False else "x"


def _interval(figure: Mapping[str, float]) -> str:
    """Write a share as percent, with its interval if there is one."""
    value, low, high = (f"{100 * figure[key]:.1f}" if key in figure else "-" for key in ("value", "low", "high"))
    return value if "-" in (low, high) else f"{value} [{low}, {high}]"


def _draw(axis: "Axes", table: PaperTable, ours: Sequence[OurRow]) -> None:
    """Draw a line per figure: published ones as dots, ours below them."""
    names: list[str] = []
    for column, task in table.columns.items():
        for place, (metric, name) in enumerate(_metrics(task).items()):
            for row in table.rows:
                cell = [*row.figures.get(column, "").split("/"), "", ""][place]
                marker, colour, fill, label = _style(row)
                for value in re.findall(r"\d+(?:\.\d+)?", cell):
                    axis.plot(float(value), len(names), marker, color=colour, markerfacecolor=fill, label=label)
            for number, row in enumerate(ours):
                score = row.scores.get(column)
                if score and "value" in (figure := score.metrics.get(metric, {})):
                    value, low, high = (100 * figure.get(key, figure["value"]) for key in ("value", "low", "high"))
                    error = [[max(0.0, value - low)], [max(0.0, high - value)]]
                    at, label = len(names) + 0.2 + 0.5 * number / len(ours), f"{row.name}, {row.how} {row.parameters}"
                    axis.errorbar(value, at, None, error, _mark(score), color=f"C{number}", label=label)
            names.append(f"{column} {name}".strip())
    title = f"Table {table.number}: {table.title}"
    axis.set(xlim=(0, 100), ylim=(len(names) - 0.2, -0.5), xlabel="percent", title=title)
    axis.set_yticks(range(len(names)), names)
    axis.grid(axis="x", color="0.9")
    handles, labels = axis.get_legend_handles_labels()
    distinct = dict(zip(labels, handles, strict=True))
    axis.legend(list(distinct.values()), list(distinct), fontsize="small")


def _style(row: PublishedRow) -> tuple[str, str, str, str]:
    """Return marker, colour, fill and label of a published row."""
    if row.model.startswith("E-ViLM"):
        return "d" if "without" in row.model else "D", "0.2", "0.2", row.model
    return ("o", "0.6", "none", "peers, as published") if row.peer else ("o", "0.7", "0.7", "published")
