"""Frame shards to cached tokenizer codes (Ray Data actors), and their verification."""
