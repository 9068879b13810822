"""A torch.profiler trace of some steps of a training, for chrome://tracing or Perfetto."""

import logging
import tempfile
from pathlib import Path

import torch

from evilm.io import storage

logger = logging.getLogger(__name__)

FOLDER = "profile"


class StepProfiler:
    """Traces the steps of a range in this worker and writes one file when they are over."""

    def __init__(self, out: str, steps: range, device: torch.device) -> None:
        """Trace `steps`, counted from 0; an empty range traces nothing."""
        self._out, self._steps, self._device = out, steps, device
        self._profile: torch.profiler.profile | None = None

    def before(self, step: int) -> None:
        """Start before the first step of the range; a run that was resumed within it starts there."""
        if step in self._steps and self._profile is None:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self._profile = torch.profiler.profile(activities=kinds)
            self._profile.start()

    def after(self, step: int) -> None:
        """End after the last step of the range, and write `profile/steps_A-B.json.gz` to the output."""
        if self._profile is None or step + 1 < self._steps.stop:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._profile.stop()
        name = f"steps_{self._steps.start}-{self._steps.stop}.json.gz"
        with tempfile.TemporaryDirectory(prefix="evilm-profile-") as folder:
            self._profile.export_chrome_trace(str(Path(folder) / name))
            place = storage.join(self._out, FOLDER, name)
            storage.write_bytes(place, (Path(folder) / name).read_bytes())
        self._profile, self._steps = None, range(0)
        logger.info("trace of the steps: %s; open it in Perfetto or chrome://tracing", place)
