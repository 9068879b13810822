"""The output folder of a command, on local disk and on an S3 server."""

from pathlib import Path
from typing import Any

import pytest

from evilm.config.stages import BuildVocab, Pretrain, StageConfig
from evilm.errors import ConfigError, ShardError
from evilm.io import ownership, storage
from evilm.io.outputs import Output


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3_bucket") + "/out"


def look(config: StageConfig, place: str, inputs: dict[str, str], **options: Any) -> dict[str, Any] | None:
    """Open the folder and give it up again; the summary of a finished run."""
    with Output(config, place, inputs, **options) as output:
        return output.done


def finish(config: StageConfig, place: str, inputs: dict[str, str], summary: dict[str, Any], **options: Any) -> None:
    with Output(config, place, inputs, **options) as output:
        output.close(summary)


def names_in(place: str) -> list[str]:
    return [name for name in storage.list_names(place) if name != ownership.FOLDER]


def test_an_output_is_continued_reused_refused_or_overwritten(place: str) -> None:
    config, inputs = BuildVocab(), {"manifest": "abc"}
    assert look(config, place, inputs) is None
    assert look(config.override({"words.train_size": 99}), place, inputs) is None, "nothing was made yet"
    assert look(config, place, inputs) is None
    storage.write_bytes(storage.join(place, "part.bin"), b"1")
    assert look(config, place, inputs) is None, "unfinished: continue"
    finish(config, place, inputs, {"num_words": 3})
    assert look(config, place, inputs) == {"num_words": 3}
    other = config.override({"words.train_size": 100})
    with pytest.raises(ConfigError, match=r"words\.train_size: 9157 there, 100 now.*--overwrite"):
        look(other, place, inputs)
    with pytest.raises(ConfigError, match="manifest: 'abc' there, 'xyz' now"):
        look(config, place, {"manifest": "xyz"})
    assert look(other.override({"overwrite": True}), place, inputs) is None
    assert names_in(place) == ["run.json"], "what was there is gone"
    finish(other, place, inputs, {"num_words": 4})
    assert look(other.override({"overwrite": True}), place, inputs) is None, "asked to do it again"


def test_a_setting_that_an_earlier_version_did_not_have_counts_as_its_default(place: str) -> None:
    config = BuildVocab()
    finish(config, place, {}, {"num_words": 3})
    for uri in (storage.join(place, "run.json"), storage.join(place, "_runs", "00001.run.json")):
        data = storage.read_json(uri)
        del data["settings"]["words"]["min_frequency"], data["settings"]["split"]
        storage.write_json(uri, data)
    assert look(config, place, {}) == {"num_words": 3}
    with pytest.raises(ConfigError, match="split: 'train' there, 'x' now"):
        look(config.override({"split": "x"}), place, {})


def test_an_output_of_a_version_with_other_names_is_reused(tmp_path: Path) -> None:
    config, place = Pretrain(), str(tmp_path / "model")
    finish(config, place, {}, {"steps": 3})
    for uri in (storage.join(place, "run.json"), storage.join(place, "_runs", "00001.run.json")):
        data = storage.read_json(uri)
        data["settings"]["arch"]["max_words"] = data["settings"]["arch"].pop("max_text_len")
        storage.write_json(uri, data)
    assert look(config, place, {}) == {"steps": 3}
    with pytest.raises(ConfigError, match=r"arch\.max_text_len: 40 there, 20 now"):
        look(config.override({"arch.max_text_len": 20}), place, {})


def test_an_output_that_may_grow(place: str) -> None:
    config, first, more, grows = BuildVocab(), {"manifest": "abc"}, {"manifest": "xyz", "limit": "9"}, ("manifest",)
    finish(config, place, first, {"num_words": 3}, grows=(*grows, "limit"))
    assert look(config, place, more, grows=(*grows, "limit")) is None, "work to do"
    assert look(config, place, first) == {"num_words": 3}, "nothing was touched yet"
    with pytest.raises(ConfigError, match="limit"):
        look(config, place, more, grows=grows)
    with pytest.raises(ConfigError, match="train_size"):
        look(config.override({"words.train_size": 99}), place, more, grows=(*grows, "limit"))
    with Output(config, place, more, grows=(*grows, "limit")) as output:
        output.extend()
    assert look(config, place, more) is None, "unfinished"
    finish(config, place, more, {"num_words": 4})
    assert look(config, place, more) == {"num_words": 4}


def test_scraps_of_a_run_that_made_nothing(place: str) -> None:
    config, other = BuildVocab(), BuildVocab().override({"words.train_size": 99})
    assert look(config, place, {}, scraps=("_plan",)) is None
    storage.write_bytes(storage.join(place, "_plan", "x"), b"1")
    with pytest.raises(ConfigError, match="train_size"):
        look(other, place, {})
    assert look(config, place, {}, scraps=("_plan",)) is None
    assert storage.exists(storage.join(place, "_plan", "x")), "the same settings go on with it"
    assert look(other, place, {}, scraps=("_plan",)) is None
    assert names_in(place) == ["run.json"]
    storage.delete(storage.join(place, "run.json"))
    storage.write_bytes(storage.join(place, "_plan", "x"), b"precious")
    with pytest.raises(ConfigError, match="something else"):
        look(config, place, {}, scraps=("_plan",))


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    for config in (BuildVocab(), BuildVocab(overwrite=True)):
        with pytest.raises(ConfigError, match="holds files of something else"):
            look(config, str(tmp_path), {})
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_put_if_absent_has_one_winner(place: str) -> None:
    uri = storage.join(place, "commit.json")
    assert storage.put_if_absent(uri, b"first")
    assert not storage.put_if_absent(uri, b"second")
    assert storage.read_bytes(uri) == b"first"


def test_writes_leave_no_other_names_behind(place: str) -> None:
    storage.write_json(storage.join(place, "a", "b.json"), {"x": 1})
    assert storage.list_names(place) == ["a"]
    assert storage.list_names(storage.join(place, "a")) == ["b.json"]
    assert storage.read_json(storage.join(place, "a", "b.json")) == {"x": 1}
    storage.write_bytes(storage.join(place, "a", "b.json"), b"{")
    with pytest.raises(ShardError, match="not valid JSON"):
        storage.read_json(storage.join(place, "a", "b.json"))


def test_folders_travel_whole(place: str) -> None:
    with storage.publish_folder(place) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "x.bin").write_bytes(b"1")
        (folder / "y.bin").write_bytes(b"2")
    with storage.local_folder(place) as folder:
        assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.bin")) == ["deep/x.bin", "y.bin"]


def test_a_full_disk_ends_in_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(ShardError, match=r"cannot use /dev/full/x: .*check that the place"):
        storage.write_bytes("/dev/full/x", b"data")


def test_an_unknown_scheme_names_what_is_accepted() -> None:
    with pytest.raises(ConfigError, match="local path or s3://"):
        storage.exists("gopher://x/y")
