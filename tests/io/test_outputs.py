"""The output folder of a command, on local disk and on an S3 server."""

from pathlib import Path
from typing import Any

import pytest

from evilm.config.stages import BuildVocab, Pretrain, StageConfig
from evilm.errors import ConfigError, OwnershipError
from evilm.io import ownership, storage
from evilm.io.outputs import Output


def finished_summary(
    config: StageConfig, out_uri: str, inputs: dict[str, str], **options: Any
) -> dict[str, Any] | None:
    """Open the folder and give it up again; the summary of a finished run."""
    with Output(config, out_uri, inputs, **options) as output:
        return output.done


def finish(config: StageConfig, out_uri: str, inputs: dict[str, str], summary: dict[str, Any], **options: Any) -> None:
    with Output(config, out_uri, inputs, **options) as output:
        output.close(summary)


def names_in(out_uri: str) -> list[str]:
    return [name for name in storage.list_names(out_uri) if name != ownership.FOLDER]


def test_output_is_continued_reused_rejected_or_overwritten(out_uri: str) -> None:
    config, inputs = BuildVocab(), {"manifest": "abc"}
    assert finished_summary(config, out_uri, inputs) is None
    assert finished_summary(config.override({"words.train_size": 99}), out_uri, inputs) is None, "nothing was made yet"
    assert finished_summary(config, out_uri, inputs) is None
    storage.write_bytes(storage.join(out_uri, "part.bin"), b"1")
    assert finished_summary(config, out_uri, inputs) is None, "unfinished: continue"
    finish(config, out_uri, inputs, {"num_words": 3})
    assert finished_summary(config, out_uri, inputs) == {"num_words": 3}
    other = config.override({"words.train_size": 100})
    with pytest.raises(ConfigError, match=r"words\.train_size: 9157 there, 100 now.*--overwrite"):
        finished_summary(other, out_uri, inputs)
    with pytest.raises(ConfigError, match="manifest: 'abc' there, 'xyz' now"):
        finished_summary(config, out_uri, {"manifest": "xyz"})
    assert finished_summary(other.override({"overwrite": True}), out_uri, inputs) is None
    assert names_in(out_uri) == ["run.json"], "what was there is gone"
    finish(other, out_uri, inputs, {"num_words": 4})
    assert finished_summary(other.override({"overwrite": True}), out_uri, inputs) is None, "asked to do it again"


def test_finished_output_that_lost_a_file_is_unfinished(out_uri: str) -> None:
    config, place = BuildVocab(), storage.join(out_uri, "vocab.txt")
    options: dict[str, Any] = {"needs": lambda done: [done["file"]]}
    with Output(config, out_uri, {}, **options) as output:
        storage.write_bytes(place, b"[PAD]")
        output.close({"file": "vocab.txt"})
    assert finished_summary(config, out_uri, {}, **options) == {"file": "vocab.txt"}
    storage.delete(place)
    with Output(config, out_uri, {}, **options) as output:
        assert (output.done, output.lost) == (None, ["vocab.txt"])
        storage.write_bytes(place, b"[PAD]")
        output.close({"file": "vocab.txt"})
    assert finished_summary(config, out_uri, {}, **options) == {"file": "vocab.txt"}


def test_summary_of_a_moved_root_has_the_places_of_now(tmp_path: Path) -> None:
    old, new, config = tmp_path / "old", tmp_path / "new", BuildVocab()
    facts = {"inputs": {"frames": f"{old}er"}, "files": [f"{old}/table.csv", "/data/x", 3]}
    finish(config, str(old / "corpus"), {}, {"out": str(old / "corpus"), "videos": f"{old}/corpus/videos"} | facts)
    old.rename(new)
    assert finished_summary(config, str(new / "corpus"), {}) == {
        "out": str(new / "corpus"),
        "videos": f"{new}/corpus/videos",
        "inputs": {"frames": f"{old}er"},
        "files": [f"{new}/table.csv", "/data/x", 3],
    }
    (new / "corpus").rename(new / "clips")
    again = finished_summary(config, str(new / "clips"), {})
    assert again
    assert again["out"] == str(new / "clips")


def test_missing_setting_of_an_older_version_counts_as_its_default(out_uri: str) -> None:
    config = BuildVocab()
    finish(config, out_uri, {}, {"num_words": 3})
    for uri in (storage.join(out_uri, "run.json"), storage.join(out_uri, "_runs", "00001.run.json")):
        data = storage.read_json(uri)
        del data["settings"]["words"]["min_frequency"], data["settings"]["split"]
        storage.write_json(uri, data)
    assert finished_summary(config, out_uri, {}) == {"num_words": 3}
    with pytest.raises(ConfigError, match="split: 'train' there, 'x' now"):
        finished_summary(config.override({"split": "x"}), out_uri, {})


