"""The data loader: rows of real shards in the planned order, and batches that workers and restarts do not change."""

import errno
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
import torch

from evilm.dataloader.collate import PretrainBatch, PretrainCollate, TokenizerCollate
from evilm.dataloader.loader import DataLoader, Rows
from evilm.dataloader.sampler import TrainSampler
from evilm.errors import ShardError
from evilm.shards import ShardPair, codes_schema, write_codes, write_frames
from evilm.text.vocab import Vocab
from evilm.text.vocab_builder import train_wordpiece
from evilm.train.micro_batches import split_micro_batches
from evilm.train.trainer import Trainer
from helpers.flaky_store import FlakyStore
from helpers.stored_frames import frame_row

_GROUPS = [[4, 4, 2], [4, 3]]
_CAPTIONS = [
    "a red star moves left",
    "a blue ring spins",
    "the green cross waits",
    "a red star moves left",
    "two birds",
]
_FRAMES, _PX, _GRID = 2, 64, 2


def _row(number: int) -> dict[str, object]:
    pixels = np.full((_PX, _PX, 3), 9 * number % 250, dtype=np.uint8)
    jpeg = simplejpeg.encode_jpeg(pixels, quality=95)
    caption = _CAPTIONS[number % 5]
    return frame_row(clip_id=f"clip{number:03d}", split="train", captions=[caption], frames=[jpeg] * _FRAMES)


@pytest.fixture
def pairs(tmp_path: Path) -> list[ShardPair]:
    made, number = [], 0
    for shard, sizes in enumerate(_GROUPS):
        groups, tables = [], []
        for size in sizes:
            rows = [_row(number + k) for k in range(size)]
            codes = [[(number + k) % 7] * _FRAMES * _GRID**2 for k in range(size)]
            number += size
            groups.append(rows)
            content = [
                {"clip_id": r["clip_id"], "row": 0, "views": [], "code_ids": c}
                for r, c in zip(rows, codes, strict=True)
            ]
            tables.append(pa.Table.from_pylist(content, schema=codes_schema(_FRAMES * _GRID**2)))
        frames, codes_file = tmp_path / f"f{shard}.parquet", tmp_path / f"c{shard}.parquet"
        frames.write_bytes(write_frames(groups, {}))
        codes_file.write_bytes(write_codes(tables, _FRAMES * _GRID**2, {}))
        made.append(ShardPair(str(frames), str(codes_file), sum(sizes), sizes))
    return made


@pytest.fixture
def vocab() -> Vocab:
    return Vocab(train_wordpiece(_CAPTIONS, 80, 1))


def _collate(vocab: Vocab) -> PretrainCollate:
    return PretrainCollate(vocab, 5, 16, _GRID, 0.15, 0.4, "block")


def _same(a: PretrainBatch, b: PretrainBatch) -> bool:
    values = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in values)


def test_rows_carry_their_own_frames_codes_and_captions(pairs: list[ShardPair]) -> None:
    seen: list[Rows] = list(DataLoader(pairs, TrainSampler(_GROUPS, 4, 0, 2, "drop"), lambda rows: rows).batches(0, 4))
    assert len(seen) == 4
    for rows in seen:
        for place, clip_id in enumerate(rows.clip_ids):
            number = int(clip_id.removeprefix("clip"))
            assert rows.captions[place] == _CAPTIONS[number % 5]
            assert rows.code_ids is not None
            assert set(rows.code_ids[place]) == {number % 7}
            assert abs(int(rows.frames[place].mean()) - 9 * number % 250) <= 2
            assert rows.frames.dtype == np.uint8


def test_loader_gives_the_same_batches_from_any_start_step(pairs: list[ShardPair], vocab: Vocab) -> None:
    order = TrainSampler(_GROUPS, 4, 0, 2)
    whole = list(DataLoader(pairs, order, _collate(vocab)).batches(0, 12))
    late = list(DataLoader(pairs, order, _collate(vocab), prefetch=1, threads=1).batches(7, 12))
    assert all(_same(a, b) for a, b in zip(whole[7:], late, strict=True))


def test_two_workers_get_halves_of_the_same_batch(pairs: list[ShardPair], vocab: Vocab) -> None:
    (alone,) = DataLoader(pairs, TrainSampler(_GROUPS, 8, 0, 2), _collate(vocab)).batches(1, 2)
    halves = [
        next(iter(DataLoader(pairs, TrainSampler(_GROUPS, 8, 0, 2, rank=rank, world=2), _collate(vocab)).batches(1, 2)))
        for rank in range(2)
    ]
    assert alone.clip_ids == halves[0].clip_ids + halves[1].clip_ids
    for name in ("frames", "mask", "code_ids"):
        assert torch.equal(getattr(alone, name), torch.cat([getattr(half, name) for half in halves]))
    words = lambda batch: [ids[~gone].tolist() for ids, gone in zip(batch.input_ids, batch.padding_mask, strict=True)]  # noqa: E731
    against = lambda batch: [  # noqa: E731
        ids[~gone].tolist() for ids, gone in zip(batch.negative_ids, batch.negative_padding, strict=True)
    ]
    assert words(alone) == words(halves[0]) + words(halves[1])
    assert against(alone) == against(halves[0]) + against(halves[1])


