"""Video tokenizers: the semantic vector-quantized tokenizer and its parts."""
