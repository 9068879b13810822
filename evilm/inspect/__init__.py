"""Looking at frame shards and codes: what they hold, whether all of it is sound, and how it looks."""