def test_output_with_old_setting_names_is_reused(tmp_path: Path) -> None:
    config, out_uri = Pretrain(), str(tmp_path / "model")
    finish(config, out_uri, {}, {"steps": 3})
    for uri in (storage.join(out_uri, "run.json"), storage.join(out_uri, "_runs", "00001.run.json")):
        data = storage.read_json(uri)
        data["settings"]["arch"]["max_words"] = data["settings"]["arch"].pop("max_text_len")
        storage.write_json(uri, data)
    assert finished_summary(config, out_uri, {}) == {"steps": 3}
    with pytest.raises(ConfigError, match=r"arch\.max_text_len: 40 there, 20 now"):
        finished_summary(config.override({"arch.max_text_len": 20}), out_uri, {})


def test_only_inputs_declared_as_growing_may_change(out_uri: str) -> None:
    config, first, more, grows = BuildVocab(), {"manifest": "abc"}, {"manifest": "xyz", "limit": "9"}, ("manifest",)
    finish(config, out_uri, first, {"num_words": 3}, grows=(*grows, "limit"))
    assert finished_summary(config, out_uri, more, grows=(*grows, "limit")) is None, "work to do"
    assert finished_summary(config, out_uri, first) == {"num_words": 3}, "nothing was touched yet"
    with pytest.raises(ConfigError, match="limit"):
        finished_summary(config, out_uri, more, grows=grows)
    with pytest.raises(ConfigError, match="train_size"):
        finished_summary(config.override({"words.train_size": 99}), out_uri, more, grows=(*grows, "limit"))
    with Output(config, out_uri, more, grows=(*grows, "limit")) as output:
        output.extend()
    assert finished_summary(config, out_uri, more) is None, "unfinished"
    finish(config, out_uri, more, {"num_words": 4})
    assert finished_summary(config, out_uri, more) == {"num_words": 4}


def test_leftovers_of_a_run_without_results_may_be_replaced(out_uri: str) -> None:
    config, other = BuildVocab(), BuildVocab().override({"words.train_size": 99})
    assert finished_summary(config, out_uri, {}, ignorable=("_plan",)) is None
    storage.write_bytes(storage.join(out_uri, "_plan", "x"), b"1")
    with pytest.raises(ConfigError, match="train_size"):
        finished_summary(other, out_uri, {})
    assert finished_summary(config, out_uri, {}, ignorable=("_plan",)) is None
    assert storage.exists(storage.join(out_uri, "_plan", "x")), "the same settings go on with it"
    assert finished_summary(other, out_uri, {}, ignorable=("_plan",)) is None
    assert names_in(out_uri) == ["run.json"]
    storage.delete(storage.join(out_uri, "run.json"))
    storage.write_bytes(storage.join(out_uri, "_plan", "x"), b"precious")
    with pytest.raises(ConfigError, match="files that this command did not write"):
        finished_summary(config, out_uri, {}, ignorable=("_plan",))


def test_foreign_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    for config in (BuildVocab(), BuildVocab(overwrite=True)):
        with pytest.raises(
            ConfigError, match="contains files that this command did not write; use an empty or new --out"
        ):
            finished_summary(config, str(tmp_path), {})
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_overwrite_that_was_killed_can_be_repeated(out_uri: str) -> None:
    finish(BuildVocab(), out_uri, {}, {"num_words": 3})
    storage.write_bytes(storage.join(out_uri, "part.bin"), b"1")
    with Output(BuildVocab(), out_uri, {}) as output:
        output.claim()
        output.publish("run.json", None)  # as a run does before it deletes the rest
    with pytest.raises(ConfigError, match="files that this command did not write"):
        finished_summary(BuildVocab(), out_uri, {})
    assert finished_summary(BuildVocab(overwrite=True), out_uri, {}) is None
    assert names_in(out_uri) == ["run.json"]


def test_result_that_another_run_has_changed_is_not_written_over(out_uri: str) -> None:
    config = BuildVocab()
    finish(config, out_uri, {}, {"num_words": 3})
    with Output(config, out_uri, {}) as late:
        with Output(config, out_uri, {}) as other:
            other.extend()
            other.close({"num_words": 4})
        with pytest.raises(OwnershipError, match=r"has changed .* meanwhile; run the same command again"):
            late.extend()
    assert finished_summary(config, out_uri, {}) == {"num_words": 4}
