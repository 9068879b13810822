"""evilm: E-ViLM, a compact video-language model, as a data-and-training workflow on Ray."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evilm.model.inference import EViLM
    from evilm.model.tokenizers.semantic_vq import VideoTokenizer

# Before pyarrow is imported: its own allocator keeps what threads have freed, so that long streams of small tables
# (planning, feeding) swell by a fifth and more; see benchmarks/memory.py.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

__version__ = "0.1.0"
__all__ = ["EViLM", "VideoTokenizer", "__version__"]

_PUBLIC = {"EViLM": "evilm.model.inference", "VideoTokenizer": "evilm.model.tokenizers.semantic_vq"}


def __getattr__(name: str) -> Any:
    """The public classes, imported when they are first asked for: `import evilm` itself loads no torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'evilm' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
