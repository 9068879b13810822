"""Table 8 by row, and MACs."""

import json

import pytest

from evilm.config.models import EViLMConfig
from evilm.model.cost import TABLE_8, agreement, at_precision, extra_rows, macs, main, parameter_rows, printed_value
from evilm.model.evilm_model import EViLMModel


@pytest.fixture(scope="module")
def student() -> EViLMModel:
    """E-ViLM at the paper's size."""
    return EViLMModel(EViLMConfig())


# Derived from the layers, e.g. textual embedding 9157 x 128 words + 512 x 128 positions + 2 x 128 types + LayerNorm 256
EXACT = {
    "textual embedding": 1_238_144,
    "textual encoder": 2_379_264,
    "textual MLP": 128 * 384 + 384,
    "token type embedding": 3 * 384,
    "visual encoder": 5_281_832,
    "visual MLP": 304 * 384 + 384,
    "multi-modal decoder": 4 * 1_774_464,
    "pooler": 384 * 384 + 384,
    "CLS head (VQA)": 384 * 2 + 2,
    "total": 16_313_514,
}


@pytest.mark.parametrize("row", TABLE_8)
def test_parameters_match_table_8(student, row):
    count = parameter_rows(student)[row]
    assert count == EXACT[row]
    # 147,840 would round to 148K: the paper cuts off there
    assert agreement(count, TABLE_8[row]) == ("cut off" if row == "pooler" else "rounded")


def test_rows_cover_every_parameter(student):
    counted = parameter_rows(student)["total"] + sum(extra_rows(student).values())
    assert counted == sum(parameter.numel() for parameter in student.parameters())
    # 4 x 384; transform 384 x 128 + 128, LayerNorm 256, bias 9157; 384 x 384 + 384, LayerNorm 768, 384 x 9420 + 9420
    assert extra_rows(student) == {
        "temporal embedding": 1_536,
        "spatial embedding": 0,
        "MLM head": 58_693,
        "MVM head": 3_775_308,
    }


def test_figures_are_rounded_to_the_papers_precision():
    assert at_precision(49_536, "49.5K") == "49.5K"
    assert at_precision(1_152, "1.2K") == "1.2K"
    assert printed_value("49.5K") == 49_500
    assert printed_value("770") == 770
    assert agreement(5_586_832, "5.3M") == "no"


def test_macs_at_the_papers_input(student):
    counts = macs(student, num_words=30)
    # 1.253 G per frame
    assert counts["video encoder"] == pytest.approx(4 * 1.253e9, rel=0.001)
    # one Linear over 256 regions, and the two of the pooled [CLS]
    assert counts["visual projection"] == 256 * 304 * 384
    assert counts["pooler + matching head"] == 384 * 384 + 384 * 2
    # 287 positions: per block 12 x 384^2 per position for the Linears and 2 x 287 x 384 for attention
    assert counts["decoder"] == 4 * 287 * (12 * 384**2 + 2 * 287 * 384)
    # 12 layers over 30 words, likewise at 128, and the projection
    assert counts["text encoder + projection"] == 30 * (12 * (12 * 128**2 + 2 * 30 * 128) + 128 * 384)
    assert counts["total"] == pytest.approx(7.40e9, rel=0.001)


def test_cost_command_prints_json_and_text(capsys, tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text("train_tokenizer: {arch: {input_px: 64}}\npretrain: {arch: {input_px: 64}}\n")
    main(["--json", "--config", str(config)])
    figures = json.loads(capsys.readouterr().out)
    assert figures["table_8"][-1]["ours"] == 16_313_514
    assert figures["table_8"][-1]["paper"] == "16.3M"
    assert figures["paper_claim_gflops"] == 12.2
    assert any("147,840" in note for note in figures["notes"])
    main(["--config", str(config)])
    assert "16,313,514" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--config", "nothing"])
