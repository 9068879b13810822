"""The formulas of the cost model: functions of plain numbers, with units in the names and without defaults."""

import math

BACKWARD = 2
"""Multiply-accumulates of a backward pass relative to the forward pass: gradients of inputs and of weights."""


def train_s_per_clip(encoder_macs: float, other_macs: float, encoder_tflops: float, matmul_tflops: float) -> float:
    """Compute GPU seconds of forward and backward from forward MACs per clip of the video encoder and of the rest."""
    return 2 * (1 + BACKWARD) * (encoder_macs / encoder_tflops + other_macs / matmul_tflops) / 1e12


def forward_s_per_clip(macs: float, tflops: float) -> float:
    """Compute GPU seconds of a forward pass."""
    return 2 * macs / tflops / 1e12


def all_reduce_bytes_per_gpu(gradient_bytes: float, num_gpus: int) -> float:
    """Compute the bytes each GPU sends per step in a ring: every gradient once to reduce and once to distribute."""
    return 2 * (num_gpus - 1) / num_gpus * gradient_bytes


def all_reduce_s(
    gradient_bytes: float, num_gpus: int, gpus_per_node: int, link_gbyte_per_s: float, node_gbit_per_s: float
) -> float:
    """Compute seconds of an all_reduce; its slowest link limits the ring, which enters and leaves each node once."""
    sent = all_reduce_bytes_per_gpu(gradient_bytes, num_gpus)
    slowest = link_gbyte_per_s if num_gpus <= gpus_per_node else min(link_gbyte_per_s, node_gbit_per_s / 8)
    return sent / (slowest * 1e9)


def device_s(clips: float, s_per_clip: float, num_kernels: float, gap_s: float) -> float:
    """Compute a GPU's seconds for a step: its clips, and the gap after each kernel, which is the same for any batch."""
    return clips * s_per_clip + num_kernels * gap_s


def host_s(clips: float, python_s_per_clip: float, num_kernels: float, launch_s: float) -> float:
    """Compute a worker's Python seconds in a step; kernel launches and the loader's work alternate under the GIL."""
    return clips * python_s_per_clip + num_kernels * launch_s


def step_parts_s(
    compute_s: float, network_s: float, host_s: float, feed_s: float, storage_s: float
) -> dict[str, float]:
    """Return the seconds that each possible bottleneck of a step would take by itself.

    Gradients are sent during the backward pass, so the network matters only if it is slower. Kernels are launched,
    clips decoded and shards read while the GPU computes, since the host never waits for it.
    """
    forward_s = compute_s / (1 + BACKWARD)
    backward_s = compute_s - forward_s
    return {
        "compute": compute_s,
        "gradients": forward_s + max(backward_s, network_s),
        "host": host_s,
        "decoding": feed_s,
        "storage": storage_s,
    }


def steps_per_epoch(num_clips: int, batch_clips: int) -> int:
    """Count the steps of an epoch; if the batch does not divide it, steps are smaller or the last one is filled."""
    return math.ceil(num_clips / batch_clips)


def start_s(node_s: float, image_gbyte: float, image_gbyte_per_s: float, process_s: float, compile_s: float) -> float:
    """Compute seconds from the request for nodes to the first step: boot, image pull, worker start, compilation."""
    return node_s + image_gbyte / image_gbyte_per_s + process_s + compile_s


def gpu_hours(num_gpus: int, epoch_s: float, num_epochs: int, start_s: float) -> float:
    """Compute GPU hours of a training with its start-up, since a GPU is paid from the start of its node."""
    return num_gpus * (epoch_s * num_epochs + start_s) / 3600


def cores_wanted(clips_per_s: float, core_s_per_clip: float) -> float:
    """Compute the CPU cores needed for a rate."""
    return clips_per_s * core_s_per_clip


def group_reads_per_epoch(
    num_groups: float, group_clips: int, window: int, num_workers: int, batch_clips: int
) -> float:
    """Estimate the number of row-group reads in an epoch over all workers.

    The rows of a step are drawn from a window of row groups (or from several, if a step has more), sorted by group and
    cut into a slice per worker. A worker reads a group as a whole, once, for its rows there. Each cut goes through a
    group, which both sides then read, and varies randomly between the window's steps.
    """
    groups = max(window, batch_clips / group_clips)
    spread = _expected_range(groups * group_clips / batch_clips) * groups / math.sqrt(batch_clips)
    cuts = [k / num_workers for k in range(1, num_workers)]
    twice = sum(1 + spread * math.sqrt(cut * (1 - cut)) for cut in cuts)
    return num_groups * min(num_workers, 1 + twice / groups)


def _expected_range(count: float, cells: int = 2000) -> float:
    """Compute the expected range (largest minus smallest) of `count` draws from a standard normal distribution."""
    if count <= 1:
        return 0.0
    below = (0.5 * (1 + math.erf((16 * (cell + 0.5) / cells - 8) / math.sqrt(2))) for cell in range(cells))
    return sum(1 - p**count - (1 - p) ** count for p in below) * 16 / cells


def frame_bytes(num_clips: int, num_frames: int, frame_px: int, jpeg_bytes_per_pixel: float) -> float:
    """Compute the bytes of stored frames."""
    return num_clips * num_frames * frame_px**2 * jpeg_bytes_per_pixel


def code_bytes(num_clips: int, num_frames: int, regions_per_frame: int, num_views: int, bytes_per_code: float) -> float:
    """Compute the bytes of stored codes."""
    return num_clips * num_views * num_frames * regions_per_frame * bytes_per_code


def gbit_per_s(num_bytes: float, seconds: float) -> float:
    """Convert bytes and seconds to Gbit/s."""
    return 8 * num_bytes / seconds / 1e9


def break_even_views(num_epochs: int, num_runs: int, online_s_per_clip: float, coding_s_per_clip: float) -> float:
    """Compute the views per clip at which precomputing codes costs as much GPU time as encoding in every step."""
    return num_epochs * num_runs * online_s_per_clip / coding_s_per_clip
