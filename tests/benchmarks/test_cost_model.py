"""The cost model: its formulas by hand, its counts against torch's, its reads against the order of training."""

import json
import math

import pytest
import torch
from cost import main
from cost_model import formulas
from cost_model.inputs import CONSTANTS, DEVICES, Device, Job, job_of, measured, override
from cost_model.plan import labels, once, reading, training
from torch.utils.flop_counter import FlopCounterMode

from evilm.config.models import CodebookConfig, VideoTokenizerConfig
from evilm.config.presets import defaults
from evilm.config.training import ObjectivesConfig
from evilm.dataloader.collate import PretrainBatch
from evilm.dataloader.sampler import TrainSampler
from evilm.errors import ConfigError
from evilm.model import cost
from evilm.model.evilm_model import EViLMModel
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.objectives.pretraining_objective import PretrainObjective
from evilm.objectives.step_macs import StepWork, step_macs, tokenizer_macs
from helpers.paths import ROOT
from helpers.small_models import frames, student_config, tokenizer_config, words

ROUND = {
    "shard_core_s_per_clip": 0.36,
    "feed_core_s_per_clip": 0.01,
    "coding_core_s_per_clip": 0.005,
    "video_bytes_per_clip": 2e6,
    "jpeg_bytes_per_pixel": 0.5,
    "stored_bytes_per_code": 1.5,
    "requests_per_file_read": 3,
    "kernels_per_step": 1000,
    "launch_s_per_kernel": 1e-5,
    "gap_s_per_kernel": 1e-6,
    "loader_python_s_per_clip": 0.5e-3,
    "compile_speedup": 2.0,
    "compiled_kernel_share": 0.5,
    "node_start_s": 100.0,
    "image_gbyte": 10.0,
    "image_gbyte_per_s": 0.1,
    "process_start_s": 60.0,
    "compile_s": 40.0,
    "encoder_flop_per_byte": 10,
    "matmul_share": 0.5,
    "exact_share": 0.5,
    "usd_per_core_hour": 0.1,
    "usd_per_million_gets": 0.5,
    "usd_per_tb_month": 20.0,
}
"""Numbers to work with by hand."""
JOB = Job(
    num_clips=1_000_000, num_epochs=10, batch_clips=64, num_frames=4, stored_frames=4, frame_px=200,
    regions_per_frame=64, num_views=2, group_clips=50, shuffle_groups=10,
)  # fmt: skip
WORK = StepWork(encoder_macs=5e9, other_macs=5e9, tokenizer_macs=20e9, gradient_bytes=80_000_000)
GPU = Device("gpu", 1000, 100, 10, 2.0, 8, 64, 80, 50)


def test_time_of_a_step_by_hand() -> None:
    # 6 FLOPs per forward MAC: 30e9 at 10 TFLOP/s (1,000 GB/s x 10 FLOP/B) and 30e9 at 50 (half of 100)
    found = training(JOB, WORK, GPU, 8, ROUND)
    # and a gap of 1 us after each of 1,000 kernels
    assert found.limits_s["compute"] == pytest.approx(8 * (3e-3 + 0.6e-3) + 1e-3)
    # 1,000 launches of 10 us, and 0.5 ms of the loader's Python for each clip
    assert found.limits_s["host"] == pytest.approx(0.01 + 8 * 0.5e-3)
    # 8 clips x 10 ms on two cores: the data loader has two threads, though the machine has eight cores per GPU
    assert found.limits_s["decoding"] == pytest.approx(0.04)
    assert found.cores_per_gpu == 8
    # a ring of 8 sends 2 x 7/8 of 80 MB = 140 MB at 50 GB/s, well within the backward pass
    assert found.all_reduce_bytes_per_gpu_step == pytest.approx(140e6)
    assert found.all_reduce_s == pytest.approx(2.8e-3)
    assert found.limits_s["gradients"] == found.limits_s["compute"]
    assert (found.bound_by, found.step_s) == ("decoding", pytest.approx(0.04))
    assert found.epoch_s == pytest.approx(15_625 * 0.04)
    assert found.start_s == pytest.approx(100 + 10 / 0.1 + 60)
    assert found.gpu_hours == pytest.approx(8 * (10 * 625 + 260) / 3600)
    assert found.usd == pytest.approx(2 * found.gpu_hours)
    assert found.clips_per_s_per_gpu == pytest.approx(200)
    assert found.decoding_cores_per_gpu == pytest.approx(2)


