"""Video tokenizers: their interface and registry, and the semantic vector-quantized tokenizer."""
