"""Memory of batches: used again when nothing refers to it, and never before."""

import numpy as np
import torch

from evilm.dataloader.pixel_buffers import PixelBuffers


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_free_memory_is_reused() -> None:
    buffers = PixelBuffers(2)
    first = buffers.take((2, 3, 4))
    first_address = address(first)
    assert first.shape == (2, 3, 4)
    assert first.dtype == np.uint8
    del first
    assert address(buffers.take((2, 3, 4))) == first_address
    smaller = buffers.take((3,))
    assert address(smaller) == first_address
    assert address(buffers.take((3,))) != first_address


def test_views_and_tensors_keep_their_memory_in_use() -> None:
    buffers = PixelBuffers(4)
    whole = buffers.take((8, 8))
    whole[:] = 7
    part, tensor = whole[1:3][0], torch.from_numpy(buffers.take((8, 8))[:2].reshape(-1))
    tensor.fill_(9)
    piece = tensor[3:5].view(1, 2)
    del whole, tensor
    for _ in range(6):
        buffers.take((8, 8))[:] = 1
    assert set(part.tolist()) == {7}
    assert piece.tolist() == [[9, 9]]
    del part, piece
    assert len({address(buffers.take((8, 8))) for _ in range(6)}) == 1


def test_extra_and_larger_arrays_get_new_memory() -> None:
    buffers = PixelBuffers(2)
    held = [buffers.take((5,)) for _ in range(4)]
    assert len({address(array) for array in held}) == 4
    held.clear()
    large = [buffers.take((50,)) for _ in range(2)]
    assert len({address(array) for array in large}) == 2
    assert all(array.shape == (50,) for array in large)
