"""What tests share: servers, clusters, corpora, models and shards made on the spot. Importable in Ray's workers too."""
