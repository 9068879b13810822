"""Units of work on Ray Data: run, retried, committed once. Shared by ingest and encode."""
