"""Keys of tars: those that come back, in one tar or in several, and members that do not follow each other."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evilm.config.stages import ShardVideos
from evilm.manifests.reader import read_manifests
from evilm.manifests.rows import BadRow, ClipRow
from evilm.video.reasons import RejectReason
from helpers.tables import bad_rows, only_clips, read_clips, read_rows, write_tar


def tar_rows(folder: Path, **settings: Any) -> list[ClipRow | BadRow]:
    return list(read_manifests(ShardVideos(manifest=str(folder / "*.tar")).override(settings)))


def test_keys_repeated_across_tars_get_distinct_ids(tmp_path: Path) -> None:
    for shard in range(3):
        members = [(f"{k:06d}{end}", data) for k in range(2) for end, data in ((".mp4", b"v"), (".txt", b"clip"))]
        write_tar(tmp_path / f"s-{shard}.tar", dict(members))
    ids = [f"s-{shard}_{k:06d}" for shard in range(3) for k in range(2)]
    for settings in ({}, {"columns.videoid": ""}):
        rows = only_clips(tar_rows(tmp_path, **settings))
        assert [row.clip_id for row in rows] == ids
        assert [row.path for row in rows[:2]] == ["s-0.tar/000000.mp4", "s-0.tar/000001.mp4"]
    (tmp_path / "s-1.tar").unlink()
    (tmp_path / "s-2.tar").unlink()
    assert [row.clip_id for row in only_clips(tar_rows(tmp_path))] == ["000000", "000001"]
    assert [row.clip_id for row in only_clips(tar_rows(tmp_path, **{"columns.videoid": ""}))] == ids[:2]


def test_tars_that_repeat_keys_of_earlier_ones_change_no_ids(tmp_path: Path) -> None:
    sizes = {"train-0": (0, 3), "train-1": (3, 6), "val-0": (0, 2), "val-1": (2, 4)}
    for name, keys in sizes.items():
        texts = [(f"{k:06d}{end}", f"{name} {k}".encode()) for k in range(*keys) for end in (".mp4", ".txt")]
        write_tar(tmp_path / f"{name}.tar", dict(texts))
    ids = [f"{k:06d}" for k in range(6)] + [f"val-{k // 2}_{k:06d}" for k in range(4)]
    train = f"{tmp_path}/train-*.tar"
    assert [row.clip_id for row in read_clips(f"{train},{tmp_path}/val-*.tar")] == ids
    assert [row.clip_id for row in read_clips(f"{train},{tmp_path}/val-0.tar")] == ids[:8]
    assert [row.clip_id for row in read_clips(train)] == ids[:6]


def write_keys(path: Path, keys: Iterable[str]) -> None:
    write_tar(path, {f"{key}{end}": b"words" for key in keys for end in (".mp4", ".txt")})


def test_keys_counted_in_each_tar_are_noticed_whichever_are_missing(tmp_path: Path) -> None:
    for name, first in (("s-0", 1), ("s-1", 0)):
        write_keys(tmp_path / f"{name}.tar", [f"{k:06d}" for k in range(first, 6)])
    ids = [row.clip_id for row in only_clips(tar_rows(tmp_path))]
    assert ids == [f"s-0_{k:06d}" for k in range(1, 6)] + [f"s-1_{k:06d}" for k in range(6)]
    write_keys(tmp_path / "s-1.tar", [f"{k:06d}" for k in range(6, 12)])
    write_keys(tmp_path / "val-0.tar", [f"{k:06d}" for k in (0, 2, 3)])
    ids = [row.clip_id for row in only_clips(tar_rows(tmp_path))]
    assert ids == [f"{k:06d}" for k in range(1, 12)] + [f"val-0_{k:06d}" for k in (0, 2, 3)]


def test_ids_of_videos_in_two_tars_stay_as_they_are(tmp_path: Path) -> None:
    for keys in (["1053841", "27", "904331"], ["aQ3", "bX_7", "c-9"], ["000007", "x", "y"]):
        write_keys(tmp_path / "a.tar", ["first", *keys])
        write_keys(tmp_path / "b.tar", keys)
        assert [row.clip_id for row in only_clips(tar_rows(tmp_path))] == ["first", *keys, *keys]


def test_keys_that_differ_in_slashes_only_are_distinct_clips(tmp_path: Path) -> None:
    keys = ("a/b/c", "a_b/c", "a_b_c", "d/e")
    write_tar(tmp_path / "a.tar", {f"{k}{end}": k.encode() for k in keys for end in (".mp4", ".txt")})
    rows = only_clips(tar_rows(tmp_path))
    assert [(row.captions[0], row.path) for row in rows] == [(key, f"a.tar/{key}.mp4") for key in keys]
    first, second, *unchanged = [row.clip_id for row in rows]
    assert unchanged == ["a_b_c", "d_e"]
    assert first.startswith("a_b_c-")
    assert second.startswith("a_b_c-")
    assert first != second


def test_scattered_members_of_a_sample_are_joined(tmp_path: Path) -> None:
    videos = [(f"{k}.mp4", bytes(10 + k)) for k in range(3)]
    texts = [(f"{k}.txt", f"clip {k}".encode()) for k in (2, 0)]
    write_tar(tmp_path / "a.tar", dict([*videos, *texts]))
    rows = tar_rows(tmp_path)
    good = {row.clip_id: (row.captions[0], row.num_bytes) for row in rows if isinstance(row, ClipRow)}
    assert good == {"0": ("clip 0", 10), "2": ("clip 2", 12)}
    assert [row.reason for row in rows if isinstance(row, BadRow)] == ["empty_caption"]


def test_each_sample_of_a_repeated_key_has_its_own_video(tmp_path: Path) -> None:
    parts = [{"0.mp4": b"first", "0.txt": b"A"}, {"0.mp4": b"second", "0.txt": b"B"}, {"0.txt": b"C"}, {"0.mp4": b"4"}]
    between = {"x.mp4": b"x", "x.txt": b"X"}
    tars = [write_tar(tmp_path / "part", part | between).read_bytes() for part in parts]
    (tmp_path / "all.tar").write_bytes(b"".join(tars))
    rows = [row for row in read_rows(tmp_path / "all.tar") if row.clip_id == "0"]
    data = (tmp_path / "all.tar").read_bytes()
    found = [(row.captions[0], data[row.offset :][: row.num_bytes]) for row in rows if isinstance(row, ClipRow)]
    assert found == [("A", b"first"), ("B", b"second")]
    assert [row.reason for row in bad_rows(rows)] == [RejectReason.MISSING_FILE, RejectReason.EMPTY_CAPTION]


def test_scattered_texts_and_records_are_one_sample(tmp_path: Path) -> None:
    for ends in ((".mp4", ".txt", ".json"), (".json", ".txt", ".mp4")):
        values = {".mp4": b"v", ".txt": b"Words.", ".json": b'{"caption": "other", "fps": 2, "split": "val"}'}
        write_tar(tmp_path / "a.tar", {f"{k}{end}": values[end] for end in ends for k in range(2)})
        rows = read_clips(tmp_path / "a.tar")
        assert [(row.clip_id, row.captions, row.extra["fps"], row.split) for row in rows] == [
            (str(k), ("Words.",), "2", "val") for k in range(2)
        ]
