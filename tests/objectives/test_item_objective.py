"""Losses of downstream tasks: contrastive gradients do not depend on workers; labels, choices and heads."""

import numpy as np
import pytest
import torch

from evilm.dataloader.item_collate import ItemCollate
from evilm.errors import ConfigError
from evilm.model.task_heads import answer_pieces
from evilm.objectives.item_objective import contrast, recalls
from helpers.contrast_ranks import gradients, make_batch, make_objective, whole
from helpers.item_models import CASES, VOCAB, case, item_objective, item_rows


@pytest.mark.parametrize("match_weight", [0.0, 1.0])
@pytest.mark.parametrize(
    ("world", "accumulation"), [(1, 1), (1, 4), (2, 1), (2, 4), (4, 1), pytest.param(4, 4, marks=pytest.mark.long)]
)
def test_contrastive_gradients_are_those_of_the_whole_step(tmp_path, world, accumulation, match_weight):
    changes = {"match_weight": match_weight, "dtype": torch.float64}
    loss, expected = whole(**changes)
    metrics, found = gradients(world, world * accumulation, tmp_path, **changes)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=5e-6, msg=name)


def test_dropout_is_the_same_in_both_passes(tmp_path):
    _, one = gradients(1, 4, tmp_path, dropout=0.2)
    _, two = gradients(2, 4, tmp_path, dropout=0.2)
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_contrast_is_the_mean_of_both_directions():
    features = torch.nn.functional.normalize(torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    losses, hits = contrast(features, 0.1)
    logits = (features[:, 1] @ features[:, 0].T / 0.1).numpy()
    rows = -np.diag(logits) + np.log(np.exp(logits).sum(1))
    columns = -np.diag(logits) + np.log(np.exp(logits).sum(0))
    np.testing.assert_allclose(losses.numpy(), (rows + columns) / 2, rtol=1e-5, atol=1e-6)
    assert hits.tolist() == (logits.argmax(1) == np.arange(4)).tolist()


def test_recalls_are_those_of_torchmetrics():
    from torchmetrics.retrieval import RetrievalHitRate  # here, since its import takes many seconds

    rng = np.random.default_rng(0)
    clip_ids = np.array([f"v{n // 3}" for n in range(60)])
    videos = np.repeat(rng.normal(size=(20, 6)), 3, axis=0)
    texts = videos + rng.normal(size=(60, 6)) * 1.5
    found = recalls(videos, texts, clip_ids)
    scores = texts @ videos[::3].T
    own = np.arange(60)[:, None] // 3 == np.arange(20)[None]
    queries = np.repeat(np.arange(60), 20)
    for k in (1, 5, 10):
        metric = RetrievalHitRate(top_k=k)
        arguments = [torch.from_numpy(part) for part in (scores.ravel(), own.ravel(), queries)]
        assert found[f"t2v_r{k}"] == pytest.approx(float(metric(arguments[0], arguments[1], indexes=arguments[2])))
        back = [torch.from_numpy(np.ascontiguousarray(part.T).ravel()) for part in (scores, own)]
        hits = metric(back[0], back[1], indexes=torch.from_numpy(np.repeat(np.arange(20), 60)))
        assert found[f"v2t_r{k}"] == pytest.approx(float(hits))


def test_answers_without_label_are_left_out_of_the_loss_and_counted_in_the_accuracy():
    question, batch = item_objective("answer", ("w1", "w2")), ItemCollate(VOCAB, 12, "answer")(item_rows())
    (loss,) = question(batch).values()
    assert loss.num_items == question.counts(batch)["answer"] == 2
    scores = question.scores()
    scores.add(batch, torch.device("cpu"))
    found = scores.result([scores.state()])
    assert found["accuracy"] == pytest.approx(int(loss.correct) / 3)
    assert found["accuracy_labelled"] == pytest.approx(int(loss.correct) / 2)


def test_a_masked_answer_is_the_mlm_head_at_the_mask():
    question = item_objective("answer", ("w1", "two words", "w2"), type="mlm")
    collate = ItemCollate(VOCAB, 12, "answer", pieces=question.head.pieces.numpy())
    batch = collate(item_rows(labels=np.array([0, 1, 2])))
    assert batch.labelled.tolist() == [0, 2]
    assert batch.input_ids[1].tolist()[-2:] == [VOCAB.mask_id, VOCAB.sep_id]
    with torch.no_grad():
        scores = question.model.scores(batch)
        video = question.student.encode_video(batch.frames[:1])
        words = question.student.encode_text(batch.input_ids[1:2], batch.padding_mask[1:2])
        states = question.student.decode(video, words, batch.padding_mask[1:2]).words
        expected = question.student.mlm_logits(states[0, batch.masked_at[1]])
    torch.testing.assert_close(scores[1, [0, 2]], expected[[VOCAB._ids["w1"], VOCAB._ids["w2"]]])
    assert scores[1, 1] == float("-inf")


@pytest.mark.parametrize("head", ["mlp", "match"])
def test_options_are_scored_beside_the_question_on_one_encoded_video(head):
    choice = item_objective("choice", type=head)
    options = [["w5", "w6", "w7"], ["w8", "w9", "w10"], ["w11", "w12", "w13"]]
    batch = ItemCollate(VOCAB, 12, "choice")(item_rows(options=options))
    assert len(batch.frames) == 2
    assert batch.clip_of.tolist() == [0] * 6 + [1] * 3
    with torch.no_grad():
        scores = choice.model.scores(batch)
        alone = ItemCollate(VOCAB, 12, "choice")(item_rows(options=[[o[1]] for o in options]))
        torch.testing.assert_close(scores[:, 1:2], choice.model.scores(alone))


def test_classes_need_no_text_and_train_no_text_encoder():
    label = item_objective("label", ("run", "jump"))
    batch = ItemCollate(VOCAB, 12, "label")(item_rows(texts=["", "", ""]))
    (loss,) = label(batch).values()
    loss.total.backward()
    trained = {name for name, p in label.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in label.named_parameters() if p.requires_grad}
    assert not any("text" in name for name in trained)


def test_frozen_parts_and_lower_layers_learn_slower():
    label = item_objective("label", ("run", "jump"), freeze=("video_encoder",), lr_scale=10.0, layer_decay=0.5)
    assert not any(p.requires_grad for p in label.student.video_encoder.parameters())
    assert label.lr_scale("head.layers.1.weight") == 10.0
    assert label.lr_scale("student.decoder.blocks.1.norm_mlp.weight") == 1.0
    assert label.lr_scale("student.decoder.blocks.0.norm_mlp.weight") == 0.5
    assert label.lr_scale("student.text_projection.weight") == 0.25
    assert label.lr_scale("student.match_head.pooler.weight") == 1.0


def test_a_head_of_another_kind_is_rejected():
    with pytest.raises(ConfigError, match=r"mlm.*answer.*choice"):
        item_objective("choice", type="mlm")
    with pytest.raises(ConfigError, match=r"mlm.*answer.*retrieval"):
        item_objective("retrieval", type="mlm")
    with pytest.raises(ConfigError, match="one word piece"):
        item_objective("answer", ("no piece", "neither here"), type="mlm")


def test_an_answer_in_unknown_characters_is_not_a_word_piece():
    assert answer_pieces(("w1", "猫", "w1 w2"), VOCAB).tolist() == [VOCAB.pieces.index("w1"), -1, -1]
    with pytest.raises(ConfigError, match="one word piece"):
        item_objective("answer", ("猫", "犬"), type="mlm")


def test_all_trained_parameters_of_retrieval_get_a_gradient():
    retrieval = make_objective()
    retrieval.cache(retrieval.embed(make_batch()))
    sum(loss.total for loss in retrieval(make_batch()).values()).backward()
    assert all(p.grad is not None for p in retrieval.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", CASES)
def test_all_trained_parameters_of_a_head_get_a_gradient(name):
    """DDP would wait for the others."""
    head, batch = case(name)
    sum(loss.total for loss in head(batch).values()).backward()
    assert {n for n, p in head.named_parameters() if p.requires_grad and p.grad is None} == set()


def test_a_long_question_does_not_cut_off_the_options():
    options = [["w5", "w6 w7"], ["w8", "w9"], ["w10", "w11 " * 20]]
    texts = ["w1 " * 30, "w2", "w3"]
    batch = ItemCollate(VOCAB, 12, "choice")(item_rows(texts=texts, options=options))
    found = [VOCAB.decode(ids.tolist()) for ids in batch.input_ids]
    assert found[0] == " ".join(["w1"] * 9 + ["w5"])
    assert found[1] == " ".join(["w1"] * 8 + ["w6", "w7"])
    assert found[3] == "w2 w9"
    assert found[5] == " ".join(["w11"] * 10)
    assert batch.input_ids.shape[1] == 12


def test_other_captions_of_a_video_are_no_wrong_answers_in_an_evaluation():
    retrieval = make_objective()
    scores = retrieval.scores()
    with torch.no_grad():
        scores.add(make_batch(), torch.device("cpu"))
    state = scores.state()
    unit = np.eye(16, dtype=np.float32)[np.arange(10) // 2]
    state["features"] = np.stack([unit, unit], axis=1)
    found = scores.result([state])
    assert found["loss"] < 1e-3
    assert found["score"] == 1.0
