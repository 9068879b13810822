"""Try exponents of the tokenizer's word loss (Eq. 6: 0 and 1), under Ray Tune.

    python tune/focal_loss.py --preset tiny
    python tune/focal_loss.py --preset tiny --search random --trials 4

Each setting gets one tokenizer, whose codes its trials share. Flags, files and resuming are those of tune/sweep.py.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("focal_loss", "evilm.sweep.run_sweep:sweep", tracked=False)
