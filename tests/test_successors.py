"""Compare DFT, SPACE, SWEPO and LiPO-lambda with plain loops in float64, and check consequences of the formulas."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from selfcontrast import losses
from selfcontrast.objectives import Signals
from test_objectives import BETA, batch, log_sigmoid, objective

Row = list[Tensor]  # scalars that carry a gradient; the first is the target's
Floats = list[float]


def slow_dft(
    policy: Row, reference: list[float], lengths: list[int], scores: list[float], sampler: list[float]
) -> Tensor:
    terms = [torch.exp(p / 0.6 - q) for p, q in zip(policy[1:], sampler, strict=True)]
    return -policy[0] + (0.6 * torch.log(sum(terms, torch.zeros(())) / len(terms)) if terms else 0.0)


def slow_dft2(
    policy: Row, reference: list[float], lengths: list[int], scores: list[float], sampler: list[float]
) -> Tensor:
    per_token = [p / n for p, n in zip(policy, lengths, strict=True)]
    terms = [torch.exp(p / 0.6) for p in per_token[1:]]
    return -per_token[0] + (0.6 * torch.log(sum(terms, torch.zeros(())) / len(terms)) if terms else 0.0)


def slow_space(
    policy: Row, reference: list[float], lengths: list[int], scores: list[float], sampler: list[float]
) -> Tensor:
    def sigma(mu: float, x: Tensor) -> Tensor:
        return 1 / (1 + mu * torch.exp(-x))

    target, *others = (BETA * (p - r) for p, r in zip(policy, reference, strict=True))
    noise = [torch.log(sigma(1 / 1.5, -r)) for r in others]
    return -torch.log(sigma(1.5, target)) - (1.5 * sum(noise, torch.zeros(())) / len(noise) if noise else 0.0)


def slow_swepo(
    policy: Row, reference: list[float], lengths: list[int], scores: list[float], sampler: list[float]
) -> Tensor:
    mean = sum(scores) / len(scores)
    above = total = torch.zeros(())
    for p, r, score in zip(policy, reference, scores, strict=True):
        weighted = math.exp(0.8 * (score - mean) ** 2) * torch.exp(BETA * (p - r))
        total = total + weighted
        above = above + weighted if score > mean else above
    return -torch.log(above / total) if len(set(scores)) > 1 else policy[0] * 0


def slow_lipo(
    policy: Row, reference: list[float], lengths: list[int], scores: list[float], sampler: list[float]
) -> Tensor:
    rewards = [BETA * (p - r) for p, r in zip(policy, reference, strict=True)]
    ranks = [1 + sum(bool(other > reward) for other in rewards) for reward in rewards]
    loss = policy[0] * 0
    for i, first in enumerate(rewards):
        for j, second in enumerate(rewards):
            if scores[i] > scores[j]:
                gain = abs((2 ** scores[i] - 1) - (2 ** scores[j] - 1))
                discount = abs(1 / math.log(1 + ranks[i]) - 1 / math.log(1 + ranks[j]))
                loss = loss + gain * discount * torch.log(1 + torch.exp(-(first - second)))
    return loss


LOOPS: dict[str, Callable[..., Tensor]] = {
    "DFT": slow_dft,
    "DFT2": slow_dft2,
    "SPACE": slow_space,
    "SWEPO": slow_swepo,
    "LiPOLambda": slow_lipo,
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", LOOPS)
def test_objective_loss_and_gradient_equal_plain_loop(name: str, seed: int) -> None:
    policy, reference, lengths, mask, signals = batch(seed)
    policy.requires_grad_()
    loss = objective(name)(policy, reference, lengths, mask, signals).loss
    expected = []
    for row in range(len(policy)):
        count = 1 + int(mask[row].sum())
        expected.append(
            LOOPS[name](
                list(policy[row, :count]),
                reference[row, :count].tolist(),
                lengths[row, :count].clamp(min=1).tolist(),
                signals.scores[row, :count].tolist(),
                signals.sampler_logps[row, : count - 1].tolist(),
            )
        )
    torch.testing.assert_close(loss, torch.stack(expected))
    weights = torch.arange(1.0, 1 + len(policy), dtype=torch.float64)  # the groups get different gradients
    gradient, expected_gradient = (
        torch.autograd.grad((weights * x).sum(), policy)[0] for x in (loss, torch.stack(expected))
    )
    torch.testing.assert_close(gradient, expected_gradient)


# Gradients of the authors' trainer (github.com/PenGuln/DFT at cd7a0fb, scripts/dft_trainer.py, gamma = 1). The loss
# values of this trainer differ from the formula, so tests compare only gradients.
POLICY = [[-12.5, -9.0, -14.0, -11.0], [-4.0, -6.5, -3.0, -8.0]]
SAMPLER = [[-10.0, -13.0, -11.5], [-6.0, -4.5, -7.0]]
LENGTHS = [[5, 3, 7, 4], [2, 3, 1, 6]]
PUBLISHED = {
    "DFT": [[-1.0, 0.78537780, 0.01246978, 0.20215243], [-1.0, 0.02904076, 0.96169795, 0.00926129]],
    "DFT2": [[-0.2, 0.01063855, 0.12780675, 0.01835928], [-0.5, 0.01944154, 0.00362642, 0.15634149]],
}


@pytest.mark.parametrize(("name", "tau"), [("DFT", 0.7), ("DFT2", 0.3)])
def test_dft_gradient_equals_the_authors_code(name: str, tau: float) -> None:
    policy = torch.tensor(POLICY, dtype=torch.float64, requires_grad=True)
    signals = Signals(torch.full((2, 4), math.nan), torch.tensor(SAMPLER, dtype=torch.float64))
    mask, lengths = torch.ones(2, 3, dtype=torch.bool), torch.tensor(LENGTHS)
    out = objective(name, tau=tau)(policy, torch.full((2, 4), math.nan), lengths, mask, signals)
    gradient = torch.autograd.grad(out.loss.sum(), policy)[0]
    torch.testing.assert_close(gradient, torch.tensor(PUBLISHED[name], dtype=torch.float64), atol=1e-7, rtol=0)
    rewards = policy.detach() / (lengths if name == "DFT2" else 1)
    assert torch.equal(out.chosen_reward, rewards[:, 0])
    assert torch.equal(out.margin, rewards[:, :1] - rewards[:, 1:])


def test_dft_loss_is_the_targets_nll_if_policy_equals_sampler() -> None:
    """If policy and sampler are equal and tau = 1, importance weights are 1: the loss is -log p(y+) + log 1."""
    policy, _, lengths, mask, signals = batch(0, (3, 2), 3)
    same = Signals(signals.scores, policy[:, 1:])
    loss = objective("DFT", tau=1.0)(policy, policy, lengths, mask, same).loss
    torch.testing.assert_close(loss, -policy[:, 0])


def test_space_loss_with_ratio_one_is_a_sum_of_two_logistic_losses() -> None:
    loss = losses.space(torch.tensor([0.3]), torch.tensor([[-0.2, 0.5]]))
    expected = -log_sigmoid(0.3) - (log_sigmoid(0.2) + log_sigmoid(-0.5)) / 2
    assert float(loss) == pytest.approx(expected)


def test_space_gradient_is_zero_at_the_true_log_ratios() -> None:
    """The loss of two responses, with p_data 0.8 and 0.2 and p_model 0.4 and 0.6, is minimal at the log-ratios."""
    data, model, mu = torch.tensor([0.8, 0.2]), torch.tensor([0.4, 0.6]), 3.0
    rewards = (data / model).log().requires_grad_()
    none = torch.zeros(2, 1, dtype=torch.bool)
    real = losses.space(rewards, rewards[:, None], none, mu)
    both = losses.space(rewards, rewards[:, None], ~none, mu)
    ((data * real) + model * (both - real)).sum().backward()
    assert rewards.grad is not None
    torch.testing.assert_close(rewards.grad, torch.zeros(2))


def test_swepo_loss_of_three_scores_equals_value_by_hand() -> None:
    """The mean score is 0.5. The target and the second negative are above it. Equal scores give a loss of 0."""
    s_plus, s_minus = torch.tensor([0.0]), torch.tensor([[1.0, 2.0]])
    scores = torch.tensor([[0.8, 0.0, 0.7]])
    weighted = [math.exp(2 * d + s) for d, s in ((0.3, 0.0), (-0.5, 1.0), (0.2, 2.0))]
    loss = losses.swepo(s_plus, s_minus, scores, alpha=2.0)
    assert float(loss) == pytest.approx(-math.log((weighted[0] + weighted[2]) / sum(weighted)))
    assert float(losses.swepo(s_plus, s_minus, torch.tensor([[0.1, 0.1, 0.1]]))) == 0.0


@pytest.mark.parametrize(
    ("numerators", "denominator"), [((1, 3, 5), 5), ((2, 3, 4), 5), ((1, 3, 5), 6), ((3, 5, 7), 7)]
)
def test_swepo_score_equal_to_the_mean_is_rejected(numerators: tuple[int, int, int], denominator: int) -> None:
    """The middle score equals the mean, which float32 rounds."""
    low, middle, high = (value / denominator for value in numerators)
    zeros = torch.zeros(1)
    expected = -math.log(math.exp(high) / sum(map(math.exp, (low, middle, high))))
    for scores in itertools.permutations((low, middle, high)):
        loss = losses.swepo(zeros, torch.zeros(1, 2), torch.tensor([scores]))
        assert float(loss) == pytest.approx(expected)


def test_swepo_target_below_mean_is_rejected() -> None:
    s_plus, s_minus = torch.tensor([0.0], requires_grad=True), torch.tensor([[0.0]], requires_grad=True)
    losses.swepo(s_plus, s_minus, torch.tensor([[0.0, 1.0]])).sum().backward()
    assert s_plus.grad is not None
    assert s_minus.grad is not None
    assert float(s_plus.grad) > 0 > float(s_minus.grad)


def test_lipo_lambda_loss_of_one_negative_is_weighted_dpo() -> None:
    """The ranks are 2 and 1, so the loss is |2^1 - 2^0| (1/log 2 - 1/log 3) log(1 + exp(0.5))."""
    loss = losses.lipo_lambda(torch.tensor([0.0]), torch.tensor([[0.5]]), torch.tensor([[1.0, 0.0]]))
    assert float(loss) == pytest.approx((1 / math.log(2) - 1 / math.log(3)) * math.log1p(math.exp(0.5)))


def test_lipo_lambda_loss_of_equal_scores_is_zero() -> None:
    loss = losses.lipo_lambda(torch.tensor([0.0]), torch.tensor([[0.5, 0.2]]), torch.tensor([[0.5, 0.5, 0.5]]))
    assert float(loss) == 0.0


@pytest.mark.parametrize("name", ["DFT", "SWEPO", "LiPOLambda"])
def test_objective_without_signals_raises_type_error(name: str) -> None:
    with pytest.raises(TypeError, match="Signals"):
        objective(name)(*batch(0)[:4])
