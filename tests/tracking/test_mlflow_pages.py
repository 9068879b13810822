"""MLflow's pages over a real store in a real headless browser: list of experiments, charts, a picture, the links."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.paths import ROOT
from helpers.workflow import Workflow

_SCRIPT = ROOT / "docs" / "screenshots.py"


@pytest.fixture(scope="module")
def screenshots() -> Any:
    """The script of the docs, as a module; skips where no browser is installed."""
    spec = importlib.util.spec_from_file_location("screenshots", _SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["screenshots"] = module
    spec.loader.exec_module(module)
    if not module.find_browser():
        pytest.skip("no Chromium or Chrome is installed")
    return module


@pytest.mark.long
def test_mlflow_pages_show_experiments_runs_charts_and_figures(
    screenshots: Any, small_workflow: Workflow, tmp_path: Path
) -> None:
    root, _ = small_workflow
    names = screenshots.look_at(f"sqlite:///{root / 'mlflow.db'}", root.name, tmp_path)
    assert names == [f"{name}.png" for name in ("charts", "experiments", "figure", "model", "panel", "run", "runs")]
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (1440, 860)
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 200, f"{name} is blank"


@pytest.mark.long
def test_missing_page_content_raises_a_timeout(
    screenshots: Any, small_workflow: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from playwright.sync_api import TimeoutError, sync_playwright

    monkeypatch.setattr(screenshots, "_WAIT_MS", 5_000)
    root, _ = small_workflow
    with screenshots.served(f"sqlite:///{root / 'mlflow.db'}") as base, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=screenshots.find_browser(), args=list(screenshots._FLAGS))
        pages = screenshots.Look(browser.new_page(), base, tmp_path)
        with pytest.raises(TimeoutError):
            pages.experiments(["no such experiment"])
        browser.close()
