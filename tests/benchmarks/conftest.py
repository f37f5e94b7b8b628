"""Put `benchmarks/` on the path, as Python does when it runs a script of that folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
