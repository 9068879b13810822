"""Everything that runs on a card, on a pretended one: no operation mixes devices, and the numbers are the CPU's."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evilm.config.finetune_command import Finetune
from evilm.eval.scoring import ScoreJob, Scorer
from evilm.model.evilm_model import EViLMModel
from evilm.model.video_encoder import build_video_encoder
from evilm.tracking.panel import predict
from evilm.train.checkpoint_files import load_checkpoint, save_checkpoint
from evilm.train.optimizer import autocast
from evilm.train.validation import evaluate
from helpers import gpu_models as small
from helpers.contrast_ranks import make_batch, make_objective
from helpers.gpu_ranks import start_ranks, train_ranks
from helpers.item_models import CASES, ENCODER, case
from helpers.pretend.card import PretendCard

CUDA = torch.device("cuda", 0)

SHALLOW = {"arch": {"video_encoder": ENCODER}}
STUDENTS: dict[str, dict[str, Any]] = {
    "all objectives": {},
    "channels last, averaged weights, two micro-batches, jitter": {
        "settings": {
            "cluster__channels_last": True,
            "optim__ema_decay": 0.9,
            "schedule__gradient_accumulation_steps": 2,
        },
        "batch": {"jitter": 0.3},
    },
    "MLM, not clipped": {"settings": {"optim__clip_norm": 0.0}, "objectives": {"vtm_weight": 0, "mvm_weight": 0}}
    | SHALLOW,
    "VTM, hard negatives": {"batch": {"negatives": "hard"}, "objectives": {"mlm_weight": 0, "mvm_weight": 0}} | SHALLOW,
    "MVM": {"objectives": {"mlm_weight": 0, "vtm_weight": 0}} | SHALLOW,
}
CODEBOOKS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "moving means": {"update": "ema"},
    "k-means, moving means, revival": {
        "update": "ema", "init": "kmeans", "init_batches": 2, "revive_below": 0.5, "revive_every": 1
    },
}  # fmt: skip


@pytest.fixture
def card() -> Any:
    with PretendCard() as card:
        yield card


def _micro_batches(
    make: Any, gradient_accumulation_steps: int, steps: int = 2, clips: int = 6, **how: Any
) -> list[list[Any]]:
    """The micro-batches of some steps."""
    size = clips // gradient_accumulation_steps
    slices = [slice(k * size, (k + 1) * size) for k in range(gradient_accumulation_steps)]
    return [[make(clips, step, mine, **how) for mine in slices] for step in range(steps)]


def _same_on_both(objective: Any, config: Any, batches: list[list[Any]], rel: float = 1e-5) -> None:
    """Train on the CPU and on the card, and compare losses and weights, also averaged ones; both by the fused AdamW."""
    config = config.override({"cluster.fused": True})
    twin = copy.deepcopy(objective)
    wanted, on_cpu = small.train(objective, config, "cpu", batches)
    with PretendCard():
        found, on_card = small.train(twin, config, CUDA, batches)
        state = {name: value.cpu() for name, value in _weights(twin, on_card).items()}
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=rel, abs=1e-6)
    for name, value in _weights(objective, on_cpu).items():
        torch.testing.assert_close(
            state[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def _weights(objective: Any, state: Any) -> dict[str, torch.Tensor]:
    """Weights by name, and the averaged ones where there are such."""
    averaged = state.finished.state_dict() if state.finished is not objective else {}
    return objective.state_dict() | {f"averaged {name}": value for name, value in averaged.items()}


def test_card_rejects_what_mixes_devices(card: PretendCard) -> None:
    """As `loss_stats` did in its first version: counts of the host beside losses of the card."""
    loss = torch.ones((), device=CUDA)
    with pytest.raises(RuntimeError, match="same device"):
        torch.stack([loss, torch.tensor(3.0)])


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: bool((x > 0).all()),
        lambda _: torch.cuda.synchronize(),
    ],
    ids=["item", "nonzero", "boolean index", "copy to the host", "bool", "synchronize"],
)
def test_card_notes_what_waits_for_it(card: PretendCard, wait: Any) -> None:
    values = torch.arange(4, device=CUDA)
    before = len(card.reads)
    wait(values)
    assert len(card.reads) == before + 1


@pytest.mark.parametrize("option", STUDENTS)
def test_student_trains_like_on_the_cpu(option: str) -> None:
    how = STUDENTS[option]
    config = small.settings(**how.get("settings", {}))
    batches = _micro_batches(small.pretrain_batch, config.schedule.gradient_accumulation_steps, **how.get("batch", {}))
    _same_on_both(small.pretrain_objective(how.get("objectives"), **how.get("arch", {})), config, batches)


def test_student_trains_in_bf16_with_dropout(card: PretendCard) -> None:
    config = small.settings(cluster__precision="bf16", cluster__fused=True)
    objective = small.pretrain_objective(dropout=0.1)
    metrics, _ = small.train(objective, config, CUDA, _micro_batches(small.pretrain_batch, 1))
    assert all(np.isfinite(value) for step in metrics for value in step.values())
    exact, _ = small.train(
        small.pretrain_objective(dropout=0.1), small.settings(), "cpu", _micro_batches(small.pretrain_batch, 1)
    )
    assert metrics[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)


def test_tokenizer_trains_in_bf16(card: PretendCard) -> None:
    config = small.tokenizer_settings(cluster__precision="bf16", cluster__fused=True)
    batches = _micro_batches(small.tokenizer_batch, 1)
    metrics, _ = small.train(small.tokenizer_objective(), config, CUDA, batches)
    exact, _ = small.train(small.tokenizer_objective(), small.tokenizer_settings(), "cpu", batches)
    for one, other in zip(metrics, exact, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05)


@pytest.mark.parametrize(("codebook", "gradient_accumulation_steps"), list(zip(CODEBOOKS, (1, 1, 2), strict=True)))
def test_tokenizer_trains_like_on_the_cpu(codebook: str, gradient_accumulation_steps: int) -> None:
    objective = small.tokenizer_objective(CODEBOOKS[codebook])
    config = small.tokenizer_settings(
        schedule__gradient_accumulation_steps=gradient_accumulation_steps, cluster__fused=True
    )
    twin = copy.deepcopy(objective)
    first = [batch for step in _micro_batches(small.tokenizer_batch, 1) for batch in step]
    objective.prepare(lambda count: first[:count], 0)
    with PretendCard():
        twin.to(CUDA)
        twin.prepare(lambda count: [batch.to(CUDA) for batch in first[:count]], 0)
        codes = twin.tokenizer.quantizer.codebook.detach().cpu()
        twin.cpu()
    torch.testing.assert_close(codes, objective.tokenizer.quantizer.codebook.detach())
    twin.load_state_dict(objective.state_dict())
    _same_on_both(objective, config, _micro_batches(small.tokenizer_batch, gradient_accumulation_steps))


@pytest.mark.parametrize("name", CASES)
def test_heads_of_downstream_tasks_train_and_score_like_on_the_cpu(name: str) -> None:
    objective, batch = case(name)
    config = Finetune.model_validate({"schedule": {"batch_clips": 4}, "cluster": {"precision": "fp32"}})
    twin = copy.deepcopy(objective)
    _same_on_both(objective, config, [[batch], [batch]])
    wanted = _evaluated(copy.deepcopy(twin), [batch], torch.device("cpu"))
    with PretendCard():
        assert _evaluated(twin, [batch], CUDA) == pytest.approx(wanted, rel=1e-5)


def test_retrieval_trains_and_scores_like_on_the_cpu() -> None:
    settings = {"schedule": {"batch_clips": 10, "gradient_accumulation_steps": 2}, "cluster": {"precision": "fp32"}}
    objective, step = make_objective(), [make_batch(slice(0, 5)), make_batch(slice(5, 10))]
    twin = copy.deepcopy(objective)
    _same_on_both(objective, Finetune.model_validate(settings), [step, step])
    wanted = _evaluated(copy.deepcopy(twin), [make_batch()], torch.device("cpu"))
    with PretendCard():
        assert _evaluated(twin, [make_batch()], CUDA) == pytest.approx(wanted, rel=1e-4)


def _evaluated(objective: Any, batches: list[Any], device: torch.device) -> dict[str, float]:
    loader: Any = small.Held(batches)
    return evaluate(objective.to(device), loader, device, 1, autocast("fp32", device))


@pytest.mark.parametrize("kind", ["student", "tokenizer"])
def test_two_ranks_train_like_one_on_the_cpu(kind: str, tmp_path: Path) -> None:
    """DDP, sums and broadcasts; three uneven micro-batches, three steps, evaluation. No rank waits in the last step."""
    wanted = train_ranks(0, 1, "cpu", kind, str(tmp_path / "alone"))
    found = start_ranks(2, "pretended", kind, tmp_path)
    for one, two in zip(found, wanted, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    for rank in range(2):
        assert json.loads((tmp_path / f"ranks-reads-{rank}.json").read_text()) == []


@pytest.mark.parametrize("kind", ["student", "tokenizer"])
def test_evaluation_scores_match_the_cpu(kind: str) -> None:
    if kind == "student":
        objective, batches = small.pretrain_objective(), [small.pretrain_batch(6, -1), small.pretrain_batch(5, -1)]
    else:
        objective, batches = small.tokenizer_objective(), [small.tokenizer_batch(6, -1), small.tokenizer_batch(5, -1)]
    twin = copy.deepcopy(objective)
    wanted = _evaluated(objective, batches, torch.device("cpu"))
    with PretendCard():
        found = _evaluated(twin, batches, CUDA)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert ("match_auc" in found) == (kind == "student")


def test_panel_predictions_match_the_cpu(card: PretendCard) -> None:
    student, batch = small.pretrain_objective().student, small.pretrain_batch()
    wanted = predict(copy.deepcopy(student), batch)
    student.to(CUDA)
    card.clear()
    found = predict(student, batch)
    assert found.codes.tolist() == wanted.codes.tolist()
    assert found.words.tolist() == wanted.words.tolist()
    assert found.match == pytest.approx(wanted.match, rel=1e-5)
    print(len(card.reads), *card.reads, sep="\n")
    assert len(card.reads) < 24, "one copy for each kind of number, not for each clip"


def test_code_words_match_the_cpu(card: PretendCard) -> None:
    from evilm.model.tokenizers.code_words import CodeWords

    tokenizer = small.tokenizer_objective().tokenizer.eval()
    wanted = CodeWords(copy.deepcopy(tokenizer), small.VOCAB).words([0, 3, 7])
    assert CodeWords(tokenizer.to(CUDA), small.VOCAB).words([0, 3, 7]) == wanted


def test_codes_match_the_cpu(card: PretendCard) -> None:
    tokenizer = small.tokenizer_objective().tokenizer
    frames = torch.from_numpy(small.rows(21).frames)  # batches of 16 frames, the last one filled up
    wanted = copy.deepcopy(tokenizer).encode(frames)
    tokenizer.to(CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        found = tokenizer.encode(frames.to(CUDA))
    card.clear()
    assert torch.equal(found.cpu(), wanted)
    assert tokenizer.fingerprint()


def test_scoring_matches_the_cpu(card: PretendCard, tmp_path: Path) -> None:
    job = ScoreJob(**{**vars(small.score_job(tmp_path)), "use_gpu": True})
    scorer = Scorer(job)
    assert scorer._student.device == CUDA
    found = [scorer({"block": np.array([number])}) for number in range(len(job.blocks))]
    on_cpu = Scorer(ScoreJob(**{**vars(job), "use_gpu": False}))  # though a card is there
    assert on_cpu._student.device.type == "cpu"
    wanted = [on_cpu({"block": np.array([number])}) for number in range(len(job.blocks))]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one["match"], other["match"], rtol=1e-4, atol=1e-5)
        assert one["predicted"].tolist() == other["predicted"].tolist()
        assert one["code_ids"].tolist() == other["code_ids"].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_model_matches_the_cpu(card: PretendCard, tmp_path: Path, dtype: torch.dtype) -> None:
    pytest.importorskip("av")
    from evilm.config.data import FramesConfig
    from evilm.model.inference import EViLM
    from evilm.model.preprocess import Preprocessor

    sampling = FramesConfig(num_frames=small.FRAMES, frame_px=small.PX, resize="squash")
    student = EViLMModel(small.student_config(video_encoder=ENCODER))
    on_cpu = EViLM(copy.deepcopy(student), small.VOCAB, Preprocessor(sampling, small.FRAMES))
    model = EViLM(student.cast(dtype).to(CUDA), small.VOCAB, Preprocessor(sampling, small.FRAMES))
    frames = small.rows(3).frames
    videos, texts = list(frames), small.captions(3)
    mask = np.zeros((small.FRAMES, 2, 2), dtype=bool)
    mask[:, 0] = True
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    np.testing.assert_allclose(model.match(videos, texts), on_cpu.match(videos, texts), **close)
    np.testing.assert_allclose(model.match_pairs(videos, texts), on_cpu.match_pairs(videos, texts), **close)
    embedded = model.embed_texts(texts)
    np.testing.assert_allclose(model.match(model.embed_videos(videos), embedded), on_cpu.match(videos, texts), **close)
    filled = model.fill_words(videos[0], "a red [MASK] moves")
    assert [guess.value for guess in filled[0]]
    assert len(model.fill_words(None, "a [MASK] [MASK]")) == 2
    assert len(model.fill_regions(videos[0], texts[0], mask)) == int(mask.sum())
    assert model.embed_videos([]).shape == (0, small.REGIONS, 48)
    assert len(model.match([], texts)) == 0
    assert model.match(videos, []).shape == (3, 0)
    model.save_pretrained(str(tmp_path / "model"))
    again = EViLM.from_pretrained(str(tmp_path / "model"), device="cuda:0")
    np.testing.assert_allclose(again.match(videos, texts), model.match(videos, texts), **close)


def test_nonfinite_step_is_skipped(card: PretendCard) -> None:
    objective = small.pretrain_objective()
    name = next(n for n, p in objective.named_parameters() if "match" in n and p.ndim > 1)
    objective.get_parameter(name).data.flatten()[0] = torch.nan
    config = small.settings(schedule__nonfinite="skip", cluster__fused=True)
    before = {n: p.clone() for n, p in objective.named_parameters()}
    small.train(objective, config, CUDA, _micro_batches(small.pretrain_batch, 1, steps=3))
    for n, p in objective.named_parameters():
        assert torch.equal(p.detach().cpu().nan_to_num(), before[n].detach().nan_to_num()), n


def test_checkpoint_round_trip_through_the_host(card: PretendCard, tmp_path: Path) -> None:
    config = small.settings(cluster__channels_last=True)
    batches = _micro_batches(small.pretrain_batch, 1, steps=3)
    objective = small.pretrain_objective(**SHALLOW["arch"])
    _, state = small.train(objective, config, CUDA, batches[:2])
    optimizer = state._optimizer
    save_checkpoint(tmp_path / "checkpoint", objective, optimizer, {"step": 2})
    other = small.pretrain_objective(**SHALLOW["arch"])
    state, train_step = small.make_state(other, config, CUDA)
    restored = state._optimizer
    assert load_checkpoint(tmp_path / "checkpoint", other, restored)["step"] == 2
    for (name, one), two in zip(objective.named_parameters(), other.parameters(), strict=True):
        assert two.device == CUDA
        assert torch.equal(one.detach().cpu(), two.detach().cpu()), name
        moments = optimizer.state[one], restored.state[two]
        assert all(torch.equal(moments[0][key].cpu(), moments[1][key].cpu()) for key in moments[0]), name
    small.run(train_step, batches[2:], CUDA, start=2)


@pytest.mark.parametrize("name", ["edgenext_xx_small", "fastvit_t8", "vit_pe_core_tiny_patch16_384"])
def test_video_encoder_runs_on_the_card_without_waits(name: str, card: PretendCard) -> None:
    encoder, pixels = build_video_encoder(name, "", 64).eval(), torch.rand(2, 3, 64, 64)
    expected = encoder(pixels)
    moved, here = copy.deepcopy(encoder).to(CUDA), pixels.to(CUDA)
    moved(here)  # position embeddings may be kept from the first pass
    card.clear()
    found = moved(here)
    assert card.reads == []
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
