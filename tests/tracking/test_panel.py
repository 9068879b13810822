"""The qualitative panel: what it tells is what the model says, and drawing it changes nothing."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evilm.dataloader.collate import PretrainBatch
from evilm.model.evilm_model import EViLMModel
from evilm.model.tokenizers.code_words import CodeWords
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.tasks.pretrain import PretrainTask
from evilm.text.vocab import Vocab
from evilm.tracking.panel import MaskedWord, caption_pieces, caption_text, draw_panel, predict
from evilm.tracking.panel_log import PanelLog
from helpers.workflow import Workflow, small_pretrain


@pytest.fixture(scope="module")
def task(small_workflow: Workflow) -> PretrainTask:
    """The pre-training of the small workflow, as a worker has it."""
    root, _ = small_workflow
    places = {name: str(root / name) for name in ("frames", "vocab", "tokenizer")}
    places["codes"] = str(next(path.parent for path in (root / "codes").glob("*/manifest.json")))
    return PretrainTask(small_pretrain(root, out=str(root / "model"), **places))


@pytest.fixture
def model_and_batch(
    small_workflow: Workflow, task: PretrainTask
) -> tuple[EViLMModel, VideoTokenizer, Vocab, PretrainBatch]:
    """Model, tokenizer, vocabulary and the clips of every panel."""
    root, _ = small_workflow
    batch = task.panels(None)._make_batch()
    assert batch is not None
    student = EViLMModel.from_pretrained(str(root / "model"))
    return student, VideoTokenizer.from_pretrained(str(root / "tokenizer")), Vocab.load(str(root / "vocab")), batch


def test_panel_shows_what_the_model_predicts(
    model_and_batch: tuple[EViLMModel, VideoTokenizer, Vocab, PretrainBatch],
) -> None:
    student, _, vocab, batch = model_and_batch
    found = predict(student, batch)
    with torch.no_grad():
        out = student.decode(
            student.encode_video(batch.frames, batch.mask),
            student.encode_text(batch.input_ids, batch.padding_mask),
            batch.padding_mask,
        )
        match = student.match_logits(out.cls).softmax(-1)[:, 1]
        codes = student.mvm_logits(out.regions).argmax(-1)
    assert found.match == pytest.approx(match.numpy(), abs=1e-6)
    assert found.codes.tolist() == codes.tolist()
    assert ((found.wrong_match >= 0) & (found.wrong_match <= 1)).all()
    for clip in range(len(batch.clip_ids)):
        caption = list(caption_pieces(vocab, batch, found, clip))
        masked = [piece for piece in caption if isinstance(piece, MaskedWord)]
        assert len(masked) == int((batch.word_targets[clip] >= 0).sum()) > 0
        pieces = [piece.truth if isinstance(piece, MaskedWord) else piece for piece in caption]
        place, target = (batch.word_targets[clip] >= 0).nonzero()[0, 0], batch.word_targets[clip]
        assert pieces[place - 1] == vocab.pieces[int(target[place])], "in its place, [CLS] not counted"


def test_frames_whose_side_the_grid_does_not_divide_are_drawn(
    model_and_batch: tuple[EViLMModel, VideoTokenizer, Vocab, PretrainBatch],
) -> None:
    student, tokenizer, vocab, batch = model_and_batch
    odd = replace(batch, frames=batch.frames[:, :, :63, :63].contiguous())
    image = draw_panel(student, CodeWords(tokenizer, vocab), vocab, odd)
    assert Image.open(io.BytesIO(image)).width > 1000


def test_drawing_is_repeatable_and_does_not_change_the_model(
    model_and_batch: tuple[EViLMModel, VideoTokenizer, Vocab, PretrainBatch],
) -> None:
    student, tokenizer, vocab, batch = model_and_batch
    words = CodeWords(tokenizer, vocab)
    student.train()
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    random = torch.random.get_rng_state()
    first = draw_panel(student, words, vocab, batch, "step 3")
    assert student.training
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())
    assert draw_panel(student, words, vocab, batch, "step 3") == first
    picture = np.asarray(Image.open(io.BytesIO(first)))
    assert picture.shape[1] > 1000
    assert picture.shape[0] > 250 * len(batch.clip_ids)
    colours = picture[..., :3].astype(int) @ [1 << 16, 1 << 8, 1]
    assert len(np.unique(colours)) > 1000, "frames, not only text"


def test_codes_have_words_only_with_a_decoder(
    model_and_batch: tuple[EViLMModel, VideoTokenizer, Vocab, PretrainBatch],
) -> None:
    student, tokenizer, vocab, batch = model_and_batch
    codes = sorted(set(batch.code_ids.flatten().tolist()))
    words = CodeWords(tokenizer, vocab).words(codes, top=3)
    assert [len(best) for best in words] == [3] * len(codes)
    assert words == [CodeWords(tokenizer, vocab).words([code], top=3)[0] for code in codes]
    assert all(word[0].isalnum() and len(word) > 1 for best in words for word in best)
    tokenizer.decoder = None
    assert CodeWords(tokenizer, vocab).words(codes[:2]) == [[], []]
    assert draw_panel(student, CodeWords(tokenizer, vocab), vocab, batch).startswith(b"\x89PNG")


def test_masked_words_are_printed_in_their_place_with_truth_and_guess() -> None:
    pieces = [
        "a",
        MaskedWord("red", "blue", 0.25, "[MASK]"),
        MaskedWord("##dish", "##dish", 0.5, "##ding"),
        "ball",
        ".",
    ]
    assert caption_text(pieces) == "a [red → blue 25%][dish (seen as ding) ✓ 50%] ball."


def test_panels_are_drawn_when_due_and_errors_only_disable_them(
    tmp_path: Path, small_workflow: Workflow, task: PretrainTask
) -> None:
    root, _ = small_workflow
    objective = task.objective()
    vocab, tokenizer = Vocab.load(str(root / "vocab")), str(root / "tokenizer")
    batch = task.panels(None)._make_batch
    panels = PanelLog(str(tmp_path), 10, vocab, tokenizer, batch)
    assert [step for step in range(1, 26) if panels.due(step, 25)] == [10, 20, 25]
    panels.draw(objective, 10)
    assert [path.name for path in (tmp_path / "panels").iterdir()] == ["step_000010.png"]
    assert objective.training
    at_end = PanelLog(str(tmp_path / "end"), 0, vocab, tokenizer, batch)
    assert [step for step in range(1, 26) if at_end.due(step, 25)] == [25]
    gone = PanelLog(str(tmp_path / "gone"), 10, vocab, str(tmp_path / "no tokenizer"), batch)
    gone.draw(objective, 10)
    assert not gone.due(20, 25)
    empty = PanelLog(str(tmp_path / "gone"), 10, vocab, tokenizer, lambda: None)
    empty.draw(objective, 10)
    assert not (tmp_path / "gone").exists()


def test_panel_names_the_split_and_reads_the_words_of_captions(task: PretrainTask) -> None:
    panels = task.panels(None)
    assert panels._split == "val"
    captions = list(panels._captions())
    assert len(captions) > 8
    assert all(isinstance(caption, str) and " " in caption for caption in captions)


def test_training_stores_its_panel_beside_the_model_and_in_mlflow(small_workflow: Workflow) -> None:
    from mlflow import MlflowClient

    root, _ = small_workflow
    assert [path.name for path in (root / "model" / "panels").iterdir()] == ["step_000020.png"]
    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("evilm")
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id], "tags.`evilm.stage` = 'pretrain'")
    assert [item.path for item in client.list_artifacts(run.info.run_id, "panels")] == ["panels/step_000020.png"]


def test_codes_are_described_by_whole_words_of_captions(
    model_and_batch: tuple[EViLMModel, VideoTokenizer, Vocab, PretrainBatch],
) -> None:
    _, tokenizer, vocab, batch = model_and_batch
    captions = ["a stone pavement", "bouncing triangles on the pavement"]
    found = CodeWords(tokenizer, vocab, captions).words(sorted(set(batch.code_ids.flatten().tolist())), top=3)
    words = {word for best in found for word in best}
    assert words
    assert words <= {word for caption in captions for word in caption.split()} - {"a"}
