"""Videos: fetching, probing, decoding, sampling and augmenting of clips."""