def test_negatives_never_have_the_same_caption_and_masks_change_with_the_epoch(
    pairs: list[ShardPair], vocab: Vocab
) -> None:
    order = TrainSampler(_GROUPS, 17, 0, 4)
    loader = DataLoader(pairs, order, PretrainCollate(vocab, 5, 16, _GRID, 0.0, 0.4, "block"))
    first, second = loader.batches(0, 2)
    for place, clip in enumerate(first.negative_of.tolist()):
        own = first.word_targets[clip] >= 0
        assert own.any(), "at least one word is asked for"
        assert not torch.equal(first.negative_ids[place], first.input_ids[clip])
    masks = {clip: first.mask[k] for k, clip in enumerate(first.clip_ids)}
    assert any(not torch.equal(masks[clip], second.mask[k]) for k, clip in enumerate(second.clip_ids))


def test_kmeans_start_sees_whole_steps_with_any_micro_batches(pairs: list[ShardPair], vocab: Vocab) -> None:
    def first_steps(parts: int) -> list[str]:
        run = object.__new__(Trainer)
        loader = DataLoader(pairs, TrainSampler(_GROUPS, 4, 0, 2, world=parts), _collate(vocab))
        run.loader, run.micro_batches, run.device = (
            split_micro_batches(loader, parts, range(parts)),
            range(parts),
            torch.device("cpu"),
        )
        return [clip for batch in run._some_batches(2) for clip in batch.clip_ids]

    assert first_steps(2) == first_steps(1)
    assert len(first_steps(1)) == 8


def test_tokenizer_batches_hold_the_words_of_each_caption(pairs: list[ShardPair], vocab: Vocab) -> None:
    (batch,) = DataLoader(pairs, TrainSampler(_GROUPS, 4, 0, 2), TokenizerCollate(vocab)).batches(0, 1)
    for clip_id, words in zip(batch.clip_ids, batch.caption_words, strict=True):
        assert set(words.nonzero().flatten().tolist()) == vocab.words_of(_CAPTIONS[int(clip_id[4:]) % 5])


def test_codes_of_other_clips_are_rejected(pairs: list[ShardPair]) -> None:
    mixed = [ShardPair(pairs[0].frames_uri, pairs[1].codes_uri, 10, _GROUPS[0])]
    with pytest.raises(ShardError, match="holds other clips"):
        list(DataLoader(mixed, TrainSampler([[4]], 4, 0, 1), lambda rows: rows).batches(0, 1))


def test_transient_read_error_is_retried(pairs: list[ShardPair]) -> None:
    moved = []
    for pair in pairs:
        uris = []
        for uri in (pair.frames_uri, pair.codes_uri):
            uris.append(f"flaky://{uri}")
            FlakyStore().pipe_file(uri, Path(uri).read_bytes())
        moved.append(ShardPair(*uris, pair.num_clips, pair.row_groups))
    order = TrainSampler(_GROUPS, 4, 0, 2)
    wanted = list(DataLoader(pairs, order, lambda rows: rows).batches(0, 2))
    loader, late = (
        DataLoader(moved, order, lambda rows: rows),
        DataLoader(moved[:1], TrainSampler([[4]], 4, 0, 1), lambda rows: rows),
    )
    FlakyStore.failures += [ConnectionError("reset"), OSError(errno.EIO, "I/O error")]
    found = list(loader.batches(0, 2))
    assert not FlakyStore.failures
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(wanted, found, strict=True))
    FlakyStore().rm(pairs[0].frames_uri)
    with pytest.raises(ShardError, match=r"cannot read row group 0 of flaky://.*f0\.parquet"):
        list(late.batches(0, 1))


def test_finish_runs_in_the_loader_threads(pairs: list[ShardPair]) -> None:
    loader, threads = DataLoader(pairs, TrainSampler(_GROUPS, 4, 0, 2), lambda rows: rows), set()
    loader.finish = lambda rows: threads.add(threading.current_thread().name) or len(rows.clip_ids)
    assert list(loader.batches(0, 3)) == [4, 4, 3]
    assert all(name.startswith("loader") for name in threads)
