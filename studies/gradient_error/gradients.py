"""Compute gradients of single responses' log-probabilities, sketched so that thousands fit in memory."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack
from studies.gradient_error.components import Floats


class Sketch:
    """A count sketch: it adds every coordinate, with a random sign, to one of `dimensions` sums.

    Inner products of sketches are unbiased. A squared norm has a relative standard deviation below
    sqrt(2 / dimensions) (Charikar, Chen and Farach-Colton 2002; Weinberger et al. 2009, arXiv 0902.2206).

    Args:
        size: length of the vectors.
        dimensions: length of the sketch; None keeps the whole vector.
    """

    def __init__(self, size: int, dimensions: int | None, seed: int) -> None:
        self.dimensions = size if dimensions is None else dimensions
        self.bucket = self.sign = None
        if dimensions is not None:
            generator = torch.Generator().manual_seed(seed)
            self.bucket = torch.randint(dimensions, (size,), generator=generator)
            self.sign = torch.randint(2, (size,), generator=generator).float() * 2 - 1

    def __call__(self, vector: Tensor) -> Tensor:
        """Map a vector [size] to its sketch [dimensions]."""
        if self.bucket is None or self.sign is None:
            return vector
        return vector.new_zeros(self.dimensions).index_add_(0, self.bucket, vector * self.sign)


def response_gradients(
    model: nn.Module,
    groups: Sequence[Group],
    dimensions: int | None,
    seed: int,
    chunk: int,
    advance: Callable[[], object],
) -> tuple[Floats, Floats]:
    """Return the sketched gradient of every response's log-probability, target first.

    Args:
        groups: prompts with M negatives each.
        dimensions: length of the sketch; None for the whole gradient.
        chunk: number of response tokens whose logits are in memory at a time.
        advance: called after each group.

    Returns:
        Gradients [groups, 1 + M, dimensions] and log-probabilities [groups, 1 + M].
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    sketch = Sketch(sum(p.numel() for p in parameters), dimensions, seed)
    count = 1 + len(groups[0].negatives)
    gradients = np.empty((len(groups), count, sketch.dimensions))
    log_probs = np.empty((len(groups), count))
    for i, group in enumerate(groups):
        for j, response in enumerate(group.responses):
            packed = pack([Group(group.id, group.prompt, response, [])])
            log_prob = response_log_probs(model, packed, chunk)[0, 0]
            by_parameter = torch.autograd.grad(log_prob, parameters)
            gradients[i, j] = sketch(torch.cat([g.flatten() for g in by_parameter])).numpy()
            log_probs[i, j] = log_prob.item()
        advance()
    return gradients, log_probs
