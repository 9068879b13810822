"""Combine the formulas: one-time costs of a job, a training on given GPUs, and the cost of labels."""

from collections.abc import Mapping
from dataclasses import dataclass

from cost_model import formulas
from cost_model.inputs import Device, Job
from evilm.objectives.step_macs import StepWork

Values = Mapping[str, float]
"""Constants by name."""


@dataclass(frozen=True)
class Once:
    """Outputs created once before the training, and their cost."""

    video_bytes: float
    frame_bytes: float
    code_bytes_per_view: float
    shard_core_hours: float
    shard_usd: float
    storage_usd_per_month: float
    """Frames and codes of all views, without videos."""


@dataclass(frozen=True)
class Training:
    """A training on a number of GPUs of a kind."""

    device: str
    num_gpus: int
    is_compiled: bool
    clips_per_gpu_step: float
    step_s: float
    limits_s: dict[str, float]
    """Seconds that each possible bottleneck would take by itself."""
    bound_by: str
    clips_per_s_per_gpu: float
    epoch_s: float
    start_s: float
    """From the request for nodes to the first step."""
    gpu_hours: float
    usd: float
    decoding_cores_per_gpu: float
    """Cores needed for the training."""
    cores_per_gpu: float
    """Cores of the assumed machine."""
    all_reduce_bytes_per_gpu_step: float
    all_reduce_s: float
    read_bytes_per_epoch: float
    requests_per_epoch: float
    requests_usd: float
    """Cost over all epochs."""
    read_gbit_per_s_per_node: float


@dataclass(frozen=True)
class Labels:
    """Precomputed codes compared with running the tokenizer in every step, on a kind of GPU."""

    device: str
    coding_s_per_clip: float
    """One view, in float32 like the encoding command."""
    online_s_per_clip: float
    """The same within a step, under autocast."""
    online_step_ratio: float
    """Compute of a step with the tokenizer relative to one without."""
    coding_gpu_hours: float
    """All views."""
    coding_usd: float
    coding_cores_per_gpu: float
    online_gpu_hours: float
    """All epochs and runs."""
    break_even_views: float
    """Views at which both cost the same GPU time, if the online tokenizer uses autocast; labels then differ at near
    ties."""
    break_even_views_exact: float
    """The same with the online tokenizer in float32, so that labels are equal."""


def once(job: Job, values: Values) -> Once:
    """Compute the cost of sharding and storage."""
    frames = formulas.frame_bytes(job.num_clips, job.stored_frames, job.frame_px, values["jpeg_bytes_per_pixel"])
    codes = formulas.code_bytes(
        job.num_clips, job.stored_frames, job.regions_per_frame, 1, values["stored_bytes_per_code"]
    )
    hours = job.num_clips * values["shard_core_s_per_clip"] / 3600
    return Once(
        video_bytes=job.num_clips * values["video_bytes_per_clip"],
        frame_bytes=frames,
        code_bytes_per_view=codes,
        shard_core_hours=hours,
        shard_usd=hours * values["usd_per_core_hour"],
        storage_usd_per_month=(frames + codes * job.num_views) / 1e12 * values["usd_per_tb_month"],
    )


def compute_s_per_clip(work: StepWork, device: Device, values: Values, is_compiled: bool = False) -> float:
    """Compute a clip's GPU seconds in a step without bottlenecks."""
    rates = device.encoder_tflops(values, is_compiled), device.matmul_tflops(values)
    return formulas.train_s_per_clip(work.encoder_macs, work.other_macs, *rates)


