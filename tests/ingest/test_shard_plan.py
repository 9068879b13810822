"""Planning: which clip goes into which shard, whatever the order and number of rows; growth; retries."""

import io
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from evilm.config.stages import ShardVideos
from evilm.errors import ConfigError, ManifestError, OwnershipError
from evilm.ingest import clip_table, shard_plan
from evilm.ingest.clip_table import order_key
from evilm.ingest.retried_clips import RetriedClips
from evilm.ingest.shard_plan import Generation
from evilm.io import ownership, storage
from evilm.io.outputs import Output
from evilm.manifests.rows import BadRow, ClipRow
from evilm.video.reasons import RejectReason


def clip(number: int, **changes: Any) -> ClipRow:
    values = {"record": number, "clip_id": f"c{number}", "split": "val" if number % 5 == 0 else "train"}
    values |= {"captions": (f"clip {number}",), "path": f"p/{number}", "needs_ending": True, "extra": {"a": "b"}}
    return ClipRow(**values | changes)  # type: ignore[arg-type]


def plan_of(
    out: Path | str, rows: Iterable[ClipRow | BadRow], earlier: Sequence[Generation] = (), missing: str = ""
) -> Generation:
    name = f"manifest {len(earlier)}"
    with opened(out) as output:
        return shard_plan.plan_rows(output, rows, name, earlier, 0, 4, lambda row: row.path == missing)


def retry(out: Path, rows: Sequence[ClipRow], earlier: Sequence[Generation]) -> Generation | None:
    with opened(out) as output:
        return shard_plan.plan_retry(output, rows, earlier, 0, 4)


def opened(out: Path | str) -> Output:
    """The output folder as a new run has it."""
    return Output(ShardVideos(), str(out), {"manifest": str(time.time_ns())}, ("manifest",), ("_plan", "quarantine"))


def shards_of(out: Path, generation: Generation) -> dict[str, list[str]]:
    tasks = {shard.name: generation.task(shard) for shard in generation.shards}
    return {name: [row.clip_id for row in shard_plan.read_rows(str(out), task)] for name, task in tasks.items()}


def all_files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def quarantined(out: Path) -> list[dict[str, Any]]:
    path = out / "quarantine" / "manifest.parquet"
    return pq.read_table(path).to_pylist() if path.exists() else []


