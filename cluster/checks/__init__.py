"""Checks of the cluster files, as far as a machine without a cloud can check them; `validate.py` runs them."""
