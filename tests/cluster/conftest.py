"""The modules of cluster/ can be imported, as its scripts import them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))
