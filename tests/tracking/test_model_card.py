"""The card of a published model."""

import json

from evilm.config.stages import Pretrain
from evilm.tracking.model_card import make_card
from helpers.workflow import Workflow


def test_card_shows_the_metrics_of_the_run(small_workflow: Workflow) -> None:
    root, summary = small_workflow
    card = (root / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: evilm\n")
    for name in ("mvm", "mlm", "vtm"):
        assert f"| {summary['val'][f'{name}_loss']:.3f} | {summary['val'][f'{name}_accuracy']:.1%} |" in card
    for name, fingerprint_ in summary["inputs"].items():
        assert f"| {name} | `{fingerprint_}` |" in card
    assert f"{summary['parameters']:,} parameters" in card
    assert "has not seen real videos" in card
    assert str(root) not in card, "a card is for others, on other machines"
    assert "{" not in card


def test_card_says_when_nothing_was_evaluated(small_workflow: Workflow) -> None:
    root, summary = small_workflow
    config = Pretrain().override({"root": str(root), "out": str(root / "model")})
    unseen = {**summary, "clips": {"train": summary["clips"]["train"]}, "val": {}}
    card = make_card(config, unseen, json.loads((root / "model" / "config.json").read_text()))
    assert "Nothing was held out: the data had no clips of the split `val`" in card
    assert "| not evaluated | | | |" in card
    assert "held-out clips" not in card
