"""Try shares of masked regions in pre-training (Sec. 4.1: 0.4), under Ray Tune.

    python tune/masking_ratio.py --preset tiny
    python tune/masking_ratio.py --preset tiny --values 0.3,0.4,0.5 --seeds 3

All trials share one tokenizer and its codes. Flags, files and resuming are those of tune/sweep.py.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("masking_ratio", "evilm.sweep.run_sweep:sweep", tracked=False)
