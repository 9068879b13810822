"""Count the model's parameters by row of Table 8, and its multiply-accumulates (MACs) by component.

python -m evilm.model.cost [--config paper] [--words 30] [--json]
"""

import argparse
import json
from collections.abc import Callable
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evilm.config import presets
from evilm.config.base import validate
from evilm.config.models import EViLMConfig
from evilm.errors import ConfigError
from evilm.model.evilm_model import EViLMModel

TABLE_8 = {
    "textual embedding": "1.2M",
    "textual encoder": "2.4M",
    "textual MLP": "49.5K",
    "token type embedding": "1.2K",
    "visual encoder": "5.3M",
    "visual MLP": "117K",
    "multi-modal decoder": "7.1M",
    "pooler": "147K",
    "CLS head (VQA)": "770",
    "total": "16.3M",
}
"""Parameter counts as printed in the paper."""
PAPER_GFLOPS = 12.2
NOTES = (
    "pooler: 384 x 384 + 384 = 147,840 rounds to 148K; the paper's 147K is it cut off (or a pooler without bias).",
    "CLS head (VQA): 384 x 2 + 2 is the two-way matching head; no answer classifier fits 770.",
    "token type embedding: three rows of 384, the [CLS] vector, t_L and t_V of Eq. 2.",
    "visual encoder: 608 of it are the LayerNorm of EdgeNeXt's head, applied per region.",
    "MACs: torch's counter (FLOPs / 2), matrix products and convolutions only, attention spelled out.",
    f"The paper claims {PAPER_GFLOPS} GFLOPs for 4 x 256 x 256 and a caption. That is its figure, not a count of ours.",
)
_UNITS = {"M": 10**6, "K": 10**3}


def parameter_rows(student: EViLMModel) -> dict[str, int]:
    """Count the parameters in each row of Table 8, and in total."""
    bert = student.text_encoder.bert
    rows = {
        "textual embedding": _count(bert.embeddings),
        "textual encoder": _count(bert.encoder),
        "textual MLP": _count(student.text_projection),
        "token type embedding": _count(student.tokens),
        "visual encoder": _count(student.video_encoder),
        "visual MLP": _count(student.video_projection),
        "multi-modal decoder": _count(student.decoder),
        "pooler": _count(student.match_head.pooler),
        "CLS head (VQA)": _count(student.match_head.match),
    }
    return rows | {"total": sum(rows.values())}


def extra_rows(student: EViLMModel) -> dict[str, int]:
    """Count the parameters that have no row in Table 8."""
    tables = {"temporal embedding": student.temporal_embedding, "spatial embedding": student.spatial_embedding}
    rows = {name: 0 if table is None else table.numel() for name, table in tables.items()}
    return rows | {"MLM head": _count(student.mlm_head), "MVM head": _count(student.mvm_head)}


def printed_value(text: str) -> int:
    """Convert a figure of Table 8 to a number: 49.5K -> 49500."""
    unit = _UNITS.get(text[-1], 1)
    return int(Decimal(text.rstrip("MK")) * unit)


def at_precision(count: int, like: str, rounding: str = ROUND_HALF_UP) -> str:
    """Format `count` with the unit and digits of the printed figure `like`: (49536, "49.5K") -> "49.5K"."""
    suffix = like[-1] if like[-1] in _UNITS else ""
    step = Decimal(1).scaleb(Decimal(like.rstrip("MK")).as_tuple().exponent)  # type: ignore[arg-type]
    return f"{(Decimal(count) / _UNITS.get(suffix, 1)).quantize(step, rounding=rounding)}{suffix}"


def agreement(count: int, printed: str) -> str:
    """Compare an exact count with a printed figure: it agrees "rounded", "cut off", or "no"."""
    if at_precision(count, printed) == printed:
        return "rounded"
    return "cut off" if at_precision(count, printed, ROUND_DOWN) == printed else "no"


