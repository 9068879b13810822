"""Predictions of fine-tuned models in Python, against what the benchmark computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evilm.errors import ConfigError
from evilm.eval.item_scoring import ItemJob, ItemScorer
from evilm.items.item import Item
from evilm.model.inference import EViLM
from evilm.shards import FrameManifest, read_columns
from helpers.item_tables import write_items
from helpers.public_models import noise, random_evilm, tuned_evilm
from helpers.random_model import PX, make_frames

LABELS = ("red", "blue", "a star")
CASES = [
    ("answer", LABELS, {}),
    ("answer", ("ball", "left", "a star"), {"type": "mlm"}),  # two of them are word pieces
    ("choice", (), {}),
    ("choice", (), {"type": "match"}),
    ("label", LABELS, {}),
    ("retrieval", (), {"embed_dim": 16}),
]
QUESTIONS = ["what is it?", "which colour does the ball have?", "a", "who blinks in the fog?"]
OPTIONS = [["red", "blue"], ["a ball rolls", "two cubes"], ["left", "a blue star to the left"], ["fog", "ball"]]


def tuned(kind: str, labels: tuple[str, ...], head: dict[str, Any], folder: Path) -> EViLM:
    """A saved and loaded model with a head of this kind, for the two frames of `make_frames`."""
    model = tuned_evilm(kind, labels, num_frames=2, **head)
    model.save_pretrained(folder)
    return EViLM.from_pretrained(folder)


def clips_of(frames: FrameManifest) -> dict[str, list[bytes]]:
    """The JPEGs of all clips."""
    found: dict[str, list[bytes]] = {}
    for shard in frames.shards:
        table = read_columns(f"{frames.uri}/{shard.file}", ["clip_id", "frames"])
        found |= dict(zip(table["clip_id"].to_pylist(), table["frames"].to_pylist(), strict=True))
    return found


def benchmarked(folder: Path, model: EViLM, kind: str, labels: tuple[str, ...]) -> tuple[FrameManifest, dict[str, Any]]:
    """Frames of four clips, and what an actor of the benchmark makes of an item about each."""
    frames = make_frames(folder / "frames", 4)
    texts = [""] * 4 if kind == "label" else QUESTIONS
    options = OPTIONS if kind == "choice" else [[]] * 4
    answers = [own[0] if own else "red" for own in options]
    items = [
        Item("test", f"q{k}", f"c{k:03d}", text, answer, tuple(own))
        for k, (text, answer, own) in enumerate(zip(texts, answers, options, strict=True))
    ]
    manifest = write_items(folder / "items", kind, items, labels)
    assert model.task is not None
    job = ItemJob(str(folder / "model"), model.task.spec, frames.uri, manifest.uri, "test", 4)
    return frames, ItemScorer(job)({"batch": np.array([0])})


@pytest.mark.parametrize(("kind", "labels", "head"), CASES)
def test_probabilities_are_those_of_the_benchmark(kind: str, labels: tuple, head: dict, tmp_path: Path) -> None:
    model = tuned(kind, labels, head, tmp_path / "model")
    frames, scored = benchmarked(tmp_path, model, kind, labels)
    clips = clips_of(frames)
    videos = [clips[clip] for clip in scored["clip_id"].tolist()]
    order = [int(item[1:]) for item in scored["item_id"].tolist()]
    questions, options = [QUESTIONS[k] for k in order], [OPTIONS[k] for k in order]
    if kind == "retrieval":
        expected = scored["video"] @ scored["text"].T
        assert model.similarity(videos, questions) == pytest.approx(expected, abs=1e-5)
        return
    if kind == "choice":
        best = np.argsort(-scored["probabilities"], axis=1)
        expected = np.take_along_axis(scored["probabilities"], best, axis=1)
        names = [[own[place] for place in row] for own, row in zip(options, best, strict=True)]
        found = model.choose(videos, questions, options)
    else:
        expected, names = scored["probabilities"], [[labels[place] for place in row] for row in scored["top"]]
        found = model.answer(videos, questions) if kind == "answer" else model.classify(videos)
    assert [[guess.value for guess in row] for row in found] == names
    assert np.array([[guess.probability for guess in row] for row in found]) == pytest.approx(expected, abs=1e-5)


def test_number_of_answers_and_encoded_videos_can_be_given(tmp_path: Path) -> None:
    model = tuned_evilm("answer", LABELS)
    videos = [noise(seed=k) for k in range(2)]
    whole = model.answer(videos, QUESTIONS[:2], top=9)
    assert [len(row) for row in whole] == [3, 3]
    assert sum(guess.probability for guess in whole[0]) == pytest.approx(1, abs=1e-5)
    assert model.answer(videos, QUESTIONS[:2], top=1) == [row[:1] for row in whole]
    assert model.answer(model.embed_videos(videos), QUESTIONS[:2], top=9) == whole
    assert model.answer([], []) == []
    assert "fine-tuned on t;" in repr(model)


def test_lists_of_options_may_differ_in_length() -> None:
    model = tuned_evilm("choice", ())
    videos = [noise(seed=k) for k in range(2)]
    first, second = model.choose(videos, QUESTIONS[:2], [["red"], ["a ball", "a star", "fog"]])
    assert first == [("red", 1.0)]
    assert sorted(guess.value for guess in second) == ["a ball", "a star", "fog"]
    assert model.choose([], [], []) == []


def test_vectors_for_retrieval_have_unit_length() -> None:
    model = tuned_evilm("retrieval", embed_dim=16)
    of_videos, of_captions = model.retrieval_vectors([noise()], ["a ball", "a star"])
    assert (of_videos.shape, of_captions.shape) == ((1, 16), (2, 16))
    assert np.linalg.norm(of_captions, axis=1) == pytest.approx(1, abs=1e-5)
    assert model.retrieval_vectors(captions=["a ball"])[0].shape == (0, 16)
    assert np.array_equal(model.similarity([noise()], ["a ball", "a star"]), of_videos @ of_captions.T)


def test_half_precision_and_saving_keep_the_head(tmp_path: Path) -> None:
    full = tuned("label", LABELS, {}, tmp_path / "model")
    half = EViLM.from_pretrained(tmp_path / "model", dtype="bfloat16")
    video = [noise(2, PX)]
    for ours, theirs in zip(full.classify(video)[0], half.classify(video)[0], strict=True):
        assert ours.probability == pytest.approx(theirs.probability, abs=0.05)
    half.save_pretrained(tmp_path / "half")
    again = EViLM.from_pretrained(tmp_path / "half")
    assert again.classify(video) == half.classify(video)
    assert next(again.task.head.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model", "call", "message"),
    [
        (random_evilm, lambda m: m.answer([], []), r"only pre-trained: it has no head for answer\(videos, questions\)"),
        (random_evilm, lambda m: m.choose([], [], []), "load one that finetune wrote, or use match, fill_words"),
        (
            lambda: tuned_evilm("label", LABELS),
            lambda m: m.answer([], []),
            r"fine-tuned on t and has no head for answer.*; use classify\(videos\)",
        ),
        (lambda: tuned_evilm("answer", LABELS), lambda m: m.similarity([], []), r"use answer\(videos, questions\)"),
        (lambda: tuned_evilm("answer", LABELS), lambda m: m.answer([noise()], ["a", "b"]), "1 videos and 2 questions"),
        (
            lambda: tuned_evilm("answer", LABELS),
            lambda m: m.answer([noise()], "a"),
            "questions = 'a' .* is one question",
        ),
        (lambda: tuned_evilm("answer", LABELS), lambda m: m.answer([noise()], [None]), r"questions\[0\] = None"),
        (lambda: tuned_evilm("choice"), lambda m: m.choose([noise()], ["a"], [[]]), r"options\[0\] is empty"),
        (lambda: tuned_evilm("choice"), lambda m: m.choose([noise()], ["a"], ["red"]), r"options\[0\] = 'red'"),
        (lambda: tuned_evilm("choice"), lambda m: m.choose([noise()], ["a"], None), "options = None"),
        (lambda: tuned_evilm("choice"), lambda m: m.choose([noise()], ["a"], []), "1 videos and 0 lists of options"),
    ],
)
def test_wrong_heads_and_inputs_are_one_line(model, call, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        call(model())
    assert "\n" not in str(caught.value)