def test_compiled_kernels_are_fewer_and_the_encoder_is_faster() -> None:
    found = training(JOB, WORK, GPU, 8, ROUND, is_compiled=True)
    assert found.limits_s["compute"] == pytest.approx(8 * (1.5e-3 + 0.6e-3) + 0.5e-3)
    assert found.limits_s["host"] == pytest.approx(0.005 + 8 * 0.5e-3)
    assert found.start_s == pytest.approx(300)  # 40 s of compiling more


def test_gradients_between_nodes_can_limit_the_step() -> None:
    found = training(JOB, WORK, GPU, 64, ROUND)
    # 2 x 63/64 of 80 MB at 80 Gbit/s = 10 GB/s; forward of one clip and its gaps a third of 4.6 ms
    assert found.all_reduce_s == pytest.approx(15.75e-3)
    assert found.limits_s["gradients"] == pytest.approx(4.6e-3 / 3 + 15.75e-3)
    assert found.bound_by == "gradients"
    assert formulas.all_reduce_bytes_per_gpu(80e6, 1) == 0


def test_storage_by_hand() -> None:
    found = once(JOB, ROUND)
    assert found.video_bytes == 2e12
    assert found.frame_bytes == 1e6 * 4 * 200 * 200 * 0.5
    assert found.code_bytes_per_view == 1e6 * 4 * 64 * 1.5
    assert found.shard_core_hours == pytest.approx(100)
    assert found.shard_usd == pytest.approx(10)
    assert found.storage_usd_per_month == pytest.approx((80e9 + 2 * 384e6) / 1e12 * 20)


def test_reading_by_hand() -> None:
    # one worker reads each of 20,000 groups once: frames with codes of two views, in two files
    read, requests = reading(JOB, 1, ROUND)
    assert read == pytest.approx(80e9 + 2 * 384e6)
    assert requests == pytest.approx(2 * 3 * 20_000)
    # a step is all of a window of 10 groups: cut in two, one group of the ten is read by both workers
    assert formulas.group_reads_per_epoch(20_000, 50, 10, 2, 500) == pytest.approx(22_000)
    # a step of two windows' groups, cut in five: four groups of twenty
    assert formulas.group_reads_per_epoch(20_000, 50, 10, 5, 1000) == pytest.approx(24_000)
    # two steps a window: the cuts lie 2 / sqrt(pi) standard deviations apart, each of 10 groups x half / sqrt(250 rows)
    apart = 2 / math.sqrt(math.pi) * 10 * 0.5 / math.sqrt(250)
    assert formulas.group_reads_per_epoch(20_000, 50, 10, 2, 250) == pytest.approx(20_000 * (1 + (1 + apart) / 10))
    # no group is read more often than there are workers
    assert formulas.group_reads_per_epoch(100, 50, 1, 2, 2) == pytest.approx(200)


@pytest.mark.parametrize("world", [1, 4, 16])
def test_predicted_reads_match_the_sampler(world: int) -> None:
    groups, group_clips, batch = 256, 16, 128
    orders = [TrainSampler([[group_clips] * groups], batch, 0, 16, "pad", rank, world) for rank in range(world)]
    reads = 0
    for order in orders:
        held = [order.step(step) for step in range(order.num_steps)]
        reads += len({(int(s), int(g)) for step in held for s, g, _ in step.rows[step.mine]})
    assert reads == pytest.approx(formulas.group_reads_per_epoch(groups, group_clips, 16, world, batch), rel=0.06)


