"""The finished model in MLflow: a `pyfunc` that scores pairs of a video and a caption, logged and registered.

    mlflow models serve -m models:/evilm/1 --env-manager local

What it takes and gives is said in `pyfunc_code`, the file that MLflow keeps as the model's code.
"""

import base64
import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evilm.config.stages import Pretrain
from evilm.io import storage
from evilm.io.ownership import check_owner
from evilm.model.inference import FILES
from evilm.tracking.logged_models import model_tags
from evilm.tracking.mlflow_calls import ending, suppress_tracking_errors, with_tracking_retries
from evilm.tracking.mlflow_run import TrackedRun, describe_run, ensure_run, is_closed
from evilm.tracking.panel_log import send_panels
from evilm.tracking.registry import REGISTERED_NAME
from evilm.tracking.run_file import read_run_file, write_run_file

_FILES = "evilm"
_NEEDS = (
    *("torch", "torchvision", "timm", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "fsspec"),
    *("s3fs", "av", "decord", "simplejpeg", "Pillow", "pydantic", "jaxtyping", "pandas"),
)
"""What loading and scoring import; `evilm` itself comes along as code."""


def publish(config: Pretrain, out: str, summary: Mapping[str, Any], number: int = 0) -> None:
    """Bring the panels and the model of a finished pre-training to its MLflow run, once.

    Nothing happens where the run could not be closed, since no server answers; the same command tries again. Nor does
    it if another run has taken the folder over from run `number` of `<out>/_runs/` (0: not checked).
    """
    inputs, step = dict(summary["inputs"]), (summary.get("published") or {}).get("step", summary["steps"])
    run = describe_run(config, "pretrain", out, inputs, number=number)
    if run is None or not is_closed(run):
        return
    known = read_run_file(out, run.uri).get("model")
    if known or (known == "" and not config.tracking.log_model):
        return
    with suppress_tracking_errors("log the model; the same command tries again"):
        from mlflow import MlflowClient

        with ending(MlflowClient(tracking_uri=run.uri), ensure_run(run)):
            send_panels(run)
            uri = log_model(run, out, inputs, summary, step) if config.tracking.log_model else ""
        write_run_file(out, read_run_file(out, run.uri) | {"model": uri})


def log_model(run: TrackedRun, model: str, facts: dict[str, str], summary: Mapping[str, Any], step: int) -> str:
    """Log the model saved at `model` to a run, and register it. Raises whatever MLflow raises.

    Args:
        model: folder of the model, a local path or URI.
        facts: kept with the model: fingerprints of its inputs.
        step: the published one.

    Returns:
        Its URI, `models:/...`, the registered version's where there is a registry.
    """
    import mlflow

    run_id, name = ensure_run(run), REGISTERED_NAME
    about = {"tags": model_tags(run, summary), "model_type": "pretrain", "step": step, "metadata": facts}
    # None where nothing is set: the default that is fetched otherwise, a store in the working folder, would stay set.
    before: Any = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(run.uri)
    try:
        with with_tracking_retries(), _copied(model) as folder, mlflow.start_run(run_id=run_id):
            uri = str(mlflow.pyfunc.log_model(name=name, **_flavour(folder), **about).model_uri)
        check_owner(run.out, run.number)
        with suppress_tracking_errors("register the model; it is logged all the same"):
            version_tags = {**facts, "evilm.step": str(step)}
            uri = f"models:/{name}/{mlflow.register_model(uri, name, tags=version_tags).version}"
        return uri
    finally:
        mlflow.set_tracking_uri(before)


def _flavour(folder: Path) -> dict[str, Any]:
    """Return what `mlflow.pyfunc` needs to keep the model in `folder`: its files and our code, nothing pickled."""
    config = storage.read_json(str(folder / "config.json"))
    return {
        "python_model": str(Path(__file__).with_name("pyfunc_code.py")),
        "artifacts": {_FILES: str(folder)},
        "code_paths": [str(Path(__file__).parents[1])],
        "signature": _signature(),
        "input_example": _example(config["num_frames"], config["input_px"]),
        "pip_requirements": _requirements(),
    }


@contextmanager
def _copied(model: str) -> Iterator[Path]:
    """Copy the files of a model without what else lies in its output folder."""
    with tempfile.TemporaryDirectory(prefix="evilm-") as temporary:
        folder = Path(temporary) / _FILES
        for name in FILES:
            if storage.exists(place := storage.join(model, name)):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                storage.get_file(place, str(folder / name))
        yield folder


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    inputs: list[Any] = [
        ColSpec(DataType.string, "caption"),
        ColSpec(DataType.string, "video", required=False),
        ColSpec(Array(DataType.string), "frames", required=False),
    ]
    return ModelSignature(Schema(inputs), Schema([ColSpec(DataType.double, "score")]))


def _example(num_frames: int, side: int) -> Any:
    """Return a row with frames of its own, a square that moves right, so that it works on any machine."""
    import pandas as pd
    from PIL import Image

    jpegs = []
    for frame in range(num_frames):
        image, sink = Image.new("RGB", (side, side), "#88aadd"), io.BytesIO()
        left = frame * (side - side // 3) // max(1, num_frames - 1)
        image.paste("#cc2222", (left, side // 3, left + side // 3, 2 * side // 3))
        image.save(sink, format="JPEG")
        jpegs.append(base64.b64encode(sink.getvalue()).decode())
    return pd.DataFrame({"caption": ["a red square moves to the right"], "frames": [jpegs]})


def _requirements() -> list[str]:
    """Return the packages that are needed, at the versions here; without the build tag, such as +cu130."""
    import mlflow

    found = [f"mlflow=={mlflow.__version__}"]
    for name in _NEEDS:
        try:
            found.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:  # decord has other names on some platforms
            continue
    return found
