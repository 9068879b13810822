"""Which tokenizers count as collapsed, and what a user is told."""

import pytest

from evilm.config.models import CodebookConfig
from evilm.errors import CollapseError
from evilm.model.tokenizers.collapse import require_code_usage, require_usage_of_labels, require_usage_on_val


def accepted(num_used: int, num_regions: int, **codebook) -> bool:
    try:
        require_code_usage(CodebookConfig(**codebook), num_used, num_regions, "t")
    except CollapseError:
        return False
    return True


@pytest.mark.parametrize(
    ("num_codes", "min_usage", "num_regions", "fewest"),
    [
        (9420, 0.01, 250_000, 95),  # ceil(94.2)
        (256, 0.01, 40_000, 8),  # a handful, where the share would be 3
        (32, 0.01, 40_000, 4),  # an eighth of a small codebook
        (4, 0.01, 40_000, 1),
        (9420, 0.01, 4_000, 40),  # no more codes than regions can be used
        (9420, 0.01, 16, 2),
        (256, 0.5, 40_000, 128),
    ],
)
def test_fewest_codes_accepted(num_codes, min_usage, num_regions, fewest):
    settings = {"num_codes": num_codes, "min_usage": min_usage}
    assert accepted(fewest, num_regions, **settings)
    assert not accepted(fewest - 1, num_regions, **settings)
    assert accepted(1, num_regions, **settings | {"min_usage": 0.0})


def test_collapse_message_names_value_limit_and_advice():
    summary = {"val": {"code_usage": 2 / 1024, "num_regions": 900.0}}
    with pytest.raises(CollapseError) as caught:
        require_usage_on_val(CodebookConfig(num_codes=1024), summary, "runs/tokenizer")
    assert str(caught.value) == (
        "runs/tokenizer, split val: the tokenizer has collapsed, it uses 2 of its 1,024 codes for 900 "
        "regions (900 could be used at most); 9 or more are accepted (arch.codebook.min_usage = "
        "0.01). Train it again, with --overwrite --arch.codebook.init kmeans --arch.codebook.revive-below "
        "0.1, or more clips; or accept it: run train_tokenizer once more with the same settings and "
        "--arch.codebook.min-usage 0 (commands that build the tokenizer take it as --set "
        "train_tokenizer.arch.codebook.min_usage=0)"
    )
    alive = CodebookConfig(num_codes=1024, init="kmeans", revive_below=0.1)
    with pytest.raises(CollapseError, match=r"with --overwrite and more clips, a lower --optim\.lr or"):
        require_usage_on_val(alive, summary, "t")


@pytest.mark.parametrize("summary", [{}, {"val": None}, {"val": {}}, {"val": {"code_usage": 0.001}}])
def test_tokenizer_without_usage_record_warns(summary, caplog):
    require_usage_on_val(CodebookConfig(), summary, "runs/old")
    assert [record.getMessage() for record in caplog.records] == [
        "runs/old has no record of its code usage on a val split; collapse is checked on its codes of the train split, "
        "once they are computed"
    ]


def test_labels_are_checked_on_the_train_split():
    codebook = CodebookConfig(num_codes=16)
    one, all_ = [500] + [0] * 15, [30] * 16
    require_usage_of_labels(codebook, {"test": one, "train": all_}, "codes")
    with pytest.raises(CollapseError, match=r"codes, split train: .* 1 of its 16 codes for 500 regions; 2 or more"):
        require_usage_of_labels(codebook, {"train": one, "val": all_}, "codes")
    with pytest.raises(CollapseError, match="codes, split test"):
        require_usage_of_labels(codebook, {"test": one, "val": [3] * 16}, "codes")
    require_usage_of_labels(codebook, {}, "codes")
