"""Print what the runs under a root have made, as one table.

    python pipelines/report.py --root runs/demo
    ray job submit --working-dir . -- python pipelines/report.py --root s3://bucket/runs/demo

Ends with the same as a JSON line; stages without a result say 'not run'.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("report", "evilm.eval.report:report", tracked=False)
