"""Decide which steps are logged, evaluated, drawn and saved: by their number only, so alike on every worker."""

from dataclasses import dataclass

from evilm.config.training import ScheduleConfig


@dataclass(frozen=True)
class Cadence:
    """Decide what is due after a step."""

    schedule: ScheduleConfig
    steps_per_epoch: int
    num_steps: int
    """The last step of the run, after which everything but a picture is due."""

    def log(self, done: int) -> bool:
        """Return whether metrics are logged once `done` steps are made."""
        return self._every(self.schedule.log_every_steps, done)

    def log_in_any_run(self, done: int) -> bool:
        """Return whether metrics would be logged also if the run went on, so that the next point begins after it."""
        return done % self.schedule.log_every_steps == 0

    def checkpoint(self, done: int) -> bool:
        """Return whether a checkpoint is saved, also if nothing is about to end."""
        return self._every(self.schedule.checkpoint_every_steps, done)

    def evaluation(self, done: int) -> bool:
        """Return whether the val split is evaluated."""
        every = max(1, round(self.schedule.eval_every_epochs * self.steps_per_epoch))
        return self._every(every, done) or done in self.schedule.eval_at_steps

    def numbers(self, done: int) -> bool:
        """Return whether the numbers of this very step are needed now, not only once they come from the GPU."""
        panel = self.schedule.panel_every_steps
        is_panel = panel > 0 and done % panel == 0
        return is_panel or self.log(done) or self.checkpoint(done) or self.evaluation(done)

    def _every(self, steps: int, done: int) -> bool:
        return done % steps == 0 or done == self.num_steps
