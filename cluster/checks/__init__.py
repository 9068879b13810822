"""Checks of the cluster files that need no cloud; `validate.py` runs them."""
