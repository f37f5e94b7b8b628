"""Draw scores of prompts that are sampled several times."""

from typing import Any

import numpy as np


def correlated(rng: np.random.Generator, prompts: int, samples: int) -> tuple[Any, Any]:
    """Return scores with variance 1 between prompts and 0.25 within a prompt, and the number of each score's prompt."""
    values = np.repeat(rng.normal(size=prompts), samples) + 0.5 * rng.normal(size=prompts * samples)
    return values, np.repeat(np.arange(prompts), samples)
