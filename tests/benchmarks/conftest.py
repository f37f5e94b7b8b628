"""Put `benchmarks/` on the path, as when one of its scripts is run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