def training(
    job: Job, work: StepWork, device: Device, num_gpus: int, values: Values, is_compiled: bool = False
) -> Training:
    """Compute a training with cached codes on `num_gpus` GPUs, one worker each, with eager or compiled kernels."""
    job = job.on(num_gpus)
    clips = job.batch_clips / num_gpus
    steps = formulas.steps_per_epoch(job.num_clips, job.batch_clips)
    nodes = -(-num_gpus // device.gpus_per_node)
    network_s = formulas.all_reduce_s(
        work.gradient_bytes, num_gpus, device.gpus_per_node, device.link_gbyte_per_s, device.node_gbit_per_s
    )
    cores = device.cores_per_node / device.gpus_per_node
    read, requests = reading(job, num_gpus, values)
    kernels = values["kernels_per_step"] * (values["compiled_kernel_share"] if is_compiled else 1)
    s_per_clip = compute_s_per_clip(work, device, values, is_compiled)
    limits = formulas.step_parts_s(
        compute_s=formulas.device_s(clips, s_per_clip, kernels, values["gap_s_per_kernel"]),
        network_s=network_s,
        host_s=formulas.host_s(clips, values["loader_python_s_per_clip"], kernels, values["launch_s_per_kernel"]),
        feed_s=clips * values["feed_core_s_per_clip"] / min(cores, job.loader_threads),
        storage_s=8 * read / steps / nodes / (device.node_gbit_per_s * 1e9),
    )
    step_s = max(limits.values())
    rate = clips / step_s
    start_s = formulas.start_s(
        values["node_start_s"], values["image_gbyte"], values["image_gbyte_per_s"], values["process_start_s"],
        values["compile_s"] if is_compiled else 0.0,
    )  # fmt: skip
    hours = formulas.gpu_hours(num_gpus, steps * step_s, job.num_epochs, start_s)
    return Training(
        device=device.name,
        num_gpus=num_gpus,
        is_compiled=is_compiled,
        clips_per_gpu_step=clips,
        step_s=step_s,
        limits_s=limits,
        bound_by=max(limits, key=lambda name: limits[name]),  # the first one at ties: compute before gradients
        clips_per_s_per_gpu=rate,
        epoch_s=steps * step_s,
        start_s=start_s,
        gpu_hours=hours,
        usd=hours * device.usd_per_gpu_hour,
        decoding_cores_per_gpu=formulas.cores_wanted(rate, values["feed_core_s_per_clip"]),
        cores_per_gpu=cores,
        all_reduce_bytes_per_gpu_step=formulas.all_reduce_bytes_per_gpu(work.gradient_bytes, num_gpus),
        all_reduce_s=network_s,
        read_bytes_per_epoch=read,
        requests_per_epoch=requests,
        requests_usd=requests * job.num_epochs / 1e6 * values["usd_per_million_gets"],
        read_gbit_per_s_per_node=formulas.gbit_per_s(read / nodes, steps * step_s),
    )


def reading(job: Job, num_workers: int, values: Values) -> tuple[float, float]:
    """Compute bytes and requests per epoch over all workers, for row groups of frames and codes.

    Captions and footers are in a file that each node copies once.
    """
    groups = job.num_clips / job.group_clips
    whole = formulas.group_reads_per_epoch(groups, job.group_clips, job.shuffle_groups, num_workers, job.batch_clips)
    stored = once(job, values)
    per_group = (stored.frame_bytes + stored.code_bytes_per_view * job.num_views) / groups
    return whole * per_group, 2 * whole * values["requests_per_file_read"]


def labels(job: Job, work: StepWork, device: Device, values: Values) -> Labels:
    """Compare precomputed codes with codes computed in every step."""
    coding = formulas.forward_s_per_clip(work.tokenizer_macs, device.exact_tflops(values))
    online = formulas.forward_s_per_clip(work.tokenizer_macs, device.matmul_tflops(values))
    step = compute_s_per_clip(work, device, values)
    hours = job.num_clips * job.num_views * coding / 3600
    return Labels(
        device=device.name,
        coding_s_per_clip=coding,
        online_s_per_clip=online,
        online_step_ratio=(step + online) / step,
        coding_gpu_hours=hours,
        coding_usd=hours * device.usd_per_gpu_hour,
        coding_cores_per_gpu=formulas.cores_wanted(1 / coding, values["coding_core_s_per_clip"]),
        online_gpu_hours=job.num_clips * job.num_epochs * job.num_runs * online / 3600,
        break_even_views=formulas.break_even_views(job.num_epochs, job.num_runs, online, coding),
        break_even_views_exact=formulas.break_even_views(job.num_epochs, job.num_runs, coding, coding),
    )
