"""evilm: E-ViLM, a compact video-language model, as a data-and-training workflow on Ray."""

import importlib
import os
from typing import TYPE_CHECKING, Any

from evilm import transformers_hook

if TYPE_CHECKING:
    from evilm.model.inference import EViLM
    from evilm.model.tokenizers.semantic_vq import VideoTokenizer

# Set before pyarrow is imported: its default allocator keeps memory that threads have freed, so long streams of small
# tables (planning, data loading) need a fifth more memory or worse; see benchmarks/memory.py.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

__version__ = "0.1.0"
__all__ = ["EViLM", "VideoTokenizer", "__version__"]

transformers_hook.register()

_PUBLIC = {"EViLM": "evilm.model.inference", "VideoTokenizer": "evilm.model.tokenizers.semantic_vq"}


def __getattr__(name: str) -> Any:
    """Import public classes on first use, so that `import evilm` does not load torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'evilm' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
