"""Find the scores of task benchmarks for the paper's tables: under a root, or in an MLflow store."""

import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import ConfigDict, JsonValue

from evilm.config.base import Config, validate
from evilm.errors import ConfigError, ShardError, StorageError
from evilm.io import storage
from evilm.io.outputs import CONFIG, SUMMARY
from evilm.tracking.benchmark_runs import task_benchmarks

logger = logging.getLogger(__name__)


class Score(Config):
    """The summary of a task benchmark, as far as a table needs it."""

    model_config = ConfigDict(extra="ignore")
    task: str
    model: str
    split: str
    zero_shot: bool
    leak: bool | None
    """None: it is not known."""
    embedded: bool = False
    """True if the items are of the embedded corpus, which has the layout of the data set but not its videos."""
    coverage: float
    num_items: int
    metrics: Mapping[str, Mapping[str, float]]
    probe: Mapping[str, JsonValue] = {}
    tuned_on: str = ""
    """Task that the model was fine-tuned on; '' for a pre-trained model."""
    from_scratch: bool = False
    """True if its fine-tuning started from random weights."""
    mean_of_folds: float | None = None
    """Mean accuracy over the three splits of HMDB51, if all were scored."""


class FoundScore(NamedTuple):
    """A score and where it is from."""

    source: str
    """`this root`, or the name of the root of a tracked run."""
    label: str
    """Suffix of its folder's name after TASK-scores."""
    score: Score


def read_scores(root: str) -> Iterator[FoundScore]:
    """Yield the scores under a root.

    Raises:
        ConfigError: there is nothing at the root.
    """
    if not storage.list_names(root := storage.absolute(root)):
        raise ConfigError(f"nothing at {root}; name the --root of a workflow, as runs/demo")
    for name in storage.list_names(root):
        place = storage.join(root, name, SUMMARY)
        if "-scores" in name and (content := _json(place)):
            yield from _found("this root", name, content, place)


def read_tracked(uri: str) -> Iterator[FoundScore]:
    """Yield the scores of the benchmarks that were logged to an MLflow store.

    Raises:
        ConfigError: there is no such store, or it does not answer.
    """
    for run in task_benchmarks(uri):
        yield from _found(run.root, run.folder, run.summary, f"the summary of {run.root}/{run.folder}")


def _found(source: str, name: str, content: Mapping[str, object], place: str) -> Iterator[FoundScore]:
    """Yield the score of a summary, if it is whole."""
    try:
        # Summaries of earlier versions do not say how the model was trained.
        score = validate(Score, {**training_of(str(content.get("model"))), **content}, where=place)
    except ConfigError as error:
        logger.warning("left out of the tables: %s", error)
        return
    label = name.removeprefix(score.task).replace("-scores", "", 1).strip("-")
    yield FoundScore(source, label.replace("|", "/"), score)


def training_of(model: str) -> dict[str, JsonValue]:
    """Say which task a model was fine-tuned on, '' for none, and whether that started from random weights."""
    settings = _json(storage.join(model, CONFIG)).get("settings")
    from_scratch = isinstance(settings, dict) and bool(settings.get("from_scratch"))
    return {"tuned_on": str(_json(storage.join(model, "task.json")).get("task", "")), "from_scratch": from_scratch}


def _json(place: str) -> Mapping[str, object]:
    """Read a JSON object; empty if it is missing, damaged or out of reach."""
    try:
        content: object = storage.read_json(place)
    except (FileNotFoundError, NotADirectoryError, ShardError, StorageError):
        return {}
    return {str(name): value for name, value in content.items()} if isinstance(content, dict) else {}


def training_kind(score: Score) -> str:
    """Say how the scored model was trained for the task."""
    if score.probe or (score.zero_shot and not score.tuned_on):
        return "strict linear probe" if score.probe else "zero-shot"
    return "fine-tuned from scratch" if score.from_scratch else "fine-tuned"
