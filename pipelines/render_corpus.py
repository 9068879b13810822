"""Render the embedded corpus: captioned H.264 clips with a WebVid-style manifest.

    python pipelines/render_corpus.py --preset tiny --out runs/demo/corpus
    ray job submit --working-dir . -- python pipelines/render_corpus.py --preset tiny --out s3://bucket/corpus

Leaves `manifest.csv` and `videos/` under --out; running it again renders only what is missing.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("render_corpus", "evilm.synth.render_job:render_corpus")
