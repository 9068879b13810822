"""CUDA's autocast where everything is computed on the CPU."""

import threading
from typing import Any

import torch

_REAL_AUTOCAST = torch.autocast


class _Autocast(threading.local):
    on = False


AUTOCAST = _Autocast()
_FUNCTIONAL = torch.nn.functional
EXACT = {
    *(getattr(owner, name) for owner in (torch, torch.Tensor, _FUNCTIONAL) for name in (
        *("exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "tan", "pow", "__pow__", "__rpow__"),
        *("softplus", "layer_norm", "native_layer_norm", "group_norm", "cosine_similarity", "nll_loss", "kl_div"),
        *("l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "binary_cross_entropy_with_logits", "dist", "cdist"),
        *("renorm", "logsumexp", "prod", "softmax", "log_softmax", "cumprod", "cumsum", "norm", "sum", "normalize"),
        "cross_entropy",
    ) if hasattr(owner, name)),
}  # fmt: skip
"""What CUDA's autocast computes in float32 and the CPU's does not (or not always)."""


def exact(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class CudaAutocast(_REAL_AUTOCAST):
    """`torch.autocast` with that of CUDA spelled out: the CPU's casts matrix products, `EXACT` does the others."""

    def __init__(self, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> None:
        self._cuda = device_type == "cuda"
        if self._cuda:
            device_type, dtype = "cpu", dtype or torch.float16
        super().__init__(device_type, dtype, enabled, cache_enabled)
        self._before: list[bool] = []

    def __enter__(self) -> Any:
        self._before.append(AUTOCAST.on)
        if self._cuda:
            AUTOCAST.on = self._enabled
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        AUTOCAST.on = self._before.pop()
        return super().__exit__(*error)
