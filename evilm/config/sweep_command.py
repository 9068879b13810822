"""Settings of the sweeps in `tune/`."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from evilm.config.base import Common, Incidental
from evilm.config.pretrain_command import Pretrain
from evilm.config.stage_settings import Upstream
from evilm.config.sweep_space import Range, check_score, check_space, read_space

_LENGTH = ("max_steps", "eval_clips", "eval_every_epochs")
"""Settings of the schedule that decide at which steps, and on what, trials are compared."""


class Sweep(Pretrain):
    """Try settings of pre-training: a trial is a pre-training with some settings changed; flags are those of pretrain.

    Run the same command again to continue, or with more values, trials or seeds to add to the results.
    """

    folder: ClassVar[str] = "tune"
    example: ClassVar[str] = "--preset tiny --space masking_ratio --seeds 3"
    uncommon: ClassVar[tuple[str, ...]] = (
        *("init", "manifest", "videos", "optim.", "arch.", "objectives.", "columns.", "cluster.precision"),
        *("schedule.max_steps", "schedule.gradient_accumulation_steps", "schedule.checkpoint_every_steps"),
    )
    space: Common[Incidental[str]] = ""
    """Settings to try: a space of the package (masking_ratio, codebook_size, focal_loss, lr_batch), or the path of a
    YAML file with lines like `optim.lr: [1e-4, 3e-4]` or `optim.lr: {low: 1e-5, high: 1e-3, log: true}`."""
    values: Common[Incidental[str]] = ""
    """Other values for a space of one setting, separated by commas."""
    search: Common[Incidental[Literal["grid", "random", "optuna"]]] = "grid"
    """grid: every combination; random: random draws; optuna: proposals of TPE (pip install evilm[tune])."""
    trials: Common[Incidental[int]] = Field(default=8, ge=1)
    """Combinations to try in a random or optuna search."""
    seeds: Common[Incidental[int]] = Field(default=2, ge=1)
    """Runs of each combination, with schedule.seed, schedule.seed + 1, ..."""
    search_seed: Incidental[int] = 0
    """Seed of random and optuna searches."""
    score: Common[Incidental[str]] = "match_auc"
    """Val metric that ranks trials; low is good for names that end in loss, high for others."""
    stopping: Common[Incidental[Literal["halving", "none"]]] = "halving"
    """halving: at each rung the best 1/reduction of the combinations, by the mean over their seeds, continue; none: all
    do."""
    grace_epochs: Incidental[float] = Field(default=1, gt=0)
    """Epochs before the first rung, which every trial reaches; each further rung is at reduction times as many."""
    reduction: Incidental[float] = Field(default=3, gt=1)
    """Factor by which the combinations shrink at each rung: 3 keeps a third, rounded up. Also the number that Optuna
    proposes at a time."""
    concurrent: Common[Incidental[int]] = Field(default=0, ge=0)
    """Simultaneous trials; 0: as many as the CPUs and GPUs of the cluster can hold now."""

    @property
    def base(self) -> Pretrain:
        """Return the settings that all trials have in common."""
        return Pretrain.model_validate(self.model_dump(include=set(Pretrain.model_fields))).resolved()

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings that trials share; the space and its search may change and leave trials as they are."""
        build = {name: getattr(self, name).identity for name in Upstream.model_fields}
        length = self.schedule.model_dump(mode="json", include=set(_LENGTH))
        return super().identity | {"build": build, "views": self.views, "length": length}

    @model_validator(mode="after")
    def _space_fits(self) -> Self:
        if self.space:
            space = read_space(self.space, self.values)
            check_space(space, self.base, self.seeds)
            check_score(self.score, space, self.base)
            if self.search == "grid" and (ranges := [name for name, axis in space.items() if isinstance(axis, Range)]):
                raise ValueError(f"{', '.join(ranges)}: a range has no grid; list values, or use --search random")
        elif self.values:
            raise ValueError(f"values = {self.values!r} are for a space of one setting; name it with --space")
        return self


class MaskingRatio(Sweep):
    """Try shares of masked regions. All flags are those of tune/sweep.py."""

    example: ClassVar[str] = "--preset tiny --values 0.3,0.4,0.5 --seeds 3"
    space: Common[Incidental[str]] = "masking_ratio"
    """Space to try, as in tune/sweep.py."""


class CodebookSize(Sweep):
    """Try numbers of codes, with a tokenizer for each. All flags are those of tune/sweep.py."""

    example: ClassVar[str] = "--preset tiny --values 64,128 --seeds 3"
    space: Common[Incidental[str]] = "codebook_size"
    """Space to try, as in tune/sweep.py."""


class FocalLoss(Sweep):
    """Try exponents of the tokenizer's word loss, with a tokenizer for each. All flags are those of tune/sweep.py."""

    example: ClassVar[str] = "--preset tiny --search random --trials 4"
    space: Common[Incidental[str]] = "focal_loss"
    """Space to try, as in tune/sweep.py."""


class LrBatch(Sweep):
    """Try learning rates and batch sizes. All flags are those of tune/sweep.py."""

    example: ClassVar[str] = "--preset tiny --seeds 3"
    space: Common[Incidental[str]] = "lr_batch"
    """Space to try, as in tune/sweep.py."""
    score: Common[Incidental[str]] = "loss"
    """Val metric that ranks trials: the loss, since the masked regions and words are the same in all trials."""
