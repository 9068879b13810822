"""Try numbers of codes of the video tokenizer (Sec. 4.1: 9,420), under Ray Tune.

    python tune/codebook_size.py --preset tiny
    python tune/codebook_size.py --preset tiny --values 64,128 --seeds 3

Each size gets one tokenizer, whose codes its trials share. Flags, files and resuming are those of tune/sweep.py.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("codebook_size", "evilm.sweep.run_sweep:sweep", tracked=False)
