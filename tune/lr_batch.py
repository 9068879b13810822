"""Try learning rates and batch sizes of pre-training, under Ray Tune.

    python tune/lr_batch.py --preset tiny
    python tune/lr_batch.py --preset tiny --seeds 3

All trials share one tokenizer and its codes, and see the same number of clips. Flags, files and resuming are those of
tune/sweep.py.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("lr_batch", "evilm.sweep.run_sweep:sweep", tracked=False)
