"""Results of a sweep: settings by mean score, as a table, as files, and as a preset of the best."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from evilm.config.stage_settings import Upstream
from evilm.config.stages import Pretrain
from evilm.io.text_table import number_as_text, text_table
from evilm.sweep.trial_folder import Trial, TrialOutcome, mode_of

_NOT_IN_PRESETS = ("preset", "dry_run", "overwrite", "out", "root", "tracking")
_PLACES = ("manifest", "videos", "frames", "codes", "vocab", "tokenizer")


@dataclass(frozen=True)
class Tried:
    """A trial that has ended."""

    trial: Trial
    outcome: TrialOutcome
    steps_per_epoch: int

    @property
    def epochs(self) -> float:
        """Return the epochs at its last evaluation."""
        return self.outcome.points[-1][0] / self.steps_per_epoch if self.outcome.points else 0.0


@dataclass(frozen=True)
class Setting:
    """All trials of one setting."""

    values: dict[str, Any]
    tried: list[Tried]
    score_name: str

    @property
    def scores(self) -> list[float]:
        """Return the scores of the trials that ran to the end."""
        scores = (t.outcome.last(self.score_name) for t in self.tried if t.outcome.state == "done")
        return [score for score in scores if score is not None]

    @property
    def early_scores(self) -> list[float]:
        """Return the last scores of the trials that were stopped before."""
        scores = (t.outcome.last(self.score_name) for t in self.tried if t.outcome.state == "stopped")
        return [score for score in scores if score is not None]

    @property
    def mean(self) -> float | None:
        """Return the mean score of the trials that ran to the end."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Return the standard deviation over seeds; None with fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def states(self) -> dict[str, int]:
        """Return how its trials ended."""
        found = [t.outcome.state for t in self.tried]
        return {state: found.count(state) for state in ("done", "stopped", "failed") if state in found}


def rank(tried: Sequence[Tried], score: str) -> list[Setting]:
    """Sort settings, the best first: by seeds that ran to the end, then by epochs, then by mean score.

    A setting with one lucky seed must not win against one of which all seeds ran to the end, nor one that was stopped
    at the first rung against one that went further.
    """
    by_number: dict[int, list[Tried]] = {}
    for item in tried:
        by_number.setdefault(item.trial.number, []).append(item)
    settings = [Setting(items[0].trial.values, items, score) for items in by_number.values()]
    sign = -1 if mode_of(score) == "max" else 1

    def place(setting: Setting) -> tuple[float, float, float]:
        early = setting.early_scores
        value = setting.mean if setting.mean is not None else statistics.fmean(early) if early else None
        epochs = 0.0 if setting.scores else max(t.epochs for t in setting.tried)
        return -len(setting.scores), -epochs, float("inf") if value is None else sign * value

    return sorted(settings, key=place)


def results_table(settings: Sequence[Setting], score: str) -> str:
    """Return one line per setting, for a terminal."""
    short = short_names(settings[0].values)
    rows = []
    for setting in settings:
        cells = [shown(value) for value in setting.values.values()]
        mean = "" if setting.mean is None else f"{setting.mean:.4f}"
        spread = "" if setting.spread is None else f"{setting.spread:.4f}"
        ends = ", ".join(f"{count} {state}" for state, count in setting.states().items())
        early = " ".join(f"{value:.3f}" for value in setting.early_scores)
        rows.append([*cells, mean, spread, ends, early])
    header = [*short.values(), score, "± seeds", "trials", "stopped at"]
    return text_table(header, rows, right=range(len(short) + 2))


def results_csv(tried: Sequence[Tried]) -> bytes:
    """Return one row per trial: its values, how it ended, and the held-out metrics of its last evaluation."""
    metrics = sorted({name for t in tried for _, point in t.outcome.points[-1:] for name in point})
    values = list(tried[0].trial.values)
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["trial", *values, "seed", "state", "epochs", *metrics, "error"])
    for t in tried:
        last = t.outcome.points[-1][1] if t.outcome.points else {}
        row = [t.trial.name, *t.trial.values.values(), t.trial.repeat, t.outcome.state, f"{t.epochs:.4g}"]
        row += [*(last.get(name, "") for name in metrics), t.outcome.error]
        writer.writerow(row)
    return sink.getvalue().encode()


def results_json(settings: Sequence[Setting], score: str) -> dict[str, Any]:
    """Return the same by setting, best first, with every evaluation of every trial."""
    return {
        "score": score,
        "settings": [
            {
                "values": setting.values,
                "mean": setting.mean,
                "spread": setting.spread,
                "trials": [
                    {
                        "name": t.trial.name,
                        "seed": t.trial.repeat,
                        "state": t.outcome.state,
                        "error": t.outcome.error,
                        "out": t.trial.out,
                        "evaluations": [
                            {"step": step, "epochs": step / t.steps_per_epoch} | metrics
                            for step, metrics in t.outcome.points
                        ],
                    }
                    for t in setting.tried
                ],
            }
            for setting in settings
        ],
    }


def best_preset(config: Pretrain, stage: str, setting: Setting, given: dict[str, Any]) -> str:
    """Write the best setting as a preset: the settings of its first trial, and of the commands before it.

    Args:
        config: a trial of the setting.
        given: places of what the trials stood on.
    """
    data = config.model_dump(mode="json", exclude_defaults=True)
    for name in (*_NOT_IN_PRESETS, *_PLACES):
        data.pop(name, None)
    sections = {name: data.pop(name) for name in Upstream.model_fields if data.get(name)}
    values = ", ".join(f"{name} = {shown(value)}" for name, value in setting.values.items())
    spread = "" if setting.spread is None else f" ± {setting.spread:.4f}"
    score = "no score" if setting.mean is None else f"{setting.score_name} {setting.mean:.4f}{spread}"
    flags = " ".join(f"--{name} {place}" for name, place in given.items())
    head = (
        f"# Best of tune/{stage}.py: {values}; {score} over {len(setting.scores)} seed(s).\n"
        f"# The length is a trial's ({config.schedule.epochs} epochs); more with --schedule.epochs.\n"
        "# Again on what the trials stood on:\n"
        f"#   python pipelines/pretrain.py --preset best.yaml {flags} --out OUT\n"
    )
    return head + yaml.safe_dump(sections | {"pretrain": data}, sort_keys=False)


def short_names(values: dict[str, Any]) -> dict[str, str]:
    """Return for each setting the end of its dotted name that tells it from the others."""
    found = {}
    for name in values:
        parts = name.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        found[name] = next(
            (end for end in ends if sum(other == end or other.endswith(f".{end}") for other in values) == 1), name
        )
    return found


def shown(value: Any) -> str:
    """Format a value of a setting."""
    return number_as_text(value) if isinstance(value, float) else str(value)
