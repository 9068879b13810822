"""The plan of the default corpus."""

import pytest

from evilm.synth import PlannedClip, plan_corpus
from helpers.synth_clips import CONFIG


@pytest.fixture(scope="session")
def plan() -> list[PlannedClip]:
    """All clips of the default corpus."""
    return plan_corpus(CONFIG)
