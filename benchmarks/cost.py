"""The command line of the cost model: python benchmarks/cost.py."""

import argparse
import json
from typing import cast

from cost_model import __doc__ as about
from cost_model.inputs import CONSTANTS, DEVICES, job_of, measured, override

from evilm.config import presets
from evilm.config.stages import Pretrain
from evilm.errors import ConfigError


def main(arguments: list[str] | None = None) -> None:
    """Print the results of the cost model."""
    parser = argparse.ArgumentParser(prog="python benchmarks/cost.py", description=(about or "").partition("\n")[0])
    parser.add_argument("--preset", default="paper", help="preset or YAML file: model, epochs, batch, frames (paper)")
    parser.add_argument("--clips", type=int, default=2_500_000, help="clips in the train split (2500000)")
    parser.add_argument("--words", type=int, default=30, help="word pieces per caption (30)")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 16, 32, 64], help="numbers of GPUs (8 16 32 64)")
    parser.add_argument("--devices", nargs="+", default=list(DEVICES), choices=DEVICES, help="kinds of GPU")
    parser.add_argument("--measured", nargs="+", default=[], metavar="FILE", help="JSON of benchmarks/train_step.py")
    examples = "a100.usd_per_gpu_hour=2, job.batch_clips=1024, matmul_share=0.5"
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help=f"other inputs, e.g. {examples}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if min(options.clips, options.words, *options.gpus) < 1:
        parser.error("--clips, --words and --gpus must be at least 1")
    try:
        config = cast(Pretrain, presets.defaults("pretrain", options.preset))
        constants = measured(CONSTANTS, options.measured)
        job, kinds, constants = override(job_of(config, options.clips), DEVICES, constants, options.set)
    except ConfigError as error:
        parser.error(str(error))
    from cost_model.report import as_text, report  # imports torch, so only after the flags are parsed

    from evilm.objectives.step_macs import work_of

    if options.words > config.arch.text_positions:
        parser.error(f"--words {options.words}: use 1 to {config.arch.text_positions}, the text encoder's positions")
    work = work_of(config.arch, config.train_tokenizer.arch, config.objectives, options.words)
    figures = report(job, work, [kinds[name] for name in options.devices], options.gpus, constants)
    print(json.dumps(figures) if options.json else as_text(figures))


if __name__ == "__main__":
    main()
