"""Eq. 4 by hand; how the codebook starts, moves and stays alive."""

import pytest
import torch
import torch.nn.functional as F

from evilm.config.models import CodebookConfig
from evilm.model.tokenizers.quantizer import Quantizer, kmeans


def build(rows: list[list[float]], **changes) -> Quantizer:
    quantizer = Quantizer(CodebookConfig(num_codes=len(rows), code_dim=len(rows[0]), **changes))
    quantizer.codebook.data.copy_(torch.tensor(rows))
    return quantizer


def test_eq_4_nearest_code():
    # v = (0.8, 0.6). Unnormalised, (1, 1) is nearest: distances^2 are 0.04 + 0.16 = 0.20, against (5, 5): 36.9 and
    # (2, 0): 1.8. On the sphere (5, 5) and (1, 1) are one: cos 1.4 / sqrt 2 = 0.990, (2, 0): 0.8, (3, 3.9): 0.964.
    quantizer = build([[2.0, 0.0], [5.0, 5.0], [3.0, 3.9]])
    assert quantizer.nearest(torch.tensor([[0.8, 0.6]])).tolist() == [1]
    vectors = F.normalize(torch.randn(50, 2), dim=-1)
    rows = F.normalize(quantizer.codebook.detach(), dim=-1)
    assert torch.equal(quantizer.nearest(vectors), torch.cdist(vectors, rows).argmin(-1))


def test_straight_through_copies_the_gradient():
    quantizer = build([[1.0, 0.0], [0.0, 1.0]])
    vectors = torch.tensor([[[0.8, 0.6], [0.6, 0.8]]], requires_grad=True)
    out = quantizer(vectors)
    assert torch.allclose(out.codes, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    assert out.code_ids.tolist() == [[0, 1]]
    (out.codes * torch.tensor([[[2.0, 3.0], [5.0, 7.0]]])).sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.tolist() == [[[2.0, 3.0], [5.0, 7.0]]]
    assert quantizer.codebook.grad is None or not quantizer.codebook.grad.any()


def test_usage_counts_training_only():
    quantizer = build([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    vectors = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]])
    quantizer(vectors)
    quantizer(vectors)
    quantizer.eval()(vectors)
    assert quantizer.usage.tolist() == [4, 2, 0]


def test_revival_replaces_rarely_used_codes_only():
    quantizer = build([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], revive_below=0.1)
    quantizer.usage.copy_(torch.tensor([100, 3, 98, 0]))
    # mean 50.25, so fewer than 5.025 uses: codes 1 and 3
    pool = torch.tensor([[0.6, 0.8], [0.8, 0.6], [2.0, 2.0]])
    assert quantizer.revive(pool, seed=0) == 2
    rows = quantizer.codebook.detach()
    assert rows[0].tolist() == [1, 0]
    assert rows[2].tolist() == [-1, 0]
    unit = F.normalize(pool, dim=-1)
    assert all(any(torch.allclose(rows[code], vector) for vector in unit) for code in (1, 3))
    assert not torch.allclose(rows[1], rows[3])
    assert quantizer.usage.sum() == 0


def test_revival_is_seeded_and_a_small_pool_serves_the_least_used():
    def revived(seed, pool_size=64):
        quantizer = build([[1.0, 0.0]] * 4, revive_below=1.0)
        quantizer.usage.copy_(torch.tensor([50, 2, 1, 3]))
        pool = F.normalize(torch.randn(pool_size, 2, generator=torch.Generator().manual_seed(9)), dim=-1)
        return quantizer.revive(pool, seed), quantizer.codebook.detach()

    assert torch.equal(revived(1)[1], revived(1)[1])
    assert not torch.equal(revived(1)[1], revived(2)[1])
    moved, rows = revived(0, pool_size=1)
    assert moved == 1
    assert rows[2].tolist() != [1, 0]
    assert rows[1].tolist() == [1, 0]


