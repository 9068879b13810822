"""Turn a batch into losses and metrics, one module per training. Torch only, no Ray."""
