"""The picture of a benchmark: how the right videos and captions rank."""

import io

import numpy as np
from jaxtyping import Float


def draw_ranks(ranks: dict[str, Float[np.ndarray, "query"]], num_items: int) -> bytes:
    """Histogram of ranks beside the flat one of guessing; a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {"t2v": "text to video", "v2t": "video to text"}
    picture, axes = pyplot.subplots(1, len(ranks), figsize=(4.5 * len(ranks), 3.4), squeeze=False, layout="constrained")
    for axis, (name, places) in zip(axes.flat, ranks.items(), strict=True):
        axis.hist(places, bins=np.linspace(0.5, num_items + 0.5, min(num_items, 40) + 1), color="tab:blue")
        axis.axhline(len(places) / min(num_items, 40), color="black", linestyle="--", linewidth=1, label="chance")
        axis.axvline(float(np.median(places)), color="tab:red", linewidth=1, label=f"median {np.median(places):g}")
        axis.set_title(titles.get(name, name))
        axis.set_xlabel(f"rank of the right one among {num_items}")
        axis.set_ylabel("queries")
        axis.legend(fontsize="small")
    buffer = io.BytesIO()
    picture.savefig(buffer, dpi=90, format="png")
    pyplot.close(picture)
    return buffer.getvalue()