def test_revival_ignores_nonfinite_vectors():
    quantizer = build([[1.0, 0.0]] * 6, revive_below=1.0)
    quantizer.usage.copy_(torch.tensor([60, 1, 2, 3, 4, 5]))
    pool = torch.tensor([[0.6, 0.8], [torch.nan, 1.0], [0.8, 0.6], [torch.inf, 0.0]])
    assert quantizer.revive(pool, seed=0) == 2
    rows = quantizer.codebook.detach()
    assert sorted(rows[1:3, 0].tolist()) == pytest.approx([0.6, 0.8])
    assert rows[[0, 3, 4, 5]].tolist() == [[1, 0]] * 4
    assert quantizer.revive(torch.full((4, 2), torch.nan), seed=0) == 0
    assert torch.equal(quantizer.codebook, rows)


def test_kmeans_finds_the_clusters():
    generator = torch.Generator().manual_seed(0)
    truth = F.normalize(torch.randn(6, 8, generator=generator), dim=-1)
    vectors = truth.repeat(50, 1) + 0.02 * torch.randn(300, 8, generator=generator)
    centres = kmeans(vectors, 24, seed=0)
    assert torch.allclose(centres.norm(dim=-1), torch.ones(24), atol=1e-5)
    assert (truth @ centres.T).amax(1).min() > 0.99
    assert (vectors @ centres.T).amax(1).mean() > (vectors @ kmeans(vectors, 24, seed=0, rounds=0).T).amax(1).mean()
    assert torch.equal(centres, kmeans(vectors, 24, seed=0))


def test_kmeans_with_fewer_vectors_than_codes():
    centres = kmeans(torch.eye(3), 5, seed=0)
    assert centres.shape == (5, 3)
    assert torch.allclose(centres.norm(dim=-1), torch.ones(5), atol=1e-5)


def test_kmeans_start_uses_most_codes_where_a_random_one_does_not():
    # encoder outputs in a narrow cone, as early in training
    vectors = F.normalize(torch.randn(1, 16) + 0.2 * torch.randn(2000, 16), dim=-1)
    quantizer = Quantizer(CodebookConfig(num_codes=64, code_dim=16))
    random_usage = len(quantizer.nearest(vectors).unique()) / 64
    quantizer.init_kmeans(vectors, seed=0)
    assert len(quantizer.nearest(vectors).unique()) / 64 > 0.9 > 0.5 > random_usage


def test_ema_moves_codes_at_the_end_of_a_step():
    quantizer = build([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], update="ema", ema_decay=0.5)
    quantizer.mean_sum.copy_(quantizer.codebook.data)
    assert not quantizer.codebook.requires_grad
    for _ in range(2):  # micro-batches of one step
        quantizer(torch.tensor([[[0.8, 0.6]]]))
    assert quantizer.codebook.tolist() == [[1, 0], [0, 1], [-1, 0]], "not before the end of the step"
    quantizer.move_means()
    # code 0: 0.5 (1, 0) + 0.5 (1.6, 1.2) = (1.3, 0.6), of length 1.431782; the others were not chosen and stay
    assert quantizer.codebook[0].tolist() == pytest.approx([0.907960, 0.419058], abs=1e-5)
    assert quantizer.codebook[1:].tolist() == [[0, 1], [-1, 0]]
    moved = quantizer.codebook.clone()
    quantizer.move_means()  # a step without vectors: what was collected before is gone
    assert torch.allclose(quantizer.codebook, moved)


def test_ema_ignores_nonfinite_vectors():
    torch.manual_seed(0)
    config = CodebookConfig(num_codes=8, code_dim=4, update="ema", ema_decay=0.5)
    spoilt, clean = Quantizer(config), Quantizer(config)
    clean.load_state_dict(spoilt.state_dict())
    vectors = F.normalize(torch.randn(1, 20, 4), dim=-1)
    clean(vectors)
    spoilt(torch.cat([vectors, torch.full((1, 1, 4), torch.nan)], dim=1))
    clean.move_means()
    spoilt.move_means()
    for name, value in clean.state_dict().items():
        assert torch.equal(spoilt.state_dict()[name], value), name
