"""Coding from end to end: codes are those of the tokenizer, aligned with their frames, equal bytes every time."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
import torch

from evilm.config.stages import PrecomputeCodes
from evilm.dataloader.clip_reader import load_clips
from evilm.dataloader.loader import DataLoader
from evilm.dataloader.sampler import TrainSampler
from evilm.encode.encode_job import plan_work, precompute_codes, unit_of
from evilm.encode.tokenizer_actor import TokenizerActor
from evilm.encode.verify_codes import audit_codes, require_agreement
from evilm.errors import CheckpointError, CollapseError, ConfigError, ShardError
from evilm.io import storage
from evilm.jobs.commits import committed
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.shards import CodesManifest, FrameManifest, ShardPair, decode_frames, find_codes, pair, read_group
from evilm.video.crops import View, replay
from helpers.commands import files_of, finish, kill, start, wait_for
from helpers.gates import Gate
from helpers.s3_faults import FAULTS, FaultyS3, at_random
from helpers.small_corpus import in_this_process
from helpers.stored_frames import GRID, NUM_CODES, PX, SIZES, make_tokenizer, store_frames

BATCH_CLIPS = 3


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Frame shards of 22 clips: row groups of 4, at most 5 clips per shard, two splits."""
    return store_frames(tmp_path_factory.mktemp("frames")).uri


