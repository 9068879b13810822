"""Inputs of the cost model: constants with sources, assumed GPUs, and the job of a preset."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from evilm.config.data import FramesConfig
from evilm.config.stages import Pretrain
from evilm.errors import ConfigError


@dataclass(frozen=True)
class Constant:
    """A number with its unit and source."""

    value: float
    unit: str
    source: str


_OURS = "measured here on one core of an AMD EPYC (Milan)"
_TIMM = "timm's results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv"
_TIMM_INFER = "timm's results/benchmark-infer-amp-nchw-pt291-cu128-4090.csv and -4090-dynamo.csv"

CONSTANTS: dict[str, Constant] = {
    "shard_core_s_per_clip": Constant(
        1 / 4.6, "core s", f"{_OURS}: 4 sparse frames of a 15 s H.264 clip of 596 x 336, half with GOPs up to 250"
    ),
    "feed_core_s_per_clip": Constant(
        1 / 300, "core s", f"{_OURS}: 4 JPEGs of 256 px decoded, cropped and resized by simplejpeg and Pillow"
    ),
    "coding_core_s_per_clip": Constant(1 / 600, "core s", f"{_OURS}: only decoding the same 4 JPEGs"),
    "video_bytes_per_clip": Constant(2.15e6, "B", "1,000 WebVid clips, in a user's report (video2dataset issue 336)"),
    "jpeg_bytes_per_pixel": Constant(28_000 / 256**2, "B", "grainy frames of 256 px at quality 90, 4:2:0: 28 kB"),
    "stored_bytes_per_code": Constant(
        428 / 256, "B", "Parquet, BYTE_STREAM_SPLIT and zstd, codes of a trained codebook"
    ),
    "requests_per_file_read": Constant(
        1, "requests", "counted by benchmarks/feed.py --ranks: a GET of the columns of a row group"
    ),
    "kernels_per_step": Constant(
        3_400, "kernels", "counted by benchmarks/train_step.py: operations of forward and backward that compute"
    ),
    "launch_s_per_kernel": Constant(10e-6, "s", "assumption: time of eager PyTorch to launch a kernel"),
    "gap_s_per_kernel": Constant(1.5e-6, "s", "assumption: from the end of one kernel to the start of the next"),
    "loader_python_s_per_clip": Constant(
        0.1e-3, "s", f"{_OURS}: masks, words and other draws of a batch of 256; not the decoding, which holds no lock"
    ),
    "compile_speedup": Constant(
        10367.22 / 5621.06,
        "times",
        "of the video encoder: EdgeNeXt-small, 256 px, infers 5,621.06 images/s eager and 10,367.22 compiled on an RTX "
        f"4090 in {_TIMM_INFER} (1.95 times on a 5090); that training gains as much is an assumption",
    ),
    "compiled_kernel_share": Constant(1 / 3, "of the kernels", "assumption: those left when pointwise ones are fused"),
    "node_start_s": Constant(180, "s", "assumption: from the request for a GPU node until it runs containers"),
    "image_gbyte": Constant(10, "GB", "assumption: compressed size of the GPU image with torch's CUDA libraries"),
    "image_gbyte_per_s": Constant(0.1, "GB/s", "assumption: pulling and unpacking from a registry in the same region"),
    "process_start_s": Constant(60, "s", "assumption: Ray, imports, NCCL, order of the first epoch, first batch"),
    "compile_s": Constant(180, "s", "assumption: torch.compile of the model, forward and backward, on first use"),
    "encoder_flop_per_byte": Constant(
        1127.71 * 6 * 1.2529e9 / 936.2e9,
        "FLOP per byte of memory bandwidth",
        f"EdgeNeXt-small trains at 1,127.71 images/s of 256 px on an RTX 3090 (936.2 GB/s) in {_TIMM}; that it scales "
        "with memory bandwidth is an assumption",
    ),
    "matmul_share": Constant(
        0.4, "of the peak", f"assumption, on the low side: ViT-B/32 trains at 0.64 of 71 TFLOP/s in {_TIMM}"
    ),
    "exact_share": Constant(0.6, "of the peak", "assumption: large matrix products in float32 without TF32"),
    "usd_per_core_hour": Constant(0.08, "USD", "assumption: two vCPU-hours of a compute node on demand"),
    "usd_per_million_gets": Constant(0.4, "USD", "assumption: list price of S3 GET and HEAD requests in one region"),
    "usd_per_tb_month": Constant(23.0, "USD", "assumption: list price of S3 standard storage"),
}
"""Defaults; a benchmark's JSON (`--measured FILE`) or `--set name=value` replaces them."""


@dataclass(frozen=True)
class Device:
    """A kind of GPU and its machine. All values are assumptions: data sheets and list prices, rounded."""

    name: str
    memory_gbyte_per_s: float
    half_peak_tflops: float
    """Dense bf16; 0 without units for it, when everything runs in float32."""
    exact_peak_tflops: float
    """float32 without TF32."""
    usd_per_gpu_hour: float
    gpus_per_node: int
    cores_per_node: int
    """Physical cores, half of the vCPUs."""
    node_gbit_per_s: float
    """Network of a node, for gradients and shard reads."""
    link_gbyte_per_s: float
    """Rate of all_reduce per GPU within a node."""

    def encoder_tflops(self, constants: Mapping[str, float], is_compiled: bool = False) -> float:
        """Compute the effective rate of the video encoder, limited by memory; float32 moves twice the bytes."""
        rate = self.memory_gbyte_per_s * constants["encoder_flop_per_byte"] / 1e3
        rate = rate if self.half_peak_tflops else rate / 2
        return rate * constants["compile_speedup"] if is_compiled else rate

    def matmul_tflops(self, constants: Mapping[str, float]) -> float:
        """Compute the effective rate of matrix products in training."""
        if not self.half_peak_tflops:
            return self.exact_tflops(constants)
        return self.half_peak_tflops * constants["matmul_share"]

    def exact_tflops(self, constants: Mapping[str, float]) -> float:
        """Compute the effective rate of matrix products for labels, in float32 so that near ties are reproducible."""
        return self.exact_peak_tflops * constants["exact_share"]


