"""The model card: a README beside the weights that says what the model is, was trained on, and reaches."""

from collections.abc import Mapping
from typing import Any

from evilm.config.stages import Pretrain
from evilm.io import storage

CARD = "README.md"

_TEXT = """\
---
library_name: evilm
tags: [video-language, video-text-retrieval, masked-video-modeling]
---

# E-ViLM

A compact video-language model, pre-trained with masked video modelling, masked language modelling and video-text
matching by evilm {version}, after the paper "E-ViLM: Efficient Video-Language Model via Masked Video Modeling with
Semantic Vector-Quantized Tokenizer".

{parameters:,} parameters; clips of {num_frames} frames of {input_px} x {input_px} pixels; captions of up to
{max_text_len} word pieces, out of {vocab_size:,}.

```python
import evilm
model = evilm.EViLM.from_pretrained("path/of/this/folder")
print(model.match(["clip.mp4"], ["what it may show", "what else it may show"]))  # probabilities (video, caption)
```

## Figures

{evaluated} after {steps:,} steps of up to {batch_clips} clips each{choice}, in a schedule of {epochs} epochs:

| objective | loss | accuracy | guessing |
|---|---|---|---|
{figures}

## Data

Clips by split: {clips}. What it was trained from, by the fingerprints in its manifests:

| input | fingerprint |
|---|---|
{inputs}

{corpus}

## Training

- AdamW, learning rate {lr:g}, weight decay {weight_decay:g}, seed {seed}; {start}
- masked: {mask_ratio:.0%} of the regions ({mask_shape}), {mlm_ratio:.0%} of the words
- captions held against a clip in matching: {negatives}

All settings are in `run.json` beside this file, or in `config.yaml` of the MLflow run.

## Limits

It knows the words and scenes of its training captions and no others, and judges {num_frames} still frames: what happens
between them it can't see. Matching probabilities are not calibrated. Whatever bias the captions have, it has.
"""

_EMBEDDED = "The clips are evilm's embedded corpus, a rendered world of moving shapes: this model knows no real videos."
_OWN = "The clips are the trainer's own; who publishes this model should say here where they are from."


def write_card(out: str, config: Pretrain, summary: Mapping[str, Any]) -> None:
    """Write the card of the model at `out`.

    Args:
        out: folder of the model.
        config: settings of the pre-training.
        summary: what it gave: parameters, steps, which of them is published, clips, inputs, val.
    """
    storage.write_bytes(storage.join(out, CARD), make_card(config, summary, _about(out)).encode())


_UNSEEN = (
    "Nothing was held out: the data had no clips of the split `val`, so how well it does on clips that it has not "
    "seen is not known. Published"
)


def make_card(config: Pretrain, summary: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The text of a card.

    Args:
        about: the model's `config.json`.
    """
    clips = dict(summary.get("clips") or {})
    schedule, objectives = config.schedule, config.objectives
    held_out = min(clips.get("val", 0), int(summary.get("eval_clips", schedule.eval_clips)))
    published, best = dict(summary.get("published") or {}), dict(summary.get("best") or {})
    choice = f", the best of {summary['steps']:,} by `{best.get('metric')}`"
    return _TEXT.format(
        version=dict(about.get("versions") or {}).get("evilm", ""),
        parameters=summary.get("parameters", 0),
        **{name: about[name] for name in ("num_frames", "input_px", "max_text_len", "vocab_size")},
        evaluated=f"On {held_out:,} held-out clips of the split `val`" if held_out else _UNSEEN,
        steps=published.get("step", summary.get("steps", 0)),
        choice=choice if published.get("export") == "best" else "",
        epochs=schedule.epochs,
        batch_clips=schedule.batch_clips,
        figures="\n".join(_figures(dict(summary.get("val") or {}))) or "| not evaluated | | | |",
        clips=", ".join(f"{name} {count:,}" for name, count in sorted(clips.items(), key=lambda item: -item[1])),
        inputs="\n".join(f"| {name} | `{value}` |" for name, value in sorted(dict(summary["inputs"]).items())),
        corpus=_EMBEDDED if _is_embedded(config) else _OWN,
        lr=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        seed=schedule.seed,
        **{name: getattr(objectives, name) for name in ("mask_ratio", "mask_shape", "mlm_ratio", "negatives")},
        start=_start(config),
    )


def _start(config: Pretrain) -> str:
    """Say what the weights were before training."""
    if config.init:
        return f"started from the model `{config.init.rstrip('/').rsplit('/', 1)[-1]}` (input `init`)"
    weights = {"": "random weights", "timm": "ImageNet weights of timm"}
    return f"the video encoder began with {weights.get(config.arch.video_weights, 'weights it was given')}"


def _figures(val: Mapping[str, float]) -> list[str]:
    """One row per objective that was evaluated."""
    names = {"mvm": "masked video modelling", "mlm": "masked language modelling", "vtm": "video-text matching"}
    guessing = {"vtm": "50.0% (one right and one wrong caption per clip)", "mlm": ""}
    if "mvm_most_frequent" in val:
        guessing["mvm"] = f"{val['mvm_most_frequent']:.1%} (the most frequent code)"
    return [
        f"| {title} | {val[f'{name}_loss']:.3f} | {val[f'{name}_accuracy']:.1%} | {guessing.get(name, '')} |"
        for name, title in names.items()
        if f"{name}_loss" in val
    ]


def _about(out: str) -> dict[str, Any]:
    return dict(storage.read_json(storage.join(out, "config.json")))


def _is_embedded(config: Pretrain) -> bool:
    """Return whether the frames were cut from the embedded corpus, which is then beside them under the root."""
    root = storage.absolute(config.root)
    built = storage.absolute(config.frames) == storage.join(root, "frames")
    return built and not config.manifest and storage.exists(storage.join(root, "corpus", "run.json"))
