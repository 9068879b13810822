"""The table of a benchmark's figures, each beside chance."""

from collections.abc import Mapping
from typing import Any

from evilm.io.text_table import text_table
from evilm.model.metrics import Figure

_NAMES = {
    "t2v_r1": "text to video R@1",
    "t2v_r5": "text to video R@5",
    "t2v_r10": "text to video R@10",
    "t2v_r10_heldout": "  held-out combinations",
    "t2v_r10_seen": "  seen combinations",
    "t2v_median_rank": "text to video median rank",
    "v2t_r1": "video to text R@1",
    "v2t_r5": "video to text R@5",
    "v2t_r10": "video to text R@10",
    "v2t_median_rank": "video to text median rank",
    "choice_accuracy": "multiple choice",
    "choice_accuracy_heldout": "  held-out combinations",
    "choice_accuracy_seen": "  seen combinations",
    "accuracy": "accuracy over all items",
    "accuracy_labelled": "  over items whose answer has a label",
    "accuracy_top5": "  among the first five",
    "mvm_accuracy": "masked codes, against train's most frequent",
    "mvm_accuracy_oracle": "masked codes, against the best constant",
}


_WAYS = {"reranked_": ", re-ranked", "pairwise_": ", all pairs by the matching head"}
"""What the beginning of a figure's name says about how it was computed."""


def _title(name: str) -> str:
    """Return the name of a figure as people read it."""
    way = next((way for way in _WAYS if name.startswith(way)), "")
    kind = name.removeprefix("accuracy/")
    return f"  {kind}" if kind != name else _NAMES.get(name.removeprefix(way), name) + _WAYS.get(way, "")


def figures_table(figures: Mapping[str, Figure | Mapping[str, Any]]) -> str:
    """Format the measured values beside chance, in the order of the benchmark's list."""
    rows = []
    for name in [*(n for n in _NAMES if n in figures), *(n for n in figures if n not in _NAMES)]:
        figure = figures[name]
        data = figure.as_dict() if isinstance(figure, Figure) else figure
        shown = "{:.1f}" if name.endswith("rank") else "{:.1%}"
        value, chance, error = (shown.format(data[key]) for key in ("value", "chance", "standard_error"))
        rows.append([_title(name), value, chance, error, f"{data['sigmas_above_chance']:+.1f}", str(data["count"])])
    return text_table(["", "value", "chance", "std. error", "sigmas", "n"], rows, right=(1, 2, 3, 4, 5))
