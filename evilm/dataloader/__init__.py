"""Feed training: sampler, loader, collate, masks, negatives. Torch and pyarrow only, no Ray."""
