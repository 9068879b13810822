"""Measure the machine's peak for matrix products: the fastest product of square matrices over some sizes."""

import time

import torch

from evilm.train.optimizer import has_bf16

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (1024, 2048, 4096, 8192)}
_SHORTEST_S = 0.05


def sweep(device: torch.device, quick: bool = False) -> dict[str, dict[int, float]]:
    """Measure GFLOP/s by precision and size; bf16 only on hardware with units for it, as it takes minutes elsewhere."""
    sizes = _SIZES[device.type][:-1] if quick else _SIZES[device.type]
    precisions = ["fp32", "bf16"] if has_bf16(device) else ["fp32"]
    return {name: {size: _rate(size, _DTYPES[name], device) for size in sizes} for name in precisions}


def _rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.matmul(a, b)
    best, spent = float("inf"), 0.0
    while spent < 4 * _SHORTEST_S:
        times, began = 0, time.perf_counter()
        while time.perf_counter() - began < _SHORTEST_S:
            torch.matmul(a, b)
            times += 1
            if device.type == "cuda":
                torch.cuda.synchronize()
        took = time.perf_counter() - began
        best, spent = min(best, took / times), spent + took
    return 2 * size**3 / best / 1e9
