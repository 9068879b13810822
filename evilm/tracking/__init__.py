"""MLflow: runs, metrics, lineage, registered models, model cards, panels. Below everything that reports to it."""