def macs(student: EViLMModel, num_words: int = 30) -> dict[str, int]:
    """Count the MACs of a forward pass by component, and in total: one clip, one caption of `num_words` word pieces."""
    config = student.config
    frames = torch.zeros(1, config.num_frames, config.input_px, config.input_px, 3, dtype=torch.uint8)
    words, padding = torch.zeros(1, num_words, dtype=torch.int64), torch.zeros(1, num_words, dtype=torch.bool)
    was_training = student.training
    student.eval()
    student.use_explicit_attention()
    try:
        with torch.no_grad():
            pixels = student.pixels(frames)
            video, text = student.encode_video(frames), student.encode_text(words, padding)
            cls = student.decode(video, text, padding).cls
            features = student.video_encoder(pixels)
            parts: dict[str, Callable[[], Any]] = {
                "video encoder": lambda: student.video_encoder(pixels),
                "visual projection": lambda: student.video_projection(features),
                "text encoder + projection": lambda: student.encode_text(words, padding),
                "decoder": lambda: student.decode(video, text, padding),
                "pooler + matching head": lambda: student.match_logits(cls),
            }
            counts = {name: _macs(part) for name, part in parts.items()}
    finally:
        student.use_explicit_attention(False)
        student.train(was_training)
    return counts | {"total": sum(counts.values())}


def report(config: EViLMConfig, num_words: int = 30) -> dict[str, Any]:
    """Collect all figures as JSON-serialisable data."""
    student = EViLMModel(config, pretrained_video=False)
    ours = parameter_rows(student)
    rows = [
        {
            "row": name,
            "ours": ours[name],
            "ours_as_printed": at_precision(ours[name], printed),
            "paper": printed,
            "difference": ours[name] - printed_value(printed),
            "agrees": agreement(ours[name], printed),
        }
        for name, printed in TABLE_8.items()
    ]
    return {
        "table_8": rows,
        "outside_table_8": extra_rows(student),
        "input": {"num_frames": config.num_frames, "input_px": config.input_px, "num_words": num_words},
        "macs": macs(student, num_words),
        "paper_claim_gflops": PAPER_GFLOPS,
        "notes": list(NOTES),
    }


def as_text(figures: dict[str, Any]) -> str:
    """Format the report as tables."""
    lines = [f"{'parameters, Table 8':<28}{'ours':>12}{'':>8}{'paper':>8}{'difference':>12}  agrees"]
    lines += [
        f"{r['row']:<28}{r['ours']:>12,}{r['ours_as_printed']:>8}{r['paper']:>8}{r['difference']:>+12,}  {r['agrees']}"
        for r in figures["table_8"]
    ]
    lines += ["", "outside Table 8"]
    lines += [f"{name:<28}{count:>12,}" for name, count in figures["outside_table_8"].items()]
    size = figures["input"]
    what = "{num_frames} x {input_px} x {input_px}, {num_words} words".format(**size)
    total = figures["macs"]["total"]
    lines += ["", f"{'MACs, ' + what:<36}{'GMACs':>8}{'GFLOPs':>8}{'share':>8}"]
    for name, count in figures["macs"].items():
        lines.append(f"{name:<36}{count / 1e9:>8.3f}{2 * count / 1e9:>8.3f}{count / total:>8.1%}")
    lines += [f"{'(the paper claims)':<36}{'':>8}{figures['paper_claim_gflops']:>8}", ""]
    return "\n".join(lines + figures["notes"])


def main(arguments: list[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m evilm.model.cost", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="paper", help="preset or YAML file of the model to count")
    parser.add_argument("--words", type=int, default=30, help="word pieces in the caption")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        section = presets.load(options.config).get("pretrain", {}).get("arch", {})
        config = validate(EViLMConfig, section, where=options.config)
    except ConfigError as error:
        parser.error(str(error))
    if not 1 <= options.words <= config.text_positions:
        parser.error(f"--words {options.words}: use 1 to {config.text_positions}, the text encoder's positions")
    figures = report(config, options.words)
    print(json.dumps(figures) if options.json else as_text(figures))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _macs(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    main()
