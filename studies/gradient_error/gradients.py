"""Gradients of single responses' log-probabilities, as vectors short enough to keep thousands of them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack
from studies.gradient_error.components import Floats


class Sketch:
    """A count sketch: every coordinate is added, with a random sign, to one of `dimensions` sums.

    Inner products are kept without bias; a squared norm has a relative standard deviation below sqrt(2 / dimensions)
    (Charikar, Chen and Farach-Colton 2002; Weinberger et al. 2009, arXiv 0902.2206).

    Args:
        size: size of the vectors.
        dimensions: number of kept sums; None keeps all coordinates.
    """

    def __init__(self, size: int, dimensions: int | None, seed: int) -> None:
        self.dimensions = size if dimensions is None else dimensions
        self.bucket = self.sign = None
        if dimensions is not None:
            generator = torch.Generator().manual_seed(seed)
            self.bucket = torch.randint(dimensions, (size,), generator=generator)
            self.sign = torch.randint(2, (size,), generator=generator).float() * 2 - 1

    def __call__(self, vector: Tensor) -> Tensor:
        """[size] -> [dimensions]"""
        if self.bucket is None or self.sign is None:
            return vector
        return vector.new_zeros(self.dimensions).index_add_(0, self.bucket, vector * self.sign)


def response_gradients(
    model: nn.Module, groups: Sequence[Group], dimensions: int | None, seed: int, chunk: int, done: Callable[[], object]
) -> tuple[Floats, Floats]:
    """The gradient of every response's log-probability, target first, sketched.

    Args:
        groups: each with equally many negatives, M.
        dimensions: number of sums in the sketch; None for the whole gradient.
        chunk: response tokens whose logits exist at a time.
        done: called after each group.

    Returns:
        gradients [groups, 1 + M, dimensions] and log-probabilities [groups, 1 + M].
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    sketch = Sketch(sum(p.numel() for p in parameters), dimensions, seed)
    count = 1 + len(groups[0].negatives)
    gradients = np.empty((len(groups), count, sketch.dimensions))
    log_probs = np.empty((len(groups), count))
    for i, group in enumerate(groups):
        for j, response in enumerate(group.responses):
            alone = pack([Group(group.id, group.prompt, response, [])])
            log_prob = response_log_probs(model, alone, chunk)[0, 0]
            found = torch.autograd.grad(log_prob, parameters)
            gradients[i, j] = sketch(torch.cat([g.flatten() for g in found])).numpy()
            log_probs[i, j] = log_prob.item()
        done()
    return gradients, log_probs
