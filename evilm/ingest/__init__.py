"""Make frame shards of videos: plan, write, merge, quarantine (Ray Data)."""
