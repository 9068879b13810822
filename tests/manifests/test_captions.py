"""Captions of every kind of file, for building a vocabulary."""

import json
from pathlib import Path

import pytest

from evilm.errors import ManifestError
from evilm.manifests.captions import read_captions
from helpers.tables import read_clips


def test_captions_are_read_from_json_text_and_tables(tmp_path: Path):
    (tmp_path / "c.json").write_text(
        json.dumps({"images": [], "annotations": [{"caption": " One. "}, {"caption": "Two."}]})
    )
    (tmp_path / "c.txt").write_text("One.\n\nTwo.\n")
    (tmp_path / "c.tsv").write_text("id\tname\n1\tOne.\n2\tTwo.\n")
    (tmp_path / "c.csv").write_bytes(b'\xef\xbb\xbfid,name,split\r\n1,One.,train\r\n2,"Two.",\r\n3,Three.,val\r\n')
    for name in ("c.json", "c.txt", "c.tsv", "c.csv"):
        assert read_captions(str(tmp_path / name), split="train") == ["One.", "Two."]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "videoid,caption\n1,x\n", "found: videoid, caption"),
        ("b.csv", "", "is empty"),
        ("c.csv", "name,split\nx,val\n", "no rows of split 'train'; found val"),
        ("d.csv", "name\n\n", "no caption"),
        ("e.json", "{", "not valid JSON"),
        ("f.json", '{"images": []}', "found keys images"),
        ("g.json", "[]", "found a list"),
    ],
)
def test_invalid_caption_files_are_named(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_captions(str(tmp_path / name), split="train")
    with pytest.raises(ManifestError, match="no manifest at"):
        read_captions(str(tmp_path / "none.csv"))


def test_secrets_of_urls_are_in_no_caption(tmp_path: Path) -> None:
    path = tmp_path / "clips.csv"
    path.write_text("videoid,name\na,see https://me:pw@h/a?q=1&sig=SECRET now\n")
    assert read_captions(str(path)) == ["see https://h/a?q=1 now"]


def test_other_names_of_splits_are_read(tmp_path: Path) -> None:
    names = ("training", "Validation", "dev", "valid", "validate", "TEST", "holdout")
    path = tmp_path / "clips.csv"
    path.write_text("videoid,name,split\n" + "".join(f"{name},{name},{name}\n" for name in names))
    assert read_captions(str(path), split="validation") == ["Validation", "dev", "valid", "validate"]
    assert [row.split for row in read_clips(path, tmp_path)] == ["train", "val", "val", "val", "val", "test", "holdout"]
