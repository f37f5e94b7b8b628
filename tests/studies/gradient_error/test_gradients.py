"""Compare pair gradients, computed from response gradients, with the real objective's gradient on the packed group."""

import numpy as np
import pytest
import torch

import tiny
from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import pack
from studies.gradient_error.components import pair_gradients
from studies.gradient_error.gradients import Sketch, response_gradients
from tiny import self_contrast


def test_mean_of_pair_gradients_equals_gradient_of_objective() -> None:
    beta = 0.3
    policy, group = tiny.llama(seed=1), tiny.groups(1, negatives=3, seed=4)[0]
    reference = torch.tensor([[-3.0, -7.0, -5.0, -9.0]])
    gradients, log_probs = response_gradients(policy, [group], None, 0, 7, lambda: None)
    mean = pair_gradients(gradients, log_probs, reference.numpy(), beta).mean(axis=1)[0]

    packed = pack([group])
    objective = self_contrast(beta)
    values = response_log_probs(policy, packed, 7)
    np.testing.assert_allclose(log_probs, values.detach().numpy(), rtol=1e-5)
    loss = objective(values, reference, packed.lengths, packed.mask).loss.sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])
    assert np.linalg.norm(mean - expected.numpy()) < 1e-5 * expected.norm()


def test_sketch_inner_products_are_unbiased() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5000), torch.randn(5000)
    products = [float(s(a) @ s(b)) for s in (Sketch(5000, 64, seed) for seed in range(300))]
    error = np.std(products) / np.sqrt(len(products))
    assert abs(np.mean(products) - float(a @ b)) < 4 * error  # unbiased
    norms = np.array([float(s(a) @ s(a)) for s in (Sketch(5000, 64, seed) for seed in range(300))]) / float(a @ a)
    assert norms.std() == pytest.approx((2 / 64) ** 0.5, rel=0.2)


def test_sketch_equals_signed_sums_of_buckets() -> None:
    sketch = Sketch(6, 2, seed=0)
    assert sketch.bucket is not None
    assert sketch.sign is not None
    x = torch.arange(1.0, 7.0)
    expected = [
        sum(float(s) * v for k, s, v in zip(sketch.bucket, sketch.sign, x.tolist(), strict=True) if k == d)
        for d in (0, 1)
    ]
    assert sketch(x).tolist() == pytest.approx(expected)
    assert Sketch(6, None, seed=0)(x) is x
