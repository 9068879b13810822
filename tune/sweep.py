"""Try settings of pre-training under Ray Tune: any settings, named in a YAML file.

    python tune/sweep.py --preset tiny --space space.yaml
    python tune/sweep.py --preset tiny --space space.yaml --search optuna --trials 16 --seeds 2
    ray job submit --working-dir . -- python tune/sweep.py --preset paper --space lr_batch --root s3://bucket/run

A line of the file is `optim.lr: [1e-4, 3e-4]` or, for random and optuna,
`optim.lr: {low: 1e-5, high: 1e-3, log: true}`; names are those of pipelines/pretrain.py --dry-run. All flags of
pretrain are taken and go to every trial. Ends in a table, a figure, and the best settings as a preset for pretrain; run
it again to continue where it stopped.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("sweep", "evilm.sweep.run_sweep:sweep", tracked=False)
