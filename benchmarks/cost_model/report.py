"""Report the results of the cost model as tables and as data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cost_model.inputs import Constant, Device, Job
from cost_model.plan import Labels, Once, Training, labels, once, training
from evilm.io.text_table import bytes_as_text, number_as_text, text_table
from evilm.objectives.step_macs import StepWork


def report(
    job: Job,
    work: StepWork,
    devices: Sequence[Device],
    numbers_of_gpus: Sequence[int],
    constants: Mapping[str, Constant],
) -> dict[str, Any]:
    """Collect all results and inputs as JSON-serialisable data."""
    values = {name: constant.value for name, constant in constants.items()}
    return {
        "job": asdict(job),
        "work": asdict(work) | {"student_macs": work.student_macs},
        "devices": [asdict(device) for device in devices],
        "constants": {name: asdict(constant) for name, constant in constants.items()},
        "once": asdict(once(job, values)),
        "trainings": [
            asdict(training(job, work, device, number, values, is_compiled))
            for is_compiled in (False, True)
            for device in devices
            for number in numbers_of_gpus
        ],
        "labels": [asdict(labels(job, work, device, values)) for device in devices],
    }


def as_text(figures: Mapping[str, Any]) -> str:
    """Format the report as tables."""
    job, work = figures["job"], StepWork(**{k: v for k, v in figures["work"].items() if k != "student_macs"})
    batch = (
        f"{job['worker_clips']} clips per GPU and step"
        if job["worker_clips"]
        else f"{job['batch_clips']} clips per step"
    )
    head = (
        f"{job['num_clips']:,} clips x {job['num_epochs']} epochs, {batch}; "
        f"forward {work.student_macs / 1e9:.2f} GMACs per clip in the model (video encoder "
        f"{work.encoder_macs / 1e9:.2f}), {work.tokenizer_macs / 1e9:.2f} in the tokenizer; "
        f"gradients {bytes_as_text(work.gradient_bytes)}"
    )
    parts = [
        head,
        "once\n" + _once(Once(**figures["once"]), job),
        *(_trainings([Training(**row) for row in figures["trainings"]], mode) for mode in ("eager", "compiled")),
        "labels: codes precomputed, or computed in every step\n"
        + _labels([Labels(**row) for row in figures["labels"]], job),
        "GPUs as assumed: data sheets and list prices, rounded\n" + _devices(figures["devices"]),
        "constants\n" + _constants(figures["constants"]),
    ]
    return "\n\n".join(parts)


def _once(found: Once, job: Mapping[str, Any]) -> str:
    rows = [
        ("videos", bytes_as_text(found.video_bytes)),
        ("frame shards", bytes_as_text(found.frame_bytes)),
        (f"codes, {job['num_views']} view(s)", bytes_as_text(found.code_bytes_per_view * job["num_views"])),
        ("frames and codes stored, a month", f"${number_as_text(found.storage_usd_per_month)}"),
        ("sharding", f"{found.shard_core_hours:,.0f} core hours, ${number_as_text(found.shard_usd)}"),
    ]
    return text_table(("what", "how much"), rows)


def _trainings(rows: Sequence[Training], mode: str) -> str:
    rows = [row for row in rows if row.is_compiled == (mode == "compiled")]
    header = ("GPUs", "clips/GPU", "step ms", "bound by", "clips/s/GPU", "epoch min", "start min", "all h", "GPU h",
              "USD", "cores/GPU (has)", "all_reduce", "read/epoch", "Gbit/s/node", "requests/epoch")  # fmt: skip
    cells = [
        (
            f"{row.num_gpus} {row.device}",
            f"{row.clips_per_gpu_step:g}",
            f"{1e3 * row.step_s:.1f}",
            row.bound_by,
            f"{row.clips_per_s_per_gpu:.0f}",
            f"{row.epoch_s / 60:.1f}",
            f"{row.start_s / 60:.1f}",
            f"{row.gpu_hours / row.num_gpus:.1f}",
            f"{row.gpu_hours:.0f}",
            f"{row.usd:,.0f}",
            f"{row.decoding_cores_per_gpu:.1f} ({row.cores_per_gpu:g})",
            f"{bytes_as_text(row.all_reduce_bytes_per_gpu_step)}, {1e3 * row.all_reduce_s:.1f} ms",
            bytes_as_text(row.read_bytes_per_epoch),
            f"{row.read_gbit_per_s_per_node:.2f}",
            f"{row.requests_per_epoch / 1e6:.2f} M",
        )
        for row in rows
    ]
    return f"training with cached codes, {mode}\n" + text_table(header, cells, right=[1, 2, *range(4, 15)])


def _labels(rows: Sequence[Labels], job: Mapping[str, Any]) -> str:
    header = ("GPU", "coding clips/s", "cores", f"{job['num_views']} view(s) GPU h", "USD", "online GPU h",
              "online step", "break-even views", "with equal labels")  # fmt: skip
    cells = [
        (
            row.device,
            f"{1 / row.coding_s_per_clip:,.0f}",
            f"{row.coding_cores_per_gpu:.1f}",
            f"{row.coding_gpu_hours:.1f}",
            f"{row.coding_usd:.1f}",
            f"{row.online_gpu_hours:.1f}",
            f"{row.online_step_ratio:.2f} x",
            f"{row.break_even_views:.1f}",
            f"{row.break_even_views_exact:.1f}",
        )
        for row in rows
    ]
    return text_table(header, cells, right=range(1, 9))


def _devices(devices: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in devices[0] if name != "name"]
    rows = [(name, *(number_as_text(device[name]) for device in devices)) for name in names]
    return text_table(("", *(device["name"] for device in devices)), rows, right=range(1, len(devices) + 1))


def _constants(constants: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (name, number_as_text(constant["value"]), constant["unit"], constant["source"])
        for name, constant in constants.items()
    ]
    return text_table(("name", "value", "unit", "source"), rows, right=[1])