def test_coding_cost_by_hand() -> None:
    found = labels(JOB, WORK, GPU, ROUND)
    assert found.coding_s_per_clip == pytest.approx(40e9 / 5e12)  # half of 10 TFLOP/s in float32
    assert found.online_s_per_clip == pytest.approx(40e9 / 50e12)
    assert found.online_step_ratio == pytest.approx((3.6 + 0.8) / 3.6)
    assert found.coding_gpu_hours == pytest.approx(1e6 * 2 * 0.008 / 3600)
    assert found.online_gpu_hours == pytest.approx(1e6 * 10 * 0.0008 / 3600)
    assert found.coding_cores_per_gpu == pytest.approx(125 * 0.005)
    assert found.break_even_views == pytest.approx(1)  # ten epochs, each a tenth of the price
    assert found.break_even_views_exact == 10


def test_gpu_without_bf16_runs_in_float32() -> None:
    values = {name: constant.value for name, constant in CONSTANTS.items()}
    t4 = DEVICES["t4"]
    assert t4.matmul_tflops(values) == t4.exact_tflops(values)
    assert t4.encoder_tflops(values) == pytest.approx(320 * values["encoder_flop_per_byte"] / 1e3 / 2)
    # 1,127.71 images/s of 1.2529 GMACs, and six FLOPs for each in training
    assert DEVICES["a100"].encoder_tflops(values) == pytest.approx(8.478 * 1555 / 936.2, rel=1e-3)


def _batch(config, num_words: int, masked_words: int) -> PretrainBatch:
    clips, masked = 2, 2  # of 2 x 2 regions per frame, 40 % rounded half up
    ids, padding = words(clips, num_words)
    targets = torch.full_like(ids, -1)
    targets[:, :masked_words] = ids[:, :masked_words]
    mask = torch.zeros(clips, config.num_frames, 2, 2, dtype=torch.bool)
    mask.view(clips, config.num_frames, -1)[..., :masked] = True
    codes = torch.zeros(clips, config.num_frames * 4, dtype=torch.int64)
    pixels = frames(clips, config.num_frames)
    names = [str(clip) for clip in range(clips)]
    return PretrainBatch(pixels, mask, codes, ids, padding, targets, ids, padding, torch.arange(clips), names)


def test_step_macs_match_torchs_count() -> None:
    config, objectives = student_config(), ObjectivesConfig(mlm_ratio=0.5)
    student = EViLMModel(config)
    counted = sum(step_macs(student, objectives, num_words=10))  # 8 words of which half are masked
    objective = PretrainObjective(student, objectives)
    student.use_explicit_attention()
    with FlopCounterMode(display=False) as counter:
        objective(_batch(config, num_words=10, masked_words=4))
    assert counter.get_total_flops() / 2 / 2 == pytest.approx(counted, rel=1e-6)


def test_step_macs_without_matching() -> None:
    student, objectives = EViLMModel(student_config()), ObjectivesConfig(vtm_weight=0, mlm_weight=0)
    parts = cost.macs(student, 10)
    regions = 3 * 2 * (48 * 48 + 48 * 20)
    once_each = parts["visual projection"] + parts["text encoder + projection"] + parts["decoder"]
    assert step_macs(student, objectives, 10) == (parts["video encoder"], once_each + regions)


def test_tokenizer_macs_match_torchs_count() -> None:
    config = tokenizer_config()
    tokenizer = VideoTokenizer(config)
    with FlopCounterMode(display=False) as counter:
        tokenizer.quantizer.nearest(tokenizer.vectors(frames(1)).flatten(0, 1))
    attention = 3 * 2 * 4 * 4 * config.encoder_dim  # torch's counter does not see the fused kernel on CPU
    seen = counter.get_total_flops() // 2
    counted = tokenizer_macs(config, 3)
    assert counted in (seen, seen + attention * config.encoder_layers)


