"""evilm: E-ViLM, a compact video-language model, as a data-and-training workflow on Ray."""

__version__ = "0.1.0"
