"""Plan the settings of a sweep and their order. The same sweep has the same plan each time it is started."""

import itertools
import math
from collections.abc import Generator
from typing import Any

import numpy as np

from evilm.config.base import fingerprint, new_name
from evilm.config.stage_settings import recorded_names
from evilm.config.stages import Sweep
from evilm.config.sweep_space import Choices, Range, Space, normal, typed
from evilm.errors import UsageError
from evilm.io import storage

_PROPOSALS = "proposals.json"
_DRAWS = 200
_TRIES = 5


SweepPlan = Generator[list[dict[str, Any]], list[float | None], None]
"""Yields groups of settings that are compared with each other; for the next it is sent their mean scores."""


def make_plan(config: Sweep, space: Space, out: str) -> SweepPlan:
    """Plan a sweep.

    Raises:
        UsageError: Optuna is wanted and not installed.
        ConfigError: a value that no trial can run with.
    """
    space = typed(space, config.base)
    if config.search == "optuna":
        return _Proposer(config, space, out).groups()
    found = _grid(space) if config.search == "grid" else _drawn(space, config.trials, config.search_seed)
    settings = [normal(values, config.base) for values in found]
    return _one_group(list({fingerprint(values): values for values in settings}.values()))


def _one_group(settings: list[dict[str, Any]]) -> SweepPlan:
    yield settings


def _grid(space: Space) -> list[dict[str, Any]]:
    """Return every combination, the last setting changing fastest."""
    axes = {name: axis.values for name, axis in space.items() if isinstance(axis, Choices)}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _drawn(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Draw different random settings, fewer than `count` if the space has no more; longer lists begin alike."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(_DRAWS * count):
        values = {name: _draw(axis, rng) for name, axis in space.items()}
        found.setdefault(fingerprint(values), values)
        if len(found) == count:
            break
    return list(found.values())


def _draw(axis: Choices | Range, rng: np.random.Generator) -> Any:
    if isinstance(axis, Choices):
        return axis.values[int(rng.integers(len(axis.values)))]
    if axis.log:
        value = math.exp(rng.uniform(math.log(axis.low), math.log(axis.high)))
    else:
        value = rng.uniform(axis.low, axis.high)
    value = min(axis.high, max(axis.low, value))
    return round(value) if axis.whole else float(f"{value:.4g}")


class _Proposer:
    """Propose settings by Optuna's TPE from the scores so far, each once.

    Each proposal is kept before it is tried. A sweep that is started again asks for the kept ones first; the sampler of
    each proposal is seeded by its number, so that no random state has to survive. A setting that was proposed before
    is passed over and asked for again with another seed; the study forgets that it was. (Ray Tune's OptunaSearch knows
    neither: it draws from one random state, and proposes a setting again.)
    """

    def __init__(self, config: Sweep, space: Space, out: str) -> None:
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._config = optuna, config
        self._place = storage.join(out, _PROPOSALS)
        kept = storage.read_json(self._place) if storage.exists(self._place) else {}
        fingerprint_ = fingerprint([repr(sorted(recorded_names(space).items())), config.search_seed, config.score])
        before = list(kept.get("values", [])) if kept.get("space") == fingerprint_ else []
        before = [{new_name(name) or name: value for name, value in values.items()} for values in before]
        self._kept: list[dict[str, Any]] = list({self._fingerprint(values): values for values in before}.values())
        self._space = fingerprint_
        self._study = optuna.create_study(direction="minimize" if config.score.endswith("loss") else "maximize")
        self._distributions = {name: self._distribution(axis) for name, axis in space.items()}
        self._known: set[str] = set()
        self._size = _size(space)

    def groups(self) -> SweepPlan:
        """Yield groups as large as `reduction` says, so that one setting of each runs to the end.

        Later groups learn from earlier ones, and do not depend on how many trials run at a time.
        """
        size, number = math.ceil(self._config.reduction), 0
        while asked := [trial for n in range(number, number + size) if (trial := self._ask(n))]:
            scores = yield [normal(trial.params, self._config.base) for trial in asked]
            for trial, score in zip(asked, scores, strict=True):
                state = self._optuna.trial.TrialState.FAIL if score is None else None
                self._study.tell(trial, score, state=state)
            number += len(asked)

    def _ask(self, number: int) -> Any:
        """Return the next proposal, or the one that was made for this number before; None where there is no other."""
        if number >= self._config.trials or len(self._known) >= self._size:
            return None
        if number < len(self._kept):
            self._study.enqueue_trial(self._kept[number])
        for attempt in range(_DRAWS):
            self._study.sampler = self._sampler(number, attempt)
            trial = self._study.ask(self._distributions)
            if (known := self._fingerprint(trial.params)) not in self._known:
                break
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            return None
        self._known.add(known)
        if number >= len(self._kept):
            self._kept.append(dict(trial.params))
            storage.write_json(self._place, {"space": self._space, "values": self._kept})
        return trial

    def _fingerprint(self, values: dict[str, Any]) -> str:
        """Return a fingerprint that is equal for values of the same trial."""
        return fingerprint(normal(values, self._config.base))

    def _sampler(self, number: int, attempt: int) -> Any:
        """Return the TPE sampler, or a random one after `_TRIES` repeated proposals."""
        seed = int(fingerprint([self._config.search_seed, number, *([attempt] if attempt else [])], 8), 16)
        if attempt >= _TRIES:
            return self._optuna.samplers.RandomSampler(seed=seed)
        return self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(3, self._config.trials // 3))

    def _distribution(self, axis: Choices | Range) -> Any:
        distributions = self._optuna.distributions
        if isinstance(axis, Choices):
            return distributions.CategoricalDistribution(axis.values)
        if axis.whole:
            return distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
        return distributions.FloatDistribution(axis.low, axis.high, log=axis.log)


def _size(space: Space) -> float:
    """Return how many different values there are at most; infinite with a range of fractions."""
    counts = (
        len(axis.values) if isinstance(axis, Choices) else axis.high - axis.low + 1 if axis.whole else math.inf
        for axis in space.values()
    )
    return math.prod(counts)


def _optuna() -> Any:
    try:
        import optuna  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        raise UsageError(
            "--search optuna needs Optuna, which is not installed; pip install 'evilm[tune]', or use --search random"
        ) from None
    return optuna