def test_tokenizer_macs_of_clip_vit_b32() -> None:
    """46 GFLOPs for four frames of 256 px, as counted on the transformers model, without look-up."""
    config = VideoTokenizerConfig(encoder_weights="x", codebook=CodebookConfig(num_codes=2, code_dim=2))
    assert 2 * tokenizer_macs(config, 4) == pytest.approx(46.0e9, rel=0.002)


def test_paper_preset_gives_the_job() -> None:
    job = job_of(defaults("pretrain", "paper"), 2_500_000)  # type: ignore[arg-type]
    expected = (20, 256, 4, 4, 256, 64, 1, 64, 16)
    assert (job.num_epochs, job.batch_clips, job.num_frames, job.stored_frames, job.frame_px, job.regions_per_frame,
            job.num_views, job.group_clips, job.shuffle_groups) == expected  # fmt: skip


def test_measured_constants_replace_assumed_ones(tmp_path) -> None:
    file = tmp_path / "step.json"
    file.write_text(json.dumps({"constants": {"feed_core_s_per_clip": 0.5}, "machine": {"cpu": "fast"}}))
    found = measured(CONSTANTS, [str(file)])["feed_core_s_per_clip"]
    assert (found.value, found.unit, found.source) == (0.5, "core s", "measured: step.json, fast")
    file.write_text(json.dumps({"constants": {"speed": 1}}))
    with pytest.raises(ConfigError, match="no constant 'speed'; use shard_core_s_per_clip"):
        measured(CONSTANTS, [str(file)])
    file.write_text("{}")
    with pytest.raises(ConfigError, match="has no `constants`"):
        measured(CONSTANTS, [str(file)])
    with pytest.raises(ConfigError, match="name a JSON"):
        measured(CONSTANTS, [str(tmp_path / "none.json")])


def test_set_overrides_job_devices_and_constants() -> None:
    job, devices, constants = override(JOB, DEVICES, CONSTANTS, ["job.batch_clips=1024", "a100.usd_per_gpu_hour=2.5"])
    assert (job.batch_clips, devices["a100"].usd_per_gpu_hour) == (1024, 2.5)
    assert constants == CONSTANTS
    assert override(JOB, DEVICES, CONSTANTS, ["matmul_share=0.5"])[2]["matmul_share"].source == "given by --set"
    for setting, message in {
        "matmul_share": "has no number",
        "v100.usd_per_gpu_hour=1": "no device 'v100'; use job, a100",
        "a100.price=1": "no input 'price'; use memory_gbyte_per_s",
        "price=1": "no constant 'price'",
    }.items():
        with pytest.raises(ConfigError, match=message):
            override(JOB, DEVICES, CONSTANTS, [setting])


def test_cost_model_command_prints_json_and_text(capsys, tmp_path) -> None:
    preset = tmp_path / "small.yaml"
    student = "{input_px: 64, video_encoder: edgenext_xx_small}"
    preset.write_text(f"train_tokenizer: {{arch: {{input_px: 64}}}}\npretrain: {{arch: {student}}}\n")
    flags = ["--preset", str(preset), "--clips", "1000", "--gpus", "8"]
    main([*flags, "--json", "--devices", "a10g"])
    figures = json.loads(capsys.readouterr().out)
    assert [row["num_gpus"] for row in figures["trainings"]] == [8, 8]
    assert [row["is_compiled"] for row in figures["trainings"]] == [False, True]
    assert figures["constants"]["matmul_share"]["source"].startswith("assumption")
    assert figures["job"]["num_clips"] == 1000
    main([*flags, "--set", "job.batch_clips=64"])
    assert "64 clips per step" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*flags, "--set", "nothing=1"])
    assert "no constant 'nothing'" in capsys.readouterr().err


def test_docs_show_the_printed_table(capsys) -> None:
    """All but the constants, which it leaves to the command."""
    main([])
    printed = capsys.readouterr().out.partition("\n\nconstants\n")[0]
    document = ROOT / "docs" / "cost.md"
    assert printed in document.read_text(), "put the output of `python benchmarks/cost.py` into docs/cost.md"
