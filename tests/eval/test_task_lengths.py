"""Longest text and frames of a benchmark's task, and models whose matching head can't score."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evilm.config.finetune_command import HeadConfig
from evilm.config.presets import defaults
from evilm.config.stages import Benchmark
from evilm.errors import ConfigError
from evilm.eval.item_scoring import ItemJob, ItemScorer
from evilm.eval.task_subject import TaskSubject, open_subject
from evilm.io import storage
from evilm.items.item import Item, Kind
from evilm.items.seen_clips import write_seen
from evilm.model.evilm_model import EViLMModel
from evilm.model.identity import read_objectives
from evilm.model.task_model import TASK_FILE, TaskModel, TaskSpec, arch_for
from evilm.model.warm_start import refit, start_model
from evilm.text.item_texts import encode_choices, encode_texts, share_cut
from evilm.text.vocab import Vocab
from helpers.item_tables import write_items
from helpers.random_model import make_frames, make_model

LONG = " ".join(["a red ball moves slowly"] * 4)


def subject(folder: Path, kind: Kind = "retrieval", spec: TaskSpec | None = None, **values: Any) -> TaskSubject:
    """A model that has seen nothing, fine-tuned if `spec` is given, and four items, one of which is long."""
    model, frames = folder / "model", make_frames(folder / "frames", 4)
    make_model(model)
    write_seen(str(model), np.zeros((0, 2), dtype=np.uint64))
    if spec:
        storage.write_json(str(model / TASK_FILE), spec.as_json())
    options = ("a ball", "a cube") if kind == "choice" else ()
    texts = ["a ball", "a red cube", LONG, "a ring"]
    items = [Item("test", f"i{k}", f"c{k:03d}", text, "a ball", options) for k, text in enumerate(texts)]
    manifest = write_items(folder / "items", kind, items)
    config = Benchmark.model_validate({"task": "didemo-retrieval", "model": str(model)} | values)
    return open_subject(config, frames, manifest)


def retrieval(match_weight: float) -> TaskSpec:
    return TaskSpec("t", "retrieval", (), HeadConfig(match_weight=match_weight, embed_dim=8))


def test_longest_text_and_frames_are_those_of_the_benchmark(tmp_path: Path) -> None:
    found = subject(tmp_path, max_text_len=16, num_frames=1)
    assert (found.arch.max_text_len, found.arch.num_frames) == (16, 1)
    assert found.job("test").arch == found.arch
    assert found.share_cut() == 0.25
    with pytest.raises(ConfigError, match=r"max_text_len = 17 is over text_positions = 16; lower it"):
        subject(tmp_path / "b", max_text_len=17)


def test_lengths_of_the_model_count_as_not_set_so_that_earlier_scores_are_reused(tmp_path: Path) -> None:
    same = subject(tmp_path, max_text_len=12, num_frames=2)
    assert same.config.identity == subject(tmp_path / "b").config.identity
    assert same.config.identity != subject(tmp_path / "c", max_text_len=13).config.identity
    assert {same.config.identity[name] for name in ("max_text_len", "num_frames")} == {0}


def test_presets_score_with_the_texts_that_they_fine_tune_with() -> None:
    for task in ("didemo-retrieval", "msrvtt-retrieval", "msvd-qa"):
        own, scored = (defaults(stage, f"tasks/{task}").model_dump() for stage in ("finetune", "benchmark"))
        assert scored["max_text_len"] == own["max_text_len"] == (80 if task == "didemo-retrieval" else 0)
        assert scored["num_frames"] == own["num_frames"]


def test_lengths_have_no_effect_without_a_task() -> None:
    for name in ("max_text_len", "num_frames"):
        with pytest.raises(ValueError, match=rf"{name} = 8 has no effect without --task; leave it out"):
            Benchmark.model_validate({name: 8})


def test_a_changed_model_is_the_one_that_a_fine_tuning_would_start_from(tmp_path: Path) -> None:
    make_model(tmp_path)
    place, vocab = str(tmp_path), Vocab.load(str(tmp_path / "vocab"))
    student = EViLMModel.from_pretrained(place)
    arch = arch_for(student.config, 16, 1)
    expected, _ = start_model(arch, place, vocab, read_objectives(place)[1])
    found = refit(student, arch)
    assert found.config == expected.config == arch
    torch.testing.assert_close(found.state_dict(), expected.state_dict())


@pytest.mark.parametrize("max_text_len", [0, 16])
def test_actors_read_as_much_of_a_text_as_the_task_says(tmp_path: Path, max_text_len: int) -> None:
    found = subject(tmp_path, max_text_len=max_text_len)
    ids = TaskModel(EViLMModel.from_pretrained(found.model), retrieval(1.0), Vocab.load(found.model + "/vocab"))
    ids.save_pretrained(found.model)
    job = ItemJob(found.model, ids.spec, found.frames.uri, found.items.uri, "test", 4, arch=found.arch)
    scored = ItemScorer(job)({"batch": np.array([0])})
    place = scored["item_id"].tolist().index("i2")
    for length in (12, 16):
        word_ids, _ = encode_texts(ids.vocab, [LONG], length)
        words = torch.from_numpy(word_ids)
        padding = torch.zeros_like(words, dtype=torch.bool)
        with torch.inference_mode():
            states = ids.student.decode(None, ids.student.encode_text(words, padding), padding)
            expected = ids.head.embed_text(states.cls)[0]
        assert np.allclose(scored["text"][place], expected, atol=1e-5) == (length == (max_text_len or 12))


def test_the_share_of_texts_that_lose_their_end_is_counted(tmp_path: Path) -> None:
    make_model(tmp_path)
    vocab = Vocab.load(str(tmp_path / "vocab"))
    texts, longest = ["a ball", "a red ball moves", LONG], 6
    assert share_cut(vocab, texts, [[]] * 3, longest) == pytest.approx(1 / 3)
    assert share_cut(vocab, texts, [[]] * 3, longest, masked=True) == pytest.approx(2 / 3)
    options = [["a cube", "a"], ["a ring"], []]
    whole = [encode_choices(vocab, texts, options, 100)[1] > longest, encode_choices(vocab, texts, options, longest)]
    assert whole[0].tolist() == [False, False, True]
    assert share_cut(vocab, texts, options, longest) == pytest.approx(1 / 3)
    assert share_cut(vocab, [], [], longest) == 0.0


def test_a_matching_head_that_was_left_behind_does_not_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"fine-tuned with --head.match-weight 0.*and can't score choices; use a"):
        subject(tmp_path / "a", "choice", retrieval(0.0))
    with pytest.raises(ConfigError, match=r"fine-tuned with --head.match-weight 0.*leave --pairwise out"):
        subject(tmp_path / "b", "retrieval", retrieval(0.0), pairwise=True)
    assert "match-weight 0" in subject(tmp_path / "c", "retrieval", retrieval(0.0), rerank_top=2).no_match
    for number, (kind, spec) in enumerate(
        [("choice", retrieval(1.0)), ("retrieval", retrieval(0.5)), ("choice", None)]
    ):
        assert subject(tmp_path / str(number), kind, spec, pairwise=True).no_match == ""
