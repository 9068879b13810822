"""Training steps: one objective each, batch to losses and metrics; torch only, no Ray."""
