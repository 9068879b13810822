"""Render an inspection as text for a terminal, and as the summary of the command."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evilm.inspect.shard_stats import MEASURES, histogram, summarise, top
from evilm.io.text_table import bytes_as_text, count_of, number_as_text, text_histogram, text_table

if TYPE_CHECKING:
    from evilm.inspect.inspection import Inspection

_BINS = 24
_MOST_KINDS = 6
_MOST_CODES = 10
_MOST_WORDS = 40
_MOST_PROBLEMS = 200
_WIDTH = 110
_KINDS = {
    "codec": "codec",
    "decoder": "decoder",
    "rotation": "rotation",
    "size": "picture",
    "flags": "flags",
    "source": "manifest",
}
_ALIKE = {"video": "cut from a video that another clip is cut from", "clip": "the same video and span as another clip"}
_ALIKE |= {"caption": "a caption that another clip has"}


def render(look: "Inspection") -> str:
    """Write the whole report."""
    parts = [_head(look), _splits(look), _measures(look), _kinds(look), _reasons(look), _repeated(look), _words(look)]
    parts += [_codes(look)] if look.codes else []
    parts += ["\n".join(["notes", *(f"  {note}" for note in look.verdict.notes)])] if look.verdict.notes else []
    parts += [_verdict(look)] if look.verify != "no" else []
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(look: "Inspection") -> dict[str, Any]:
    """Return the same as data."""
    frames, stats = look.frames, look.stats
    found: dict[str, Any] = {
        "frames": frames.uri,
        "fingerprint": frames.fingerprint,
        "clips": frames.splits,
        "num_clips": frames.num_clips(),
        "num_shards": len(frames.shards),
        "num_bytes": sum(shard.num_bytes for shard in frames.shards),
        "num_rows": frames.num_rows,
        "measures": {name: summarise(stats.measure(name)) for name in MEASURES},
        "kinds": {name: top(counts, 20) for name, counts in sorted(stats.kinds().items())},
        "reasons": look.reasons.sorted(),
        "repeated": look.num_repeated,
        "words": top(stats.words, _MOST_WORDS),
        "notes": look.verdict.notes,
        "verify": look.verify,
    }
    if look.codes:
        found["codes"] = {
            "uri": look.codes.uri,
            "tokenizer": look.codes.tokenizer,
            "num_codes": look.codes.num_codes,
            "num_views": look.codes.num_views,
            "code_usage": look.codes.code_usage,
        }
    if look.verify != "no":
        found |= {
            "num_problems": look.verdict.num_problems,
            "problems": [str(problem) for problem in look.verdict.problems[:50]],
        }
        found |= {"num_jpegs": look.verdict.num_jpegs, "num_bytes_read": look.verdict.num_bytes}
    return found


def _head(look: "Inspection") -> str:
    frames = look.frames
    size = bytes_as_text(sum(shard.num_bytes for shard in frames.shards))
    stored = f"{frames.num_frames} frames of {frames.frame_px} x {frames.frame_px} px per clip"
    return (
        f"{frames.uri}\n"
        f"{count_of(frames.num_clips(), 'clip')} of {count_of(frames.num_rows, 'row')} in "
        f"{count_of(len(frames.shards), 'shard')}, {size}; {stored}; fingerprint {frames.fingerprint}"
    )


def _splits(look: "Inspection") -> str:
    rows = []
    for split, clips in look.frames.splits.items():
        shards = look.frames.of_split(split)
        groups = [rows for shard in shards for rows in shard.row_groups]
        num_bytes = sum(shard.num_bytes for shard in shards)
        spans = [_span([shard.num_clips for shard in shards]), _span(groups)]
        rows.append([split, f"{clips:,}", str(len(shards)), *spans, bytes_as_text(num_bytes)])
        rows[-1].append(bytes_as_text(num_bytes / clips))
    return text_table(
        ["split", "clips", "shards", "clips/shard", "clips/row group", "bytes", "bytes/clip"], rows, right=range(1, 7)
    )


def _span(counts: Sequence[int]) -> str:
    return f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} .. {max(counts):,}"


def _measures(look: "Inspection") -> str:
    rows = []
    for name, title in MEASURES.items():
        values = look.stats.measure(name)
        if not len(values):
            continue
        write = bytes_as_text if name.endswith("bytes") else number_as_text
        found = summarise(values)
        few = name == "jpeg_bytes" and len(values) < look.frames.num_clips() * look.frames.num_frames
        counts, edges = histogram(values, _BINS)
        bars = text_histogram(counts.tolist()) + ("+" if found["max"] > edges[-1] else "")  # a longer tail
        rows.append([title + (f" ({len(values):,})" if few else ""), *map(write, found.values()), bars])
    return text_table(["", "least", "5 %", "median", "95 %", "greatest", ""], rows, right=range(1, 6))


def _kinds(look: "Inspection") -> str:
    total = max(1, look.frames.num_clips())
    lines, kinds = [], look.stats.kinds()
    for name, title in _KINDS.items():
        counts = kinds[name]
        if name == "source" and not counts:
            continue  # there was but one
        shown = [f"{kind} {_share(count, total)}" for kind, count in top(counts, _MOST_KINDS).items()]
        left = len(counts) - len(shown)
        lines.append(f"{title:<10}{', '.join(shown) or 'none'}" + (f", and {left} more" if left > 0 else ""))
    return "\n".join(lines)


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / total:.3g} %)"


def _reasons(look: "Inspection") -> str:
    if not look.reasons.counts:
        return "quarantine: no row was quarantined"
    rows = []
    for reason, count in look.reasons.sorted().items():
        name, detail = look.reasons.examples[reason]
        example = f"{name!r}" + (f": {detail}" if detail else "")
        rows.append([reason, f"{count:,}", f"{count / max(1, look.frames.num_rows):.2%}", example[:80]])
    return text_table(["quarantined because", "rows", "share", "e.g."], rows, right=(1, 2))


def _repeated(look: "Inspection") -> str:
    total = max(1, look.frames.num_clips())
    lines = ["duplicates"]
    for what, text in _ALIKE.items():
        count = look.num_repeated.get(what, 0)
        groups = "; ".join(" = ".join(map(repr, ids)) for ids in look.repeated.get(what, []))
        lines.append(f"  {text}: {_share(count, total) if count else 'none'}" + (f", e.g. {groups}" if groups else ""))
    return "\n".join(line if len(line) <= 2 * _WIDTH else line[: 2 * _WIDTH - 1] + "…" for line in lines)


def _words(look: "Inspection") -> str:
    if not look.stats.words:
        return ""
    words = ", ".join(f"{word} {count:,}" for word, count in top(look.stats.words, _MOST_WORDS).items())
    return textwrap.fill(f"{len(look.stats.words):,} words in captions: {words}", _WIDTH, subsequent_indent="  ")


def _codes(look: "Inspection") -> str:
    codes = look.codes
    assert codes
    views = "whole frames" if codes.num_views == 1 else f"{codes.num_views} views per clip"
    lines = [
        f"codes of tokenizer {codes.tokenizer}: {codes.num_codes:,} codes, "
        f"{codes.grid} x {codes.grid} per frame, {views}"
    ]
    rows = []
    for split, counts in codes.histograms.items():
        histogram = np.asarray(counts, np.float64)
        often = np.argsort(-histogram, kind="stable")[:_MOST_CODES]
        common = [f"{code} {histogram[code] / histogram.sum():.1%}" for code in often if histogram[code]]
        unused = f"{int((histogram == 0).sum()):,}"
        rows.append(
            [split, f"{codes.code_usage[split]:.1%}", unused, f"{_effective(histogram):,.0f}", ", ".join(common)]
        )
    table = text_table(["split", "used", "unused", "effective", "most frequent codes"], rows, right=(1, 2, 3))
    return "\n".join([*lines, table])


def _effective(histogram: np.ndarray) -> float:
    """Return how many codes, used equally, would be as hard to guess: the exponential of the entropy."""
    shares = histogram[histogram > 0] / max(1.0, histogram.sum())
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _verdict(look: "Inspection") -> str:
    seen = "sizes and footers"
    if look.verify == "full":
        seen = f"every byte ({bytes_as_text(look.verdict.num_bytes)}), row and JPEG ({look.verdict.num_jpegs:,})"
    if not look.verdict.num_problems:
        return f"verified: {seen}; all as the manifest says"
    lines = [f"  {problem}" for problem in look.verdict.problems[:_MOST_PROBLEMS]]
    left = look.verdict.num_problems - len(lines)
    lines += [f"  and {left} more"] if left > 0 else []
    return "\n".join([f"{count_of(look.verdict.num_problems, 'problem')} found, reading {seen}:", *lines])
