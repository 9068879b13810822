"""Video signals: the embedded corpus, probing, decoding, sampling and augmenting of clips."""