@pytest.fixture(scope="module")
def tokenizer(frames: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer") / "one"
    make_tokenizer(folder, FrameManifest.load(frames))
    return str(folder)


def codes_config(frames: str, tokenizer: str, out: Path, **settings: Any) -> PrecomputeCodes:
    config = PrecomputeCodes(frames=frames, tokenizer=tokenizer, out=str(out), batch_clips=BATCH_CLIPS)
    return config.override({"cluster.num_workers": 1} | settings)


@pytest.fixture(scope="module")
def finished(ray_local: Any, frames: str, tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes made in one go by two actors."""
    out = tmp_path_factory.mktemp("one_go") / "codes"
    summary = precompute_codes(codes_config(frames, tokenizer, out, **{"cluster.num_workers": 2}))
    assert summary["clips"] == {"train": 16, "val": 6}
    return Path(summary["codes"])


def test_codes_equal_the_tokenizers_own(finished: Path, frames: str, tokenizer: str) -> None:
    model = VideoTokenizer.from_pretrained(tokenizer)
    assert finished.name == model.fingerprint()
    manifest, codes = FrameManifest.load(frames), CodesManifest.load(str(finished))
    counts = {"train": np.zeros(NUM_CODES, int), "val": np.zeros(NUM_CODES, int)}
    for split, seen in counts.items():
        pairs = pair(manifest, codes, split, model.fingerprint(), model.config.grid, 4)
        assert sum(item.num_clips for item in pairs) == manifest.num_clips(split)
        for item in pairs:
            for group in range(len(item.row_groups)):
                source = read_group(item.frames_uri, group, ["clip_id", "row", "frames"])
                coded = read_group(item.codes_uri, group, ["clip_id", "row", "views", "code_ids"])
                assert coded["clip_id"].equals(source["clip_id"])
                assert coded["row"].equals(source["row"])
                view = View(0, 0, PX, PX, False)._asdict()
                assert all(views == [view] for views in coded["views"].to_pylist())
                pixels = np.stack([decode_frames(jpegs) for jpegs in source["frames"].to_pylist()])
                wanted = model.encode(torch.from_numpy(pixels)).numpy()
                got = np.array(coded["code_ids"].to_pylist())
                assert np.array_equal(wanted, got)  # although other clips were beside them
                seen += np.bincount(got.ravel(), minlength=NUM_CODES)
    assert {split: histogram.tolist() for split, histogram in counts.items()} == codes.histograms
    assert codes.code_usage["train"] == pytest.approx((counts["train"] > 0).mean(), abs=1e-5)


def test_bytes_do_not_depend_on_workers_batches_or_threads(
    finished: Path, frames: str, tokenizer: str, tmp_path: Path
) -> None:
    config = codes_config(frames, tokenizer, tmp_path / "codes", batch_clips=64, **{"cluster.cpus_per_worker": 3.0})
    summary = precompute_codes(config, in_this_process)
    assert files_of(Path(summary["codes"])) == files_of(finished)
    assert json.loads((tmp_path / "codes" / "summary.json").read_text()) == summary


def test_codes_of_two_tokenizers_share_a_folder(finished: Path, frames: str, tokenizer: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    make_tokenizer(tmp_path / "other", FrameManifest.load(frames), 1)
    root = finished.parent
    assert precompute_codes(codes_config(frames, tokenizer, root), in_this_process)["reused"]
    fresh = precompute_codes(codes_config(frames, other, root), in_this_process)
    assert fresh["inputs"]["tokenizer"] != finished.name
    assert find_codes(str(root), finished.name) == str(finished)
    with pytest.raises(
        ShardError, match=f"holds codes of tokenizer {Path(fresh['codes']).name}, not of {finished.name}"
    ):
        pair(FrameManifest.load(frames), CodesManifest.load(fresh["codes"]), "train", finished.name)


def test_stored_views_have_the_codes_of_their_crops(
    finished: Path, frames: str, tokenizer: str, views: CodesManifest, tmp_path: Path
) -> None:
    manifest, plain, model = FrameManifest.load(frames), CodesManifest.load(str(finished)), None
    model = VideoTokenizer.from_pretrained(tokenizer)
    seen: set[View] = set()
    flips = {True: 0, False: 0}
    for one, four in zip(pair(manifest, plain, "train"), pair(manifest, views, "train"), strict=True):
        for group in range(len(one.row_groups)):
            clips, many = load_clips(one, group), load_clips(four, group, views=True)
            for row, caption in enumerate(clips.captions):
                assert np.array_equal(clips.codes(row, 0, 1), many.codes(row, 0, 4))
                assert many.view(row, 0) == View(0, 0, PX, PX, False)
                pixels = np.zeros((4, PX, PX, 3), np.uint8)
                clips.decode(row, range(4), pixels)
                for k in range(1, 4):
                    view = many.view(row, k)
                    seen.add(view)
                    assert 0.45 * PX**2 <= view.width * view.height <= PX**2
                    sided = "left" in caption or "right" in caption
                    flips[sided] += view.flip
                    wanted = model.encode(torch.from_numpy(replay(pixels, view)[None]))
                    assert np.array_equal(many.codes(row, k, 4).reshape(1, -1), wanted.numpy())
    assert len(seen) == 48, "every clip has its own"
    assert flips[True] == 0
    assert 5 < flips[False] < 25
    assert plain.histograms == views.histograms, "of whole frames, comparable between runs"


@pytest.fixture(scope="module")
def views(ray_local: Any, frames: str, tokenizer: str, finished: Path) -> CodesManifest:
    """Codes of four views, beside those of whole frames."""
    return CodesManifest.load(
        precompute_codes(codes_config(frames, tokenizer, finished.parent, views=4), in_this_process)["codes"]
    )


def test_codes_of_different_views_share_a_folder(
    finished: Path, frames: str, tokenizer: str, views: CodesManifest, tmp_path: Path
) -> None:
    root, fingerprint_ = str(finished.parent), finished.name
    assert Path(views.uri).name.startswith(f"{fingerprint_}-v4-")
    assert precompute_codes(codes_config(frames, tokenizer, finished.parent, views=4))["reused"]
    assert find_codes(root, fingerprint_) == find_codes(root, fingerprint_, 4) == views.uri
    assert find_codes(root, fingerprint_, 1) == find_codes(root, fingerprint_, plain=True) == str(finished)
    with pytest.raises(ShardError, match=r"no finished codes .* with 2 views .*there: .*-v4-.* --views 2"):
        find_codes(root, fingerprint_, 2)
    for digest in ("00000000", "11111111"):  # as if drawn with other settings
        shutil.copytree(views.uri, tmp_path / "codes" / f"{fingerprint_}-v4-{digest}")
    with pytest.raises(ShardError, match="4 views drawn in 2 ways"):
        find_codes(str(tmp_path / "codes"), fingerprint_)
    assert find_codes(f"{tmp_path}/codes/{fingerprint_}-v4-00000000", fingerprint_).endswith("-v4-00000000")
    with pytest.raises(ShardError, match="holds codes of 4 views per clip, not 1"):
        find_codes(views.uri, fingerprint_, 1)


def test_only_new_shards_are_coded(finished: Path, frames: str, tokenizer: str, tmp_path: Path) -> None:
    few = store_frames(tmp_path / "frames", {"train": SIZES["train"][:2], "val": SIZES["val"]})
    first = precompute_codes(codes_config(few.uri, tokenizer, tmp_path / "codes"), in_this_process)
    kept = {p: p.stat().st_mtime_ns for p in Path(first["codes"]).glob("*.parquet")}
    assert len(kept) == 4
    more = store_frames(tmp_path / "frames")
    assert more.fingerprint == FrameManifest.load(frames).fingerprint
    second = precompute_codes(codes_config(more.uri, tokenizer, tmp_path / "codes"), in_this_process)
    assert second["clips"] == {"train": 16, "val": 6}
    assert all(p.stat().st_mtime_ns == before for p, before in kept.items())
    assert files_of(Path(second["codes"])) == files_of(finished)
    for other, word in (({"train": SIZES["train"], "val": []}, "does not hold"), (SIZES, "with other content")):
        changed = store_frames(tmp_path / "other", other, seed=1 if other is SIZES else 0)
        with pytest.raises(ShardError, match=f"{word}.*another --out, or --overwrite"):
            precompute_codes(codes_config(changed.uri, tokenizer, tmp_path / "codes"), in_this_process)


def test_audit_compares_codes_of_random_clips(
    frames: str, tokenizer: str, finished: Path, views: CodesManifest, tmp_path: Path
) -> None:
    manifest, model = FrameManifest.load(frames), VideoTokenizer.from_pretrained(tokenizer)
    found = audit_codes(manifest, views, model, 7, split="train")
    assert (found.num_clips, found.num_regions, found.agreement) == (7, 7 * 4 * GRID**2, 1.0)
    assert audit_codes(manifest, views, model, 99).num_clips == 22
    assert precompute_codes(codes_config(frames, tokenizer, finished.parent, audit=3))["audit"]["agreement"] == 1.0
    make_tokenizer(tmp_path / "other", manifest, 1)
    wrong = audit_codes(manifest, views, VideoTokenizer.from_pretrained(str(tmp_path / "other")), 7)
    assert wrong.agreement < 0.5
    require_agreement(found, 1.0, views)
    with pytest.raises(ShardError, match=r"7 clips got the stored code in only .*audit_agreement = 0.99"):
        require_agreement(wrong, 0.99, views)


def test_collapsed_codes_are_rejected_unless_min_usage_allows_them(frames: str, tokenizer: str, tmp_path: Path) -> None:
    model = VideoTokenizer.from_pretrained(tokenizer)
    model.quantizer.codebook.data[2:] = -model.quantizer.codebook.data[:1]  # of 32 codes, 2 or 3 are left
    collapsed = tmp_path / "collapsed"
    model.save_pretrained(str(collapsed))
    message = (
        r"codes/\w+, split train: the tokenizer has collapsed, it uses [23] of its 32 codes for 1,024 regions; 4 or "
        r"more are accepted \(arch.codebook.min_usage = 0.01\). Train it again, with --overwrite "
        r"--arch.codebook.init kmeans"
    )
    for _ in range(2):  # again without coding again
        with pytest.raises(CollapseError, match=message):
            precompute_codes(codes_config(frames, str(collapsed), tmp_path / "codes"), in_this_process)
    config = json.loads((collapsed / "config.json").read_text())
    config["codebook"]["min_usage"] = 0
    (collapsed / "config.json").write_text(json.dumps(config))
    assert precompute_codes(codes_config(frames, str(collapsed), tmp_path / "codes"), in_this_process)["reused"]
    # known to have collapsed by its training: refused before anything is coded
    config["codebook"]["min_usage"] = 0.5
    (collapsed / "config.json").write_text(json.dumps(config))
    (collapsed / "summary.json").write_text(json.dumps({"val": {"code_usage": 0.125, "num_regions": 9000.0}}))
    with pytest.raises(CollapseError, match=r"collapsed, split val: .* 4 of its 32 codes .* 16 or more are accepted"):
        precompute_codes(codes_config(frames, str(collapsed), tmp_path / "never"), in_this_process)
    assert not (tmp_path / "never").exists()


@pytest.mark.long
def test_damaged_frames_are_rejected(frames: str, tokenizer: str, tmp_path: Path) -> None:
    shard = FrameManifest.load(frames).shards[0]
    path = Path(frames) / shard.file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    try:
        with pytest.raises(ShardError, match=f"{shard.file} was changed after it was written"):
            precompute_codes(codes_config(frames, tokenizer, tmp_path / "codes"))
    finally:
        path.write_bytes(whole)
    assert not list((tmp_path / "codes").glob("*/manifest.json"))
    assert precompute_codes(codes_config(frames, tokenizer, tmp_path / "codes"))["clips"] == {"train": 16, "val": 6}


def test_lost_and_damaged_codes_are_repaired(finished: Path, frames: str, tokenizer: str, tmp_path: Path) -> None:
    manifest, model = FrameManifest.load(frames), VideoTokenizer.from_pretrained(tokenizer)
    config = PrecomputeCodes(tokenizer=tokenizer, out=str(tmp_path), batch_clips=BATCH_CLIPS, repair=True)
    shutil.copytree(finished, tmp_path / finished.name)
    actor = TokenizerActor(
        plan_work(config, manifest, model), {unit_of(shard).name: shard for shard in manifest.shards}
    )
    before, (lost, damaged, *_) = files_of(finished), sorted((tmp_path / finished.name).glob("*.parquet"))
    lost.unlink()
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert sum(actor.make_shard(unit_of(shard).name).num_repaired for shard in manifest.shards) == 2
    assert files_of(tmp_path / finished.name) == before


def test_codes_on_s3_equal_local_ones(finished: Path, frames: str, tokenizer: str, s3_bucket: str) -> None:
    s3fs.S3FileSystem().put(frames, f"{s3_bucket}/frames", recursive=True)
    manifest, model = FrameManifest.load(f"{s3_bucket}/frames"), VideoTokenizer.from_pretrained(tokenizer)
    config = PrecomputeCodes(tokenizer=tokenizer, out=f"{s3_bucket}/codes")
    work = plan_work(config, manifest, model)
    units = {unit_of(shard).name: shard for shard in manifest.shards}
    actor = TokenizerActor(work, units)  # without Ray, whose workers know another store
    for unit in units:
        actor.make_shard(unit)
    for name, data in files_of(finished).items():
        if name.endswith(".parquet"):
            assert storage.read_bytes(f"{s3_bucket}/codes/{finished.name}/{name}") == data
    shard = manifest.shards[0]
    codes_uri = f"{work.out}/{committed(work.out, [unit_of(each) for each in manifest.shards])['train-00000']['file']}"
    there = ShardPair(f"{manifest.uri}/{shard.file}", codes_uri, shard.num_clips, shard.row_groups)
    local = pair(FrameManifest.load(frames), CodesManifest.load(str(finished)), "train")[0]
    order = TrainSampler([shard.row_groups], 5, 0, 2)
    far, near = (next(iter(DataLoader([item], order, lambda rows: rows).batches(0, 1))) for item in (there, local))
    assert np.array_equal(far.frames, near.frames)
    assert np.array_equal(far.code_ids, near.code_ids)


@pytest.mark.long
@pytest.mark.faults
def test_codes_on_a_faulty_s3_equal_local_ones(
    finished: Path, frames: str, tokenizer: str, s3_bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = s3fs.S3FileSystem(endpoint_url=s3_server)
    sound.put(f"{frames}/", f"{s3_bucket}/faulty/frames/", recursive=True)
    with FaultyS3(s3_server, at_random(0.2)) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
        where = [f"--frames={s3_bucket}/faulty/frames", f"--tokenizer={tokenizer}", f"--out={s3_bucket}/faulty/codes"]
        process = start("precompute_codes", *where, f"--batch-clips={BATCH_CLIPS}", "--tracking.no-enabled")
        assert finish(process)["clips"] == {"train": 16, "val": 6}
        assert sum(faulty.counts[fault] for fault in FAULTS) > 5
    for name, data in files_of(finished).items():
        if name.endswith(".parquet") or name.startswith("commits/"):
            assert sound.cat_file(f"{s3_bucket}/faulty/codes/{finished.name}/{name}") == data, name


def test_missing_inputs_are_named(frames: str, tokenizer: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--tokenizer is missing"):
        precompute_codes(PrecomputeCodes(frames=frames, out=str(tmp_path)))
    with pytest.raises(ShardError, match="no finished frames at"):
        precompute_codes(codes_config(str(tmp_path / "gone"), tokenizer, tmp_path))
    with pytest.raises(CheckpointError):
        precompute_codes(codes_config(frames, str(tmp_path / "gone"), tmp_path))


@pytest.mark.long
@pytest.mark.faults
def test_killed_driver_continues_to_equal_codes(
    frames: str, tokenizer: str, finished: Path, s3_bucket: str, store_gate: Gate, tmp_path: Path
) -> None:
    root, there = tmp_path / "run" / "codes", f"{s3_bucket}/frames"
    out = root / finished.name
    s3fs.S3FileSystem().put(f"{frames}/", f"{there}/", recursive=True)
    store_gate.shut(".parquet", once=lambda: any(out.glob("commits/*.json")))
    arguments = ["--frames", there, "--tokenizer", tokenizer, "--out", str(root), f"--batch-clips={BATCH_CLIPS}"]
    process = start("precompute_codes", *arguments, "--tracking.no-enabled")
    wait_for(store_gate.holds, process)
    kill(process)
    store_gate.open()
    done = {path.name: path.read_bytes() for path in out.glob("commits/*.json")}
    assert 0 < len(done) < 6
    assert not (out / "manifest.json").exists()
    summary = precompute_codes(codes_config(there, tokenizer, root))
    assert summary["clips"] == {"train": 16, "val": 6}
    assert files_of(out) == files_of(finished)
