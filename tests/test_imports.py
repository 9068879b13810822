"""The core imports and runs without Ray and MLflow; light commands without torch."""

import pkgutil
import subprocess
import sys

import evilm
from evilm.config.stages import STAGES

_CORE = (
    *(
        "config",
        "dataloader",
        "errors",
        "io",
        "items",
        "manifests",
        "model",
        "objectives",
        "plugins",
        "seeds",
        "shards",
    ),
    *("text", "video"),
)


def test_core_imports_neither_ray_nor_mlflow() -> None:
    names = [m.name for m in pkgutil.walk_packages(evilm.__path__, "evilm.") if m.name.split(".")[1] in _CORE]
    names = [name for name in names if not name.endswith("__main__")]
    assert len(names) > 30
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    code += "print(sorted(m for m in ('ray', 'mlflow') if m in sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_training_and_scoring_need_neither_ray_mlflow_nor_av() -> None:
    """`make gpu-check` trains, codes and scores where none of them is installed."""
    names = (
        "tasks.pretrain",
        "tasks.train_tokenizer",
        "train.train_state",
        "train.validation",
        "encode.encode_job",
        "encode.tokenizer_actor",
        "eval.scoring",
    )
    code = "import importlib, sys\nsys.modules |= dict.fromkeys(('ray', 'mlflow', 'av'))\n"
    code += f"for name in {names!r}: importlib.import_module('evilm.' + name)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_config_shards_and_synth_import_no_torch() -> None:
    code = "import sys, evilm.config.command_line, evilm.shards, evilm.synth; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_pretrain_driver_imports_no_model_library() -> None:
    """Ray Train's controller and the driver of a training import it, and build no model."""
    code = "import sys, evilm.tasks.pretrain; print([m for m in ('timm', 'transformers') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_commands_shadow_no_standard_module() -> None:
    for stage in STAGES:
        assert stage not in sys.stdlib_module_names
