"""Encode frame shards to cached tokenizer codes with Ray Data actors, and verify codes."""
