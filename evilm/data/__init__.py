"""Ray Data: videos to frame shards, frame shards to code shards, and the feed of training."""
