"""The model card: a README beside the weights that says what the model is, was trained on, and reaches."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from evilm.config.stages import Pretrain
from evilm.io import storage

CARD = "README.md"
_TAGS = ["video-language", "video-text-retrieval", "masked-video-modeling"]


def write_card(out: str, config: Pretrain, summary: Mapping[str, Any]) -> None:
    """Write the card of the model at `out`.

    `summary` is what it gave: parameters, steps, which of them is published, clips, inputs, val.
    """
    card = make_card(config, summary, storage.read_json(storage.join(out, "config.json")))
    storage.write_bytes(storage.join(out, CARD), card.encode())


def make_card(config: Pretrain, summary: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Return the text of a card; `model` is the model's `config.json`."""
    clips = dict(summary.get("clips") or {})
    card = ModelCard.from_template(
        ModelCardData(library_name="evilm", tags=_TAGS),
        template_path=str(Path(__file__).with_suffix(".md")),
        summary=dict(summary),
        model={"versions": {}, **model},
        held_out=min(clips.get("val", 0), int(summary.get("eval_clips", config.schedule.eval_clips))),
        published=dict(summary.get("published") or {}),
        clips=", ".join(f"{name} {count:,}" for name, count in sorted(clips.items(), key=lambda item: -item[1])),
        figures=list(_figures(dict(summary.get("val") or {}))),
        embedded=_is_embedded(config),
        start=_start(config),
        **{name: getattr(config, name) for name in ("schedule", "optim", "objectives")},
    )
    return str(card)


def _figures(val: Mapping[str, float]) -> Iterator[tuple[str, float, float, str]]:
    """Yield what, loss, accuracy and chance of each objective that was evaluated."""
    for name, title, guess in (
        ("mvm", "masked video modelling", "the most frequent code"),
        ("mlm", "masked language modelling", "the most frequent word piece"),
        ("vtm", "video-text matching", "always the same answer"),
    ):
        if f"{name}_loss" in val:
            chance = f"{val[f'{name}_chance']:.1%} ({guess})" if f"{name}_chance" in val else ""
            yield title, val[f"{name}_loss"], val[f"{name}_accuracy"], chance


def _start(config: Pretrain) -> str:
    """Say what the weights were before training."""
    if config.init:
        return f"started from the model `{config.init.rstrip('/').rsplit('/', 1)[-1]}` (input `init`)"
    weights = {"": "random weights", "timm": "ImageNet weights of timm"}
    return f"the video encoder began with {weights.get(config.arch.video_weights, 'weights it was given')}"


def _is_embedded(config: Pretrain) -> bool:
    """Return whether the frames were cut from the embedded corpus, which is then beside them under the root."""
    root = storage.absolute(config.root)
    built = storage.absolute(config.frames) == storage.join(root, "frames")
    return built and not config.manifest and storage.exists(storage.join(root, "corpus", "run.json"))
