"""Clips in tars: WebDataset samples, video2dataset's tables beside tars, damaged and hostile archives."""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evilm.config.data import FetchConfig
from evilm.config.stages import ShardVideos
from evilm.errors import ConfigError, ManifestError
from evilm.manifests.captions import read_captions
from evilm.manifests.reader import read_manifests, videos_root
from evilm.manifests.rows import BadRow, ClipRow
from evilm.video.fetch import Fetcher
from evilm.video.reasons import RejectReason
from helpers.tables import TAR_MEMBERS, bad_rows, read_clips, read_rows, write_tar


def video2dataset(folder: Path, kind: str) -> Path:
    """Write the output of video2dataset: a table per shard, beside a folder or a tar of its clips."""
    statuses = ["success", "failed_to_download", "success"]
    table = pa.table(
        {
            "videoid": ["a", "b", "c"],
            "key": ["00000000", "00000001", "00000002"],
            "status": statuses,
            "error_message": [None, "403 at https://u:p@x.org/b.mp4?token=secret", None],
            "url": ["https://x.org/a.mp4", "https://x.org/b.mp4", "https://x.org/c.mp4"],
            "caption": ["A.", "B.", "C."],
        }
    )
    pq.write_table(table, folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    files = {f"{key}.{kind}": f"{key}.{kind}".encode() for key in ("00000000", "00000002") for kind in ("mp4", "txt")}
    if kind == "tar":
        write_tar(folder / "00000.tar", files)
    else:
        (folder / "00000").mkdir()
        for name, data in files.items():
            (folder / "00000" / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("columns", [{}, {"videoid": "videoid"}])
@pytest.mark.parametrize("kind", ["tar", "files"])
def test_video2dataset_tables_beside_tars_or_files_are_read(tmp_path: Path, kind: str, columns: dict[str, str]) -> None:
    folder = video2dataset(tmp_path, kind)
    rows = read_rows(folder, "" if kind == "tar" else folder, columns=columns)
    good, lost = [row for row in rows if isinstance(row, ClipRow)], rows[1]
    assert [row.captions[0] for row in good] == ["A.", "C."]
    assert [row.clip_id for row in good] == (["a", "c"] if columns else ["00000000", "00000002"])
    assert isinstance(lost, BadRow)
    assert lost.reason == RejectReason.MISSING_FILE
    assert lost.detail == "video2dataset says failed_to_download: 403 at https://x.org/b.mp4"
    fetcher = Fetcher(str(folder), FetchConfig())
    for row, key in zip(good, ("00000000", "00000002"), strict=True):
        with fetcher.fetch(row.path, row.needs_ending, row.offset, row.num_bytes) as local:
            assert Path(local.path).read_bytes() == f"{key}.mp4".encode()
            assert local.uri == f"00000{'.tar' * (kind == 'tar')}/{key}.mp4"


def test_tar_samples_become_rows_and_bad_ones_bad_rows(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", TAR_MEMBERS)
    write_tar(tmp_path / "b.tar", {"z.mp4": b"z" * 10_000, "z.txt": b"Zed."})
    config = ShardVideos(manifest=f"{tmp_path}/*.tar")
    rows = list(read_manifests(config))
    good = [row for row in rows if isinstance(row, ClipRow)]
    assert [(row.source, row.clip_id, row.path, row.captions[0]) for row in good] == [
        ("a.tar", "d_0", "a.tar/d/0.mp4", "Zero."),
        ("a.tar", "1", "a.tar/1.webm", "One."),
        ("b.tar", "z", "b.tar/z.mp4", "Zed."),
    ]
    assert (good[1].split, good[0].extra["fps"]) == ("val", "25")
    assert [(row.clip_id, row.reason.value) for row in rows if isinstance(row, BadRow)] == [
        ("2", "empty_caption"),
        ("3", "missing_file"),
        ("4", "bad_row"),
        ("5", "bad_row"),
    ]
    assert videos_root(config) == str(tmp_path)
    fetcher = Fetcher(videos_root(config), FetchConfig())
    for row, data in zip(good, (b"zero" * 700, b"one" * 500, b"z" * 10_000), strict=True):
        with fetcher.fetch(row.path, row.needs_ending, row.offset, row.num_bytes) as local:
            assert Path(local.path).read_bytes() == data
            assert (local.uri, local.num_bytes) == (row.path, len(data))
    assert read_captions(f"{tmp_path}/*.tar") == ["Zero.", "One.", "No video.", "Zed."]
    (tmp_path / "v").mkdir()
    with pytest.raises(ConfigError, match="outside of --videos"):
        read_rows(tmp_path / "a.tar", tmp_path / "v")


@pytest.mark.parametrize("cut", [100, 512, 1024, 2700, 5000, 5632, 6144, 7168])
def test_truncated_tar_keeps_its_whole_samples(tmp_path: Path, cut: int) -> None:
    members = {f"{n}.{kind}": f"{n}{kind}".encode() * 200 for n in range(4) for kind in ("mp4", "txt")}
    whole = write_tar(tmp_path / "a.tar", members).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    rows = read_rows(tmp_path / "a.tar")
    good = [row for row in rows if isinstance(row, ClipRow)]
    per_sample = 2 * (512 + 1024)
    assert [row.clip_id for row in good] == [str(n) for n in range(cut // per_sample)]
    assert all(row.offset + row.num_bytes <= cut for row in good)
    (fault,) = [row for row in rows if isinstance(row, BadRow)]
    assert fault.reason == RejectReason.BAD_ROW
    assert fault.detail.startswith("a.tar: ")


def test_damaged_tar_header_is_reported(tmp_path: Path) -> None:
    members = {f"{n}.{kind}": b"x" for n in range(4) for kind in ("mp4", "txt")}
    data = bytearray(write_tar(tmp_path / "a.tar", members).read_bytes())
    data[4 * 1024 : 4 * 1024 + 512] = b"\x81" * 512
    (tmp_path / "a.tar").write_bytes(data)
    rows = read_rows(tmp_path / "a.tar")
    assert [row.clip_id for row in rows if isinstance(row, ClipRow)] == ["0", "1"]
    assert "damaged header after 2 samples" in rows[-1].detail  # type: ignore[union-attr]
    (tmp_path / "b.tar").write_bytes(b"not a tar at all" * 100)
    assert "no tar" in bad_rows(read_rows(tmp_path / "b.tar"))[0].detail
    (tmp_path / "c.tar").write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(ManifestError, match="compressed"):
        read_rows(tmp_path / "c.tar")


def test_symlinked_tar_of_a_download_cache_is_read(tmp_path: Path) -> None:
    """Hugging Face keeps files in blobs/ and links to them in snapshots/."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots" / "a").mkdir(parents=True)
    write_tar(tmp_path / "blobs" / "0123", sample("a"))
    (tmp_path / "snapshots" / "a" / "0.tar").symlink_to("../../blobs/0123")
    config = ShardVideos(manifest=str(tmp_path / "snapshots" / "a"))
    (row,) = read_clips(config.manifest)
    with Fetcher(videos_root(config), FetchConfig()).fetch(row.path, False, row.offset, row.num_bytes) as local:
        assert Path(local.path).read_bytes() == b"video" * 300


def sample(key: str) -> dict[str, bytes]:
    return {f"{key}.mp4": b"video" * 300, f"{key}.txt": b"Words."}


def test_concatenated_tars_are_read_to_the_end(tmp_path: Path) -> None:
    parts = [write_tar(tmp_path / f"{n}.tar", sample(f"a{n}") | sample(f"b{n}")).read_bytes() for n in range(3)]
    (tmp_path / "all.tar").write_bytes(parts[0] + bytes(1 << 17) + b"".join(parts[1:]))
    rows = read_clips(tmp_path / "all.tar")
    assert [row.clip_id for row in rows] == ["a0", "b0", "a1", "b1", "a2", "b2"]
    fetcher = Fetcher(str(tmp_path), FetchConfig())
    for row in rows:
        with fetcher.fetch(row.path, row.needs_ending, row.offset, row.num_bytes) as local:
            assert Path(local.path).read_bytes() == b"video" * 300
    (tmp_path / "all.tar").write_bytes(parts[0] + parts[1][:6144] + b"\xff" * 512)
    *good, last = read_rows(tmp_path / "all.tar")
    assert [row.clip_id for row in good] == ["a0", "b0", "a1", "b1"]
    assert isinstance(last, BadRow)
    assert "damaged header after 4 samples" in last.detail
    (tmp_path / "all.tar").write_bytes(parts[0] + b"no tar" * 100)
    (lost,) = bad_rows(read_rows(tmp_path / "all.tar"))
    assert "bytes that are no tar follow its end mark, after 2 samples" in lost.detail


def test_tar_headers_with_absurd_sizes_are_bad_rows(tmp_path: Path) -> None:
    def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, pax: Mapping[str, str] = {}) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.pax_headers = abs(size), kind, dict(pax)
        data = bytearray(info.tobuf(tarfile.PAX_FORMAT))
        if size < 0 and not pax:
            data[-512 + 124 : -512 + 136] = (2**96 + size).to_bytes(12)
            data[-512 + 148 : -512 + 156] = b"        "
            data[-512 + 148 : -512 + 156] = b"%06o\0 " % sum(data[-512:])
        return bytes(data)

    good = write_tar(tmp_path / "a.tar", sample("a")).read_bytes()[: 512 * 6]
    chain = header("x", 0, tarfile.XHDTYPE) * 3000
    for lie in (
        header("b.mp4", -512),
        header("b.txt", -1),
        header("b", -1024, tarfile.GNUTYPE_LONGNAME),
        header("b", 1 << 32, tarfile.XHDTYPE),
        header("b.txt", 3, pax={"size": "-99"}),
        chain + header("b.mp4", 0),
    ):
        (tmp_path / "a.tar").write_bytes(good + lie + bytes(20_000))
        first, last = read_rows(tmp_path / "a.tar")
        assert isinstance(first, ClipRow)
        assert isinstance(last, BadRow)
        assert "damaged header after 1 samples" in last.detail
        (tmp_path / "a.tar").write_bytes(lie + bytes(20_000))
        assert [row.reason for row in bad_rows(read_rows(tmp_path / "a.tar"))] == [RejectReason.BAD_ROW]


def test_tar_links_devices_and_invalid_names_are_bad_rows(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name, data in (sample("a") | {"o.\udcff.mp4": b"x"} | sample("o") | sample("u\udcff")).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind in (("d.mp4", tarfile.CHRTYPE), ("l.mp4", tarfile.SYMTYPE), ("e.x", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.mp4"
            tar.addfile(info)
    rows = read_rows(tmp_path / "a.tar")
    assert [row.clip_id for row in rows if isinstance(row, ClipRow)] == ["a"]
    told = {row.clip_id: row.detail for row in rows if isinstance(row, BadRow)}
    assert told["o"] == "the name of a member is not UTF-8"
    assert told["u?"] == "not UTF-8"
    assert told["l"].startswith("l.mp4 is a link")
    assert told["d"].startswith("d.mp4 is a link, a device")
