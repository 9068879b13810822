"""Build the word-piece vocabulary of the text encoder from captions.

Given a BERT vocab.txt, keeps its 30 % most frequent entries on the captions (Sec. 4.1); without one, trains word
pieces on the captions.

    python pipelines/build_vocab.py --manifest captions.csv --base-vocab vocab.txt --out runs/vocab
    ray job submit --working-dir . -- python pipelines/build_vocab.py --manifest s3://bucket/captions.csv --out s3://bucket/vocab

Ends with a JSON line: number of words, share of [UNK] on the captions, caption lengths, fingerprint.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("build_vocab", "evilm.text.vocab_builder:build_vocab")
