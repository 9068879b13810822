"""The E-ViLM model, the semantic video tokenizer, their losses and their cost. Torch only, no Ray."""