DEVICES = {
    device.name: device
    for device in (
        Device("a100", 1555, 312, 19.5, 3.0, 8, 48, 400, 200),
        Device("h100", 3350, 989, 67, 7.0, 8, 96, 3200, 350),
        Device("a10g", 600, 70, 31, 1.4, 4, 24, 40, 10),
        Device("t4", 320, 0, 8.1, 1.0, 4, 24, 50, 6),
    )
}


@dataclass(frozen=True)
class Job:
    """Data, batch size and epochs of a training."""

    num_clips: int
    num_epochs: int
    batch_clips: int
    num_frames: int
    """Frames of a clip used in a step."""
    stored_frames: int
    frame_px: int
    regions_per_frame: int
    num_views: int
    group_clips: int
    """Clips in a row group, the smallest unit of reading."""
    shuffle_groups: int
    """Row groups mixed with each other."""
    loader_threads: int = 2
    """Background threads of a worker's data loader, the most cores it can use."""
    num_runs: int = 1
    """Trainings that use the same codes."""
    worker_clips: int = 0
    """Clips per step and GPU if the step grows with the number of GPUs; 0: batch_clips for any number."""

    def on(self, num_gpus: int) -> "Job":
        """Return the job with its batch size on `num_gpus` GPUs."""
        return replace(self, batch_clips=self.worker_clips * num_gpus) if self.worker_clips else self


def job_of(config: Pretrain, num_clips: int) -> Job:
    """Build the job of a preset's settings."""
    sampling: FramesConfig = config.shard_videos.sampling
    return Job(
        num_clips=num_clips,
        num_epochs=config.schedule.epochs,
        batch_clips=config.resolved().schedule.batch_clips,
        num_frames=config.arch.num_frames,
        stored_frames=sampling.stored,
        frame_px=sampling.frame_px,
        regions_per_frame=config.arch.grid**2,
        num_views=config.precompute_codes.views,
        group_clips=sampling.row_group_clips,
        shuffle_groups=config.schedule.shuffle_groups,
        loader_threads=config.cluster.num_loader_threads,
        worker_clips=config.schedule.worker_clips * config.schedule.gradient_accumulation_steps,
    )


def measured(constants: Mapping[str, Constant], files: Iterable[str]) -> dict[str, Constant]:
    """Replace constants by measured ones, the `constants` of each JSON file.

    Raises:
        ConfigError: there is no such file, it is not a benchmark's, or the model has no such constant.
    """
    found = dict(constants)
    for file in files:
        try:
            content = json.loads(Path(file).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"--measured {file}: {error}; name a JSON that a benchmark wrote with --json") from None
        values = content.get("constants") if isinstance(content, dict) else None
        if not isinstance(values, dict):
            raise ConfigError(f"--measured {file} has no `constants`; use the JSON of benchmarks/train_step.py --json")
        for name, value in values.items():
            where = f"measured: {Path(file).name}, {content.get('machine', {}).get('cpu', 'unknown machine')}"
            found[name] = Constant(float(value), _known(name, found).unit, where)
    return found


def override(
    job: Job, devices: Mapping[str, Device], constants: Mapping[str, Constant], settings: Iterable[str]
) -> tuple[Job, dict[str, Device], dict[str, Constant]]:
    """Replace inputs by `name=value`, `job.name=value` or `device.name=value`.

    Raises:
        ConfigError: a name is unknown, or a value is not a number.
    """
    known, kinds = dict(constants), dict(devices)
    for setting in settings:
        name, _, text = setting.partition("=")
        owner, _, field = name.rpartition(".")
        try:
            value = float(text)
        except ValueError:
            raise ConfigError(
                f"--set {setting!r} has no number; write name=value, e.g. a100.usd_per_gpu_hour=2.5"
            ) from None
        if owner == "job":
            job = _put(job, field, value, setting)
            job = replace(job, worker_clips=0) if field == "batch_clips" else job
        elif owner in kinds:
            kinds[owner] = _put(kinds[owner], field, value, setting)
        elif owner:
            raise ConfigError(f"--set {setting!r}: no device {owner!r}; use job, {', '.join(kinds)}, or no prefix")
        else:
            known[field] = Constant(value, _known(field, known).unit, "given by --set")
    return job, kinds, known


def _put(target: Any, field: str, value: float, setting: str) -> Any:
    names = [item.name for item in fields(target) if item.name != "name"]
    if field not in names:
        raise ConfigError(f"--set {setting!r}: no input {field!r}; use {', '.join(names)}")
    return replace(target, **{field: type(getattr(target, field))(value)})


def _known(name: str, constants: Mapping[str, Constant]) -> Constant:
    if name not in constants:
        raise ConfigError(f"no constant {name!r}; use {', '.join(constants)}")
    return constants[name]