@pytest.fixture(params=["one batch", "many batches"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small manifests are read and sorted in one piece, large ones in many."""
    if request.param == "many batches":
        monkeypatch.setattr(clip_table, "_BATCH_ROWS", 7)


def test_assignment_to_shards_depends_on_ids_only(mode: None, tmp_path: Path) -> None:
    rows = [clip(number) for number in range(50)]
    made = plan_of(tmp_path, rows)
    expected: dict[str, list[str]] = {}
    for split in ("train", "val"):
        ids = sorted((row.clip_id for row in rows if row.split == split), key=lambda name: order_key(0, name))
        expected |= {f"{split}-{number:05d}": ids[4 * number : 4 * number + 4] for number in range(-(-len(ids) // 4))}
    assert shards_of(tmp_path, made) == expected
    assert [shard.num_rows for shard in made.shards] == [len(ids) for ids in expected.values()]
    assert shard_plan.read_generations(str(tmp_path)) == [made]
    random.Random(1).shuffle(rows)
    again = plan_of(tmp_path / "again", rows)
    assert (again.plan_id, again.shards) == (made.plan_id, made.shards)
    assert all_files(tmp_path / "again" / "_plan") == all_files(tmp_path / "_plan")
    assert shard_plan.read_rows(str(tmp_path), f"{made.folder}/val-00000")[0] in rows


def test_batches_and_threads_do_not_change_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [clip(number % 60, record=number) for number in range(80)]
    plan_of(tmp_path / "one", rows)
    monkeypatch.setattr(clip_table, "_BATCH_ROWS", 7)
    monkeypatch.setattr(clip_table, "_DATABASE", {**clip_table._DATABASE, "threads": 5})
    plan_of(tmp_path / "many", rows)
    one, many = (all_files(tmp_path / name) for name in ("one", "many"))
    assert {name: data for name, data in one.items() if not name.startswith(("_runs", "run.json"))} == {
        name: data for name, data in many.items() if not name.startswith(("_runs", "run.json"))
    }


def test_spilled_sort_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    rows, found = [clip(number) for number in range(20_000)], []
    for name, limit in (("whole", "256MB"), ("spilled", "12MB")):
        monkeypatch.setattr(clip_table, "_DATABASE", {**clip_table._DATABASE, "memory_limit": limit})
        with opened(tmp_path / name) as output:
            found.append(shard_plan.plan_rows(output, rows, "m", [], 0, 1000, lambda _: False).plan_id)
        assert list(temporary.iterdir()) == []
    assert found[0] == found[1]


def test_late_quarantine_table_does_not_replace_the_successors(tmp_path: Path) -> None:
    place = tmp_path / "quarantine" / "manifest.parquet"

    def rows(output: Output) -> Iterator[ClipRow | BadRow]:
        yield from (clip(0), BadRow(1, "c1", RejectReason.EMPTY_CAPTION))
        assert output._owner
        output._owner.release()  # as if it had been silent for long
        ownership.claim(output.out).release()
        storage.write_bytes(str(place), b"the successor's")

    with opened(tmp_path) as output, pytest.raises(OwnershipError, match="was taken over by"):
        shard_plan.plan_rows(output, rows(output), "m", [], 0, 4, lambda _: False)
    assert place.read_bytes() == b"the successor's"


@pytest.mark.parametrize(
    "change", [{"captions": ("x",)}, {"path": "q"}, {"extra": {}}, {"start_s": 1.0}, {"split": "x"}]
)
def test_plan_id_changes_with_any_row(tmp_path: Path, change: dict[str, Any]) -> None:
    rows = [clip(number) for number in range(9)]
    assert plan_of(tmp_path / "a", rows).plan_id != plan_of(tmp_path / "b", [clip(0, **change), *rows[1:]]).plan_id


def test_first_row_of_an_id_is_planned(mode: None, tmp_path: Path) -> None:
    rows: list[ClipRow | BadRow] = [clip(number) for number in range(20)]
    rows.insert(3, BadRow(3, "c7", RejectReason.EMPTY_CAPTION))
    rows += [
        clip(7, record=21, captions=("again",), source="b.csv"),
        clip(7, record=22, split="other"),
        clip(8, record=23, path="elsewhere"),
        clip(9, record=24, path="nowhere"),
    ]
    made = plan_of(tmp_path, rows, missing="nowhere")
    assert made.num_planned == 20
    assert made.num_rows == 25
    assert made.reasons.sorted() == {"duplicate_id": 3, "empty_caption": 1, "missing_file": 1}
    told = {
        row["record"]: (row["clip_id"], row["reason"], row["detail"], row["source"]) for row in quarantined(tmp_path)
    }
    assert told[3] == ("c7", "empty_caption", "", "")
    advice = " and video, and other captions; --columns.repeats captions joins them"
    assert told[21] == ("c7", "duplicate_id", f"record 7 has this id{advice}", "b.csv")
    assert told[22][1:3] == ("duplicate_id", "record 7 has this id")
    assert told[23][1] == "duplicate_id"
    assert told[24][1:3] == ("missing_file", "and record 9 has this id"), "where it names another video"


def test_all_duplicates_of_a_clip_get_the_same_reason(tmp_path: Path) -> None:
    plan_of(tmp_path, [clip(1), *[clip(1, record=n, path="nowhere") for n in range(2, 1502)]], missing="nowhere")
    assert [row["reason"] for row in quarantined(tmp_path)] == ["missing_file"] * 1500


def test_added_rows_are_planned_as_new_shards(mode: None, tmp_path: Path) -> None:
    rows: list[ClipRow | BadRow] = [clip(number) for number in range(30)]
    first = plan_of(tmp_path, rows)
    before = all_files(tmp_path / "_plan" / first.folder)
    rows = [
        BadRow(1, "", RejectReason.MISSING_ID),
        *rows,
        *[clip(number) for number in range(30, 47)],
        clip(3, record=99),
    ]
    random.Random(0).shuffle(rows[1:-1])
    second = plan_of(tmp_path, rows, [first])
    assert all_files(tmp_path / "_plan" / first.folder) == before
    assert second.num_planned == 17
    assert second.num_rows == 49
    found = shards_of(tmp_path, second)
    assert sorted(name for ids in found.values() for name in ids) == sorted(f"c{number}" for number in range(30, 47))
    assert next(iter(found)) == "train-00006", "24 of 30 clips were of train: six shards"
    assert not set(found) & set(shards_of(tmp_path, first))
    assert [row["reason"] for row in quarantined(tmp_path)] == ["missing_id", "duplicate_id"]
    third = plan_of(tmp_path, rows, [first, second])
    assert (third.shards, third.num_rows) == ([], 49)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda rows: [*rows[:5], clip(5, captions=("other",)), *rows[6:]],
            r"1 rows have another caption.* 'c5'; --overw",
        ),
        (lambda rows: [*rows[:5], *rows[6:]], r"1 rows are gone or cut off by --limit, e\.g\. 'c5'"),
        (lambda rows: rows[:20], r"20 rows are gone"),
        (lambda rows: [clip(1, path="a.tar/1.mp4", offset=0)], r"in one folder and .* is given from the start$"),
        (lambda rows: [clip(3, split="test"), *rows[4:]], r"1 rows have another .* 'c3' and 3 rows are gone.*'c[012]'"),
    ],
)
def test_removed_or_changed_rows_are_rejected(mode: None, tmp_path: Path, change: Any, told: str) -> None:
    rows = [clip(number) for number in range(40)]
    first = plan_of(tmp_path, rows)
    with pytest.raises(ConfigError, match=told) as caught:
        plan_of(tmp_path, [*change(rows), clip(77)], [first])
    assert "\n" not in str(caught.value)
    assert shard_plan.read_generations(str(tmp_path)) == [first]
    assert plan_of(tmp_path, [*rows, clip(77)], [first]).num_planned == 1


def test_retried_clips_get_shards_of_their_own(tmp_path: Path) -> None:
    first = plan_of(tmp_path, [clip(number) for number in range(30)])
    assert retry(tmp_path, [], [first]) is None
    again = retry(tmp_path, [clip(3), clip(11), clip(10)], [first])
    assert again is not None
    assert {name: sorted(ids) for name, ids in shards_of(tmp_path, again).items()} == {
        "train-00006": ["c11", "c3"],
        "val-00002": ["c10"],
    }
    retried = RetriedClips(str(tmp_path), [first, again], 0)
    assert [retried.after(0, f"c{number}") for number in (3, 10, 11, 12)] == [True, True, True, False]
    assert not retried.after(1, "c3")
    grown = plan_of(tmp_path, [clip(number) for number in range(31)], [first, again])
    assert shards_of(tmp_path, grown) == {"val-00003": ["c30"]}


def test_unfinished_plan_is_discarded(tmp_path: Path) -> None:
    first = plan_of(tmp_path, [clip(number) for number in range(10)])
    folder = tmp_path / "_plan" / "0001-00001"
    folder.mkdir()
    (folder / "train-00002.parquet").write_bytes(b"left behind")
    (folder / "val-00009.parquet").write_bytes(b"left behind")
    assert shard_plan.read_generations(str(tmp_path)) == [first]
    second = plan_of(tmp_path, [clip(number) for number in range(11)], [first])
    assert not folder.exists(), "the next plan has its own folder"
    assert sorted(path.name for path in (tmp_path / "_plan" / second.folder).iterdir()) == [
        "digest.parquet", "val-00001.parquet",
    ]  # fmt: skip
    assert shard_plan.read_generations(str(tmp_path)) == [first, second]


@pytest.mark.parametrize("has_rows", [False, True])
def test_late_plan_of_a_run_that_was_taken_over_is_ignored(has_rows: bool, tmp_path: Path) -> None:
    plans, first = tmp_path / "_plan", plan_of(tmp_path, [clip(1)])
    late, rows = plans / f"{first.folder}.json", plans / first.folder
    data = late.read_bytes()
    shutil.rmtree(plans)  # by a second run, with --overwrite
    late.parent.mkdir()
    late.write_bytes(data)
    assert shard_plan.read_generations(str(tmp_path)) == [], "its rows are gone"
    second = plan_of(tmp_path, [clip(2), clip(3)])
    assert second.folder > first.folder
    late.write_bytes(data)
    if has_rows:
        rows.mkdir()
    assert shard_plan.read_generations(str(tmp_path)) == [second]


def test_plan_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    first = plan_of(tmp_path, [clip(1)])
    (tmp_path / "_plan" / f"{first.folder}.json").rename(tmp_path / "_plan" / "0000.json")
    second = plan_of(tmp_path, [clip(1), clip(2)], [first])
    assert shard_plan.read_generations(str(tmp_path)) == [first, second]


def test_odd_text_survives_the_plan_files(tmp_path: Path) -> None:
    row = clip(
        1,
        captions=('a "b"\n, c \U0001f600', "two"),
        extra={"k": "v\0", "": "é"},
        start_s=0.1,
        end_s=2.5,
        offset=3,
        url="u",
    )
    assert shard_plan.read_rows(str(tmp_path), f"{plan_of(tmp_path, [row]).folder}/train-00000") == [row]


def test_too_many_splits_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"more than 1000 splits, .*--columns\.split"):
        plan_of(tmp_path, (clip(number, split=f"s{number}") for number in range(1200)))


def test_manifest_of_bad_rows_plans_no_shard(tmp_path: Path) -> None:
    made = plan_of(tmp_path, [BadRow(1, "a", RejectReason.EMPTY_CAPTION)])
    assert (made.shards, made.num_rows, made.reasons.top()) == ([], 1, "empty_caption 1, e.g. 'a'")


def test_plan_is_read_back_from_s3(s3_bucket: str) -> None:
    rows = [clip(number) for number in range(30)]
    first = plan_of(s3_bucket, rows)
    second = plan_of(s3_bucket, [*rows, clip(30), clip(30)], [first])
    assert shard_plan.read_generations(s3_bucket) == [first, second]
    assert [row.clip_id for row in shard_plan.read_rows(s3_bucket, second.task(second.shards[0]))] == ["c30"]
    table = pq.read_table(io.BytesIO(storage.read_bytes(f"{s3_bucket}/quarantine/manifest.parquet")))
    assert table["reason"].to_pylist() == ["duplicate_id"]


def test_repeated_rows_are_merged_as_captions(mode: None, tmp_path: Path) -> None:
    rows = [clip(n // 4, record=n, captions=(f"caption {n % 3}",)) for n in range(40)]  # the fourth says nothing new
    rows.append(clip(3, record=40, captions=("x",), path="another video"))
    made = plan_of(tmp_path, rows)
    assert (made.num_planned, made.num_rows, made.reasons.sorted()) == (10, 41, {"duplicate_id": 11})
    read = [row for shard in made.shards for row in shard_plan.read_rows(str(tmp_path), made.task(shard))]
    texts = {f"c{number}": {f"caption {n % 3}" for n in range(4 * number, 4 * number + 4)} for number in range(10)}
    assert {row.clip_id: set(row.captions) for row in read} == texts
    assert len(next(row for row in read if row.clip_id == "c1").captions) == 3
    several = [clip(n, captions=("a", "b")) for n in range(3)]
    with opened(tmp_path / "off") as output:
        off = shard_plan.plan_rows(output, rows, "m", [], 0, 4, lambda _: False, "duplicates")
    assert (off.num_planned, off.reasons.sorted()) == (10, {"duplicate_id": 31})
    with opened(tmp_path / "on") as output:
        on = shard_plan.plan_rows(
            output, [*several, clip(1, captions=("c",))], "m", [], 0, 4, lambda _: False, "captions"
        )
    assert (on.num_planned, on.reasons.total) == (3, 0)


def test_other_captions_of_a_clip_are_not_rejected_unnoticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [clip(n // 2, record=n, captions=(f"caption {n}",)) for n in range(20)]
    made = plan_of(tmp_path / "auto", [*rows, clip(0, record=20, captions=("caption 0",)), clip(10)])
    assert made.reasons.sorted() == {"duplicate_id": 11}
    (line,) = [record.message for record in caplog.records if "--columns.repeats captions" in record.message]
    assert line.startswith("10 rows with other captions for a clip are quarantined")
    caplog.clear()
    for repeats in ("duplicates", "captions"):
        with opened(tmp_path / repeats) as output:
            shard_plan.plan_rows(output, rows, "m", [], 0, 4, lambda _: False, repeats)  # type: ignore[arg-type]
    assert "--columns.repeats" not in caplog.text


def test_clips_of_one_video_share_a_shard(mode: None, tmp_path: Path) -> None:
    rows = [clip(n, split="train", path=f"v{n % 9}", start_s=float(n), end_s=n + 1.0) for n in range(63)]
    random.Random(0).shuffle(rows)
    made = plan_of(tmp_path, rows)
    read = [shard_plan.read_rows(str(tmp_path), made.task(shard)) for shard in made.shards]
    assert [len(shard) for shard in read] == [7] * 9, "four would be enough, and seven are of one source"
    assert all(len({row.path for row in shard}) == 1 for shard in read)
    assert sorted(row.clip_id for shard in read for row in shard) == sorted(row.clip_id for row in rows)
    random.Random(1).shuffle(rows)
    assert plan_of(tmp_path / "again", rows).plan_id == made.plan_id
    grown = plan_of(tmp_path, [*rows, *(clip(n, split="train", path="v0", start_s=float(n)) for n in (70, 71))], [made])
    assert grown.num_planned == 2
    huge = plan_of(tmp_path / "huge", [clip(n, split="train", path="v", start_s=float(n)) for n in range(20)])
    assert [shard.num_rows for shard in huge.shards] == [8, 8, 4], "of twice the size at most"


@pytest.mark.parametrize("repeats", ["auto", "captions"])
def test_rows_of_one_name_and_other_videos_of_a_tar_are_no_captions(tmp_path: Path, repeats: Any) -> None:
    rows = [clip(1, path="a.tar/1.mp4", offset=n, record=n, captions=(f"word {n}",)) for n in range(3)]
    with opened(tmp_path) as output:
        plan = shard_plan.plan_rows(output, rows, "m", [], 0, 4, lambda _: False, repeats)
    assert shard_plan.read_rows(str(tmp_path), plan.task(plan.shards[0])) == rows[:1]
    assert [(row["reason"], row["detail"]) for row in quarantined(tmp_path)] == [
        ("duplicate_id", "record 0 has this id and another video; give the tars one by one instead of joined to one")
    ] * 2


def test_key_in_two_tars_names_the_setting_that_tells_them_apart(tmp_path: Path) -> None:
    plan_of(tmp_path, [clip(1, source=f"{n}.tar", path=f"{n}.tar/1.mp4", offset=512) for n in range(2)])
    told = "record 1 of 0.tar has this id; if keys are unique only within a tar, use --columns.videoid ''"
    assert [row["detail"] for row in quarantined(tmp_path)] == [told]
