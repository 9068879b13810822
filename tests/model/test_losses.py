"""Eq. 3, 6 and 7 against figures worked by hand."""

import math

import pytest
import torch

from evilm.config.models import FocalConfig
from evilm.model.losses import focal_word_loss, mlm_loss, mvm_loss, quantizer_losses, vtm_loss

LN = math.log


def test_eq_3_masked_video_modelling():
    # Softmax of (ln 1, ln 2, ln 5) is (1/8, 2/8, 5/8), of (0, 0, 0) is (1/3, 1/3, 1/3).
    # Codes 2 and 0: (-ln 5/8 - ln 1/3) / 2 = (0.470004 + 1.098612) / 2 = 0.784308. Positive: it is minimised.
    logits = torch.tensor([[LN(1), LN(2), LN(5)], [0.0, 0.0, 0.0]])
    loss = mvm_loss(logits, torch.tensor([2, 0]))
    assert loss.mean.item() == pytest.approx(0.784308, abs=1e-6)
    assert loss.total.item() == pytest.approx(1.568616, abs=1e-6)
    assert (loss.num_items, int(loss.correct)) == (2, 2)  # the tie of the second row goes to class 0


def test_mlm_is_the_cross_entropy_of_masked_words():
    # Softmax of (ln 3, ln 1) is (3/4, 1/4): -ln 1/4 = 1.386294, wrongly guessed.
    loss = mlm_loss(torch.tensor([[LN(3), 0.0]]), torch.tensor([1]))
    assert loss.mean.item() == pytest.approx(1.386294, abs=1e-6)
    assert (loss.num_items, int(loss.correct)) == (1, 0)


def test_vtm_class_1_is_matched():
    # Softmax of (0, ln 4) is (1/5, 4/5): matched costs -ln 4/5 = 0.223144, mismatched -ln 1/5 = 1.609438.
    loss = vtm_loss(torch.tensor([[0.0, LN(4)]] * 2), torch.tensor([True, False]))
    assert loss.total.item() == pytest.approx(1.832581, abs=1e-6)
    assert int(loss.correct) == 1


def test_empty_targets_give_a_zero_differentiable_loss():
    logits = torch.ones(3, 4, requires_grad=True)
    for loss_of in (mlm_loss, mvm_loss):
        loss = loss_of(logits[:0], torch.zeros(0, dtype=torch.int64))
        assert (loss.total.item(), loss.mean.item(), loss.num_items) == (0, 0, 0)
        loss.mean.backward()
        assert logits.grad is not None
        assert not logits.grad.any()


# Logits ln 3, 0, -ln 3 are probabilities 3/4, 1/2, 1/4. Words 0 and 2 are in the caption, word 1 is not.
FOCAL_LOGITS = torch.tensor([[LN(3), 0.0, -LN(3)]])
FOCAL_WORDS = torch.tensor([[True, False, True]])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # -ln 3/4 = 0.287682, -1/2 ln 1/2 = 0.346574, -ln 1/4 = 1.386294; sum 2.020550, over 3 words 0.673517
        ({}, 0.673517),
        ({"reduction": "sum"}, 2.020550),
        ({"reduction": "sum", "weight": 2.0}, 4.041100),
        # plain binary cross-entropy: the middle word costs -ln 1/2 = 0.693147
        ({"reduction": "sum", "gamma_negative": 0.0}, 2.367123),
        # (1/4)^2 0.287682 + 0.346574 + (3/4)^2 1.386294 = 0.017980 + 0.346574 + 0.779790
        ({"reduction": "sum", "gamma_positive": 2.0}, 1.144344),
    ],
)
def test_eq_6_word_loss(settings, expected):
    loss = focal_word_loss(FOCAL_LOGITS, FOCAL_WORDS, FocalConfig(**settings))
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_eq_6_is_a_mean_over_clips():
    logits, words = torch.cat([FOCAL_LOGITS, torch.zeros(1, 3)]), torch.cat([FOCAL_WORDS, torch.zeros(1, 3).bool()])
    # the second clip has no words and p = 1/2 everywhere: 0.346574 per word; (0.673517 + 0.346574) / 2
    assert focal_word_loss(logits, words, FocalConfig()).item() == pytest.approx(0.510046, abs=1e-5)


@pytest.mark.parametrize(("stopped", "slope"), [(False, 0.4232868), (True, 0.25)])
def test_eq_6_gradient_through_its_weight(stopped, slope):
    # d/dx of -p ln(1-p) is p^2 - p (1-p) ln(1-p): at p = 1/2, 0.25 + 0.25 ln 2; with the weight held fixed only p^2
    logits = torch.zeros(1, 1, requires_grad=True)
    settings = FocalConfig(stop_weight_gradient=stopped)
    focal_word_loss(logits, torch.zeros(1, 1).bool(), settings).backward()
    assert logits.grad is not None
    assert logits.grad.item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("gammas", [(0.0, 1.0), (0.5, 0.5), (2.0, 4.0)])
def test_eq_6_stays_finite_at_extreme_logits(gammas):
    logits = torch.tensor([[200.0, -200.0, 200.0, -200.0]], requires_grad=True)
    words = torch.tensor([[True, True, False, False]])
    loss = focal_word_loss(logits, words, FocalConfig(gamma_positive=gammas[0], gamma_negative=gammas[1]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_eq_7_codebook_and_commitment():
    # (1, 0) to (0.6, 0.8): 0.16 + 0.64 = 0.8. (0, 1) to itself: 0. Mean over two regions 0.4, for both terms.
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    codes = torch.tensor([[0.6, 0.8], [0.0, 1.0]], requires_grad=True)
    losses = quantizer_losses(vectors, codes)
    assert losses.codebook.item() == pytest.approx(0.4)
    assert losses.commitment.item() == pytest.approx(0.4)
    # the codebook term moves the codes alone: 2 (c - v) / 2 regions = (-0.4, 0.8)
    losses.codebook.backward(retain_graph=True)
    assert vectors.grad is None
    assert codes.grad is not None
    assert torch.allclose(codes.grad[0], torch.tensor([-0.4, 0.8]))
    codes.grad = None
    losses.commitment.backward()
    assert codes.grad is None
    assert vectors.grad is not None
    assert torch.allclose(vectors.grad[0], torch.tensor([0.4, -0.8]))
