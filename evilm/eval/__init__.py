"""Evaluation of a pre-trained model, and the report of a whole workflow."""
