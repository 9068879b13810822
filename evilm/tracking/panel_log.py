"""Draw panels at their steps, keep them, and send them to MLflow. Rank 0 only."""

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from evilm.dataloader.collate import PretrainBatch
from evilm.io import storage
from evilm.model.tokenizers.base_tokenizer import load_tokenizer
from evilm.model.tokenizers.code_words import CodeWords
from evilm.text.vocab import Vocab
from evilm.tracking.mlflow_calls import suppress_tracking_errors
from evilm.tracking.mlflow_run import TrackedRun, ensure_run, log_files

logger = logging.getLogger(__name__)

PANELS = "panels"
"""Folder of the output, and artifact path of the run, that holds the pictures."""
NUM_CLIPS = 6


class PanelLog:
    """Draws the same clips every so many steps, into the output folder, and sends the pictures in the background."""

    def __init__(
        self,
        out: str,
        every_steps: int,
        vocab: Vocab,
        tokenizer: str,
        batch: Callable[[], PretrainBatch | None],
        tracked: TrackedRun | None = None,
        split: str = "val",
        captions: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """Prepare panels of one training; nothing is read before the first is drawn.

        Args:
            every_steps: steps between two panels; 0 draws one at the end.
            tokenizer: where the video tokenizer is, for the words of codes.
            batch: makes the clips to draw, the same in every start of the training; None where there are none.
            split: of the clips, for the title.
            captions: reads texts with the words that describe codes.
        """
        self._out, self._every, self._vocab, self._tokenizer = out, every_steps, vocab, tokenizer
        self._make_batch, self._split, self._captions = batch, split, captions
        self._tracked = tracked
        self._batch: PretrainBatch | None = None
        self._words: CodeWords | None = None
        self._sender: threading.Thread | None = None
        self._broken = False

    def due(self, step: int, num_steps: int) -> bool:
        """Return whether a panel is drawn after this many steps."""
        return not self._broken and (step == num_steps or (self._every > 0 and step % self._every == 0))

    def draw(self, objective: Any, step: int) -> None:
        """Draw a panel and keep it as `panels/step_000100.png`; the model's mode and random state stay."""
        from evilm.tracking.panel import draw_panel

        try:
            if self._words is None:
                self._batch = self._make_batch()
                self._words = CodeWords(load_tokenizer(self._tokenizer), self._vocab, self._captions())
            if self._batch is None:
                self._broken = True
                return
            title = f"step {step:,}, clips of the {self._split} split"
            image = draw_panel(objective.student, self._words, self._vocab, self._batch, title)
            storage.write_bytes(storage.join(self._out, PANELS, f"step_{step:06d}.png"), image)
        except Exception as error:  # whatever it is, a picture is not worth a training
            self._broken = True
            logger.warning("no more panels: %s", " ".join(str(error).split())[:200])
            return
        if self._tracked and not (self._sender and self._sender.is_alive()):
            self._sender = threading.Thread(target=send_panels, args=(self._tracked,), name="panels", daemon=True)
            self._sender.start()

    def close(self) -> None:
        """Wait a little for what is being sent; the driver sends what is left."""
        if self._sender:
            self._sender.join(timeout=10)


def send_panels(run: TrackedRun) -> None:
    """Bring those panels of the output folder to MLflow that are not there; a dead server is a warning."""
    names = storage.list_names(storage.join(run.out, PANELS))
    if not names:
        return
    with suppress_tracking_errors("send the panels; the same command sends them later"):
        from mlflow import MlflowClient

        client, run_id = MlflowClient(tracking_uri=run.uri), ensure_run(run)
        there = {item.path.rsplit("/", 1)[-1] for item in client.list_artifacts(run_id, PANELS)}
        missing = [storage.join(run.out, PANELS, name) for name in names if name.endswith(".png") and name not in there]
        log_files(client, run_id, PANELS, missing)
