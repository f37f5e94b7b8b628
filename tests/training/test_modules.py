"""Losses and metrics of the two trainings, against transformers' own loss and a loss written out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from selfcontrast.models.packing import Group, pack
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.objectives import Objective
from selfcontrast.training.module import Sums
from selfcontrast.training.modules import SelfContrastDPO, SupervisedFineTuning
from selfcontrast.training.steps import Pass, Step
from tiny import groups, llama, recipe

OBJECTIVE = Objective("mean_of_pairs", "sigmoid", 0.1, 0.0, 0.0, 0.0, False, None)


def as_step(own: list[Group]) -> Step:
    return Step([Pass(pack(own), True)], len(own), sum(len(group.target) for group in own))


def padded(rows: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Rows of (prompt, response) as transformers takes them, padded on the right."""
    longest = max(len(p) + len(r) for p, r in rows)
    fill = [longest - len(p) - len(r) for p, r in rows]
    return {
        "input_ids": torch.tensor([p + r + [0] * n for (p, r), n in zip(rows, fill, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - n) + [0] * n for n in fill]),
        "labels": torch.tensor([[-100] * len(p) + r + [-100] * n for (p, r), n in zip(rows, fill, strict=True)]),
    }


def summed(model: Any, rows: list[tuple[list[int], list[int]]]) -> Tensor:
    """log p(response | prompt) of each row [B], from the logits of plain forward passes."""
    found = []
    for prompt, response in rows:
        logits = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        found.append(sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(response)))
    return torch.stack(found)


def dpo(policy: Any, reference: dict[str, Tensor], objective: Objective = OBJECTIVE) -> SelfContrastDPO:
    use_shared_prompt(policy)
    return SelfContrastDPO(policy, recipe(), 6, 7, lambda record: None, objective, reference)


def means(sums: Sums) -> dict[str, float]:
    return {name: float(total / count) for name, (total, count) in sums.items()}


def assert_same_gradients(one: Any, other: Any) -> None:
    pairs = list(zip(one.named_parameters(), other.parameters(), strict=True))
    assert any(float(b.grad.abs().max()) > 1e-2 for _, b in pairs)
    for (name, a), b in pairs:
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_supervised_loss_and_gradient_are_transformers_own() -> None:
    own, policy, plain = groups(5), llama(), llama()
    use_shared_prompt(policy)
    module = SupervisedFineTuning(policy, recipe(), 6, 7, lambda record: None)
    step = as_step(own)
    losses, sums = module.losses(step.passes[0])
    assert losses.shape == (5,)
    loss = losses.sum() / module.total(step)
    expected = plain(**padded([(g.prompt, g.target) for g in own])).loss
    torch.testing.assert_close(loss, expected)
    assert means(sums)["loss"] == pytest.approx(expected.item(), rel=1e-5)
    torch.autograd.backward([loss, expected])
    assert_same_gradients(policy, plain)


@pytest.mark.parametrize("negatives", [1, 3])
def test_dpo_is_the_papers_loss_on_logits(negatives: int) -> None:
    own, policy, plain, before = groups(4, negatives), llama(1), llama(1), llama(2)
    with torch.no_grad():
        stored = {g.id: summed(before, [(g.prompt, r) for r in g.responses]) for g in own}
    module = dpo(policy, stored)
    step = as_step(own)
    losses, _ = module.losses(step.passes[0])
    expected = []
    for g in own:
        reward = 0.1 * (summed(plain, [(g.prompt, r) for r in g.responses]) - stored[g.id])
        expected.append(torch.stack([-torch.log(1 / (1 + torch.exp(-(reward[0] - r)))) for r in reward[1:]]).mean())
    torch.testing.assert_close(losses, torch.stack(expected), atol=1e-5, rtol=1e-4)
    torch.autograd.backward([losses.sum() / module.total(step), torch.stack(expected).mean()])
    assert_same_gradients(policy, plain)


def test_metrics_by_hand() -> None:
    """Two groups, the second with one negative only; the reference is chosen, so every number is known."""
    own = [Group("a", [1, 2], [3, 4], [[5], [6, 7, 8]]), Group("b", [9], [10, 11, 12, 13], [[14, 15]])]
    policy = llama()
    with torch.no_grad():
        logps = {g.id: summed(policy, [(g.prompt, r) for r in g.responses]) for g in own}
    # policy minus reference, target first
    change = {"a": torch.tensor([1.0, -2.0, 3.0]), "b": torch.tensor([-1.0, -4.0])}
    module = dpo(policy, {name: logps[name] - change[name] for name in logps})
    _, sums = module.losses(Pass(pack(own), True))
    a, b = logps["a"].tolist(), logps["b"].tolist()
    assert means(sums) == pytest.approx(
        {
            "loss": ((math.log1p(math.exp(-0.3)) + math.log1p(math.exp(0.2))) / 2 + math.log1p(math.exp(-0.3))) / 2,
            "chosen_reward": 0.1 * (1 - 1) / 2,
            "rejected_reward": 0.1 * ((-2 + 3) / 2 - 4) / 2,
            "margin": 0.1 * ((3 - 2) / 2 + 3) / 2,
            "accuracy": (1 / 2 + 1) / 2,
            "chosen_log_prob": (a[0] + b[0]) / 2,
            "chosen_log_prob_per_token": (a[0] / 2 + b[0] / 4) / 2,
            "rejected_log_prob_per_token": ((a[1] / 1 + a[2] / 3) / 2 + b[1] / 2) / 2,
            "chosen_log_prob_change": (1 - 1) / 2,
            "negatives": (2 + 1) / 2,
        },
        abs=1e-5,
    )


def test_the_reference_may_hold_more_ranks_than_are_used() -> None:
    own = groups(3, negatives=2)
    stored = {g.id: torch.tensor([-5.0, -6.0, -7.0, -800.0, -900.0]) for g in own}
    wide, narrow = dpo(llama(), stored), dpo(llama(), {name: scores[:3] for name, scores in stored.items()})
    part = Pass(pack(own), True)
    assert torch.equal(wide.losses(part)[0], narrow.losses(part)[0])


def test_a_step_is_divided_by_its_whole() -> None:
    step = as_step(groups(5, negatives=1))
    assert dpo(llama(), {}).total(step) == 5
    supervised = SupervisedFineTuning(llama(), recipe(), 6, 7, lambda record: None)
    assert supervised.total(step) == sum(len(g.target) for g in groups(5, negatives=1))


def test_neither_reference_nor_history_is_a_weight() -> None:
    module = dpo(llama(), {"a": torch.zeros(2)})
    assert set(module.state_dict()) == {f"policy.{name}" for name in llama().state_dict()}
