"""Check MLflow's pages of a store in a headless browser, and save screenshots of them.

    python docs/screenshots.py --root runs/demo --out docs/screenshots

It needs Chromium (Debian: apt-get install chromium) and `pip install evilm[test]`. If expected content does not
appear, it exits with 1 and the name of the page.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from evilm.tracking.dashboard import server_command
from evilm.tracking.experiment import runs_page

_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
_WAIT_MS = 60_000
_LOADED = "img => img.complete && img.naturalWidth > 200"


def find_browser() -> str:
    """Find an installed Chromium or Chrome; '' if neither is installed."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), "")


@contextmanager
def served(uri: str) -> Iterator[str]:
    """Run MLflow's server for a store like `make dashboard`, and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command, environment = server_command(uri, port)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    server = subprocess.Popen(command, env=environment, **quiet)
    base = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{base}/health")
        yield base
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(address: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"{address} does not answer after {seconds:.0f} s") from None
            time.sleep(0.2)


class Look:
    """A browser on one server, with a method per page; each raises an error if the expected content does not appear."""

    def __init__(self, page: Any, base: str, out: Path) -> None:
        self._page, self._base, self._out = page, base, out
        page.set_default_timeout(_WAIT_MS)

    def experiments(self, names: list[str]) -> None:
        """Check the list of experiments, one per project."""
        self._go("experiments")
        for name in names:
            self._page.get_by_role("link", name=name, exact=True).first.wait_for()
        self._keep("experiments")

    def runs(self, experiment: str, names: list[str]) -> None:
        """Check the table of runs at the address that commands print: names, and columns of stage and score."""
        self._page.goto("about:blank")
        self._page.goto(runs_page(self._base, experiment))
        self._hide_assistant()
        for name in (*names, "evilm.stage", "evilm.score"):
            self._page.get_by_text(name[:16]).first.wait_for()
        self._keep("runs")

    def run(self, experiment: str, run: str, link: str, maker: str) -> None:
        """Check a run's description, its link to a run that created one of its inputs, and the target of that link."""
        self._go(f"experiments/{experiment}/runs/{run}")
        self._page.get_by_text("Show more").first.click()
        found = self._page.get_by_role("link", name=link, exact=True).first
        found.wait_for()
        self._keep("run")
        self._page.goto(urljoin(self._page.url, found.get_attribute("href") or "none"))
        self._page.get_by_text(maker, exact=True).first.wait_for()

    def charts(self, experiment: str, run: str, search: str, names: list[str]) -> None:
        """Check the charts of a training, with a line for each name."""
        self._go(f"experiments/{experiment}/runs/{run}/model-metrics")
        self._page.get_by_placeholder("Search metric charts").fill(search)
        for name in names:
            self._page.get_by_text(name, exact=True).first.wait_for()
        self._page.locator(".js-plotly-plot .scatterlayer path.js-line").nth(len(names) - 1).wait_for(state="attached")
        self._keep("charts")

    def artifact(self, experiment: str, run: str, path: str, name: str) -> None:
        """Check that a picture of a run is loaded and drawn."""
        self._go(f"experiments/{experiment}/runs/{run}/artifacts/{path}")
        self._page.get_by_text(path, exact=True).first.wait_for()
        self._page.wait_for_function(f"() => [...document.images].some({_LOADED})")
        self._keep(name)

    def model(self, name: str, alias: str) -> None:
        """Check the versions of a registered model, and the alias ('' for none)."""
        self._go(f"models/{name}")
        self._page.get_by_text("Version 1", exact=True).first.wait_for()
        if alias:
            self._page.get_by_text(f"@ {alias}").first.wait_for()
        self._keep("model")

    def _go(self, page: str) -> None:
        self._page.goto("about:blank")  # otherwise the browser sees the same page and may keep parts of it
        self._page.goto(f"{self._base}/#/{page}")

    def _hide_assistant(self) -> None:
        """Close the panel that MLflow opens at the right; later pages leave it closed."""
        panel = self._page.get_by_role("button", name="Close")
        try:
            panel.first.click(timeout=10_000)
        except Exception:  # another version of MLflow has none
            return

    def _keep(self, name: str) -> None:
        self._page.wait_for_timeout(1500)  # what fades in or is drawn
        self._page.screenshot(path=str(self._out / f"{name}.png"))


def look_at(uri: str, root: str, out: Path) -> list[str]:
    """Look at all that the docs show of a workflow's runs in a store.

    Args:
        uri: of the store, `sqlite:///...`.
        root: name of the root folder, as in the tag `evilm.root`.
        out: folder for the pictures.

    Returns:
        Names of the pictures.
    """
    from mlflow import MlflowClient
    from playwright.sync_api import sync_playwright

    client = MlflowClient(tracking_uri=uri)
    experiments = {e.experiment_id: e.name for e in client.search_experiments() if e.name != "Default"}
    wanted = f"tags.`evilm.root` = '{root}' AND attributes.status = 'FINISHED'"
    found = client.search_runs(list(experiments), wanted, order_by=["attributes.start_time DESC"])
    runs = {run.data.tags["evilm.stage"]: run for run in found}
    top = [str(run.info.run_name) for run in found if "mlflow.parentRunId" not in run.data.tags]
    pretrain = runs["pretrain"]
    experiment, run_id = pretrain.info.experiment_id, pretrain.info.run_id
    panels = [item.path for item in client.list_artifacts(run_id, "panels")]
    champion = client.get_registered_model("evilm").aliases.get("champion")
    out.mkdir(parents=True, exist_ok=True)
    with served(uri) as base, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(_FLAGS))
        look = Look(browser.new_page(viewport={"width": 1440, "height": 860}), base, out)
        look.runs(experiment, top)
        look.experiments(list(experiments.values()))
        look.run(experiment, run_id, str(runs["precompute_codes"].info.run_name), runs["precompute_codes"].info.run_id)
        look.charts(experiment, run_id, "/m.*m_", ["mlm_loss", "mvm_loss", "mlm_accuracy", "mvm_accuracy"])
        look.artifact(experiment, run_id, "figures/losses.png", "figure")
        if panels:
            look.artifact(experiment, run_id, max(panels), "panel")
        look.model("evilm", "champion" if champion else "")
        browser.close()
    return sorted(path.name for path in out.glob("*.png"))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs/demo", help="root of a finished workflow with its own store")
    parser.add_argument("--out", default="docs/screenshots", type=Path, help="folder for the pictures")
    given = parser.parse_args()
    if not find_browser():
        raise SystemExit("no Chromium or Chrome is installed; on Debian: apt-get install chromium")
    store = Path(given.root).absolute() / "mlflow.db"
    if not store.exists():
        raise SystemExit(f"{store} is not there; run make demo first, or name another --root")
    print("\n".join(look_at(f"sqlite:///{store}", store.parent.name, given.out)))


if __name__ == "__main__":
    main()
