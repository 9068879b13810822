"""Videos to frame shards: plan, write, merge, quarantine (Ray Data)."""
