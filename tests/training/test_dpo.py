"""Compare losses and metrics of supervised training and DPO with transformers' loss and explicit formulas."""

import copy
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean as mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from selfcontrast.models.packing import Group, pack
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.objectives import Objective, Signals
from selfcontrast.training.dpo import SelfContrastDPO
from selfcontrast.training.groups import StoredScores
from selfcontrast.training.packed_module import Sums, _zero_if_filler
from selfcontrast.training.sft import SupervisedFineTuning
from selfcontrast.training.steps import MicroBatch, Step
from tiny import ROOT, gpt2, groups, llama, objective_of, optim, self_contrast

OBJECTIVES = sorted(set((ROOT / "conf/objective").glob("*.yaml")) - {ROOT / "conf/objective/sft_continued.yaml"})
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
MODELS = {
    "llama": LlamaConfig(**SHAPE),
    "mistral with a window shorter than the rows": MistralConfig(**SHAPE, sliding_window=5),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
    "gpt2": gpt2(0.0).config,
}
OBJECTIVE = self_contrast(0.1)


def tiny(model: str, seed: int) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(copy.deepcopy(MODELS[model]))


def as_step(batch: list[Group]) -> Step:
    return Step([MicroBatch(pack(batch), True)], len(batch), sum(len(group.target) for group in batch))


def padded(rows: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Pad rows of (prompt, response) on the right, as a transformers batch."""
    longest = max(len(p) + len(r) for p, r in rows)
    fill = [longest - len(p) - len(r) for p, r in rows]
    return {
        "input_ids": torch.tensor([p + r + [0] * n for (p, r), n in zip(rows, fill, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - n) + [0] * n for n in fill]),
        "labels": torch.tensor([[-100] * len(p) + r + [-100] * n for (p, r), n in zip(rows, fill, strict=True)]),
    }


def plain_log_probs(model: Any, rows: list[tuple[list[int], list[int]]]) -> Tensor:
    """Return log p(response | prompt) of each row [B], from plain forward passes."""
    sums = []
    for prompt, response in rows:
        logits = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        sums.append(sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(response)))
    return torch.stack(sums)


def dpo(
    policy: Any,
    reference: dict[str, Tensor],
    objective: Objective = OBJECTIVE,
    signals: dict[str, Signals] | None = None,
) -> SelfContrastDPO:
    use_shared_prompt(policy)
    return SelfContrastDPO(
        policy, optim(), 6, 7, lambda record: None, objective, StoredScores(reference, signals or {})
    )


def signals_of(batch: list[Group], seed: int = 0) -> dict[str, Signals]:
    """Return random scores and sampler log-probabilities of each group."""
    torch.manual_seed(seed)
    return {g.id: Signals(torch.rand(1 + len(g.negatives)), -9 * torch.rand(len(g.negatives))) for g in batch}


def metric_means(sums: Sums) -> dict[str, float]:
    return {name: float(total / count) for name, (total, count) in sums.items()}


def assert_same_gradients(model: Any, other: Any) -> None:
    pairs = list(zip(model.named_parameters(), other.parameters(), strict=True))
    assert any(float(b.grad.abs().max()) > 1e-2 for _, b in pairs)
    for (name, a), b in pairs:
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_supervised_loss_and_gradient_equal_transformers() -> None:
    batch, policy, plain = groups(5), llama(), llama()
    use_shared_prompt(policy)
    module = SupervisedFineTuning(policy, optim(), 6, 7, lambda record: None)
    step = as_step(batch)
    losses, sums = module.losses(step.microbatches[0])
    assert losses.shape == (5,)
    loss = losses.sum() / module.total(step)
    expected = plain(**padded([(g.prompt, g.target) for g in batch])).loss
    torch.testing.assert_close(loss, expected)
    assert metric_means(sums)["loss"] == pytest.approx(expected.item(), rel=1e-5)
    torch.autograd.backward([loss, expected])
    assert_same_gradients(policy, plain)


@pytest.mark.parametrize("negatives", [1, 3])
def test_dpo_loss_and_gradient_equal_the_papers_formula(negatives: int) -> None:
    batch, policy, plain, reference_model = groups(4, negatives), llama(1), llama(1), llama(2)
    with torch.no_grad():
        stored = {g.id: plain_log_probs(reference_model, [(g.prompt, r) for r in g.responses]) for g in batch}
    module = dpo(policy, stored)
    step = as_step(batch)
    losses, _ = module.losses(step.microbatches[0])
    expected = []
    for g in batch:
        reward = 0.1 * (plain_log_probs(plain, [(g.prompt, r) for r in g.responses]) - stored[g.id])
        expected.append(torch.stack([-torch.log(1 / (1 + torch.exp(-(reward[0] - r)))) for r in reward[1:]]).mean())
    torch.testing.assert_close(losses, torch.stack(expected), atol=1e-5, rtol=1e-4)
    torch.autograd.backward([losses.sum() / module.total(step), torch.stack(expected).mean()])
    assert_same_gradients(policy, plain)


def padded_sums(model: Any, group: Group) -> Tensor:
    """Return log-probabilities [K + 1] from transformers' attention over padded rows."""
    rows = [(group.prompt, response) for response in group.responses]
    batch = padded(rows)
    labels = batch.pop("labels")[:, 1:]
    logits = model(**batch).logits[:, :-1].log_softmax(-1)
    return (logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels >= 0)).sum(-1)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("file", OBJECTIVES, ids=lambda file: file.stem)
def test_objective_gradients_equal_padded_rows(file: Path, model: str) -> None:
    objective = objective_of(file.stem)
    batch = [*ragged([3, 1, 4, 2], seed=3)]
    policy, plain, reference_model = tiny(model, 1), tiny(model, 1), tiny(model, 2)
    with torch.no_grad():
        stored = {g.id: padded_sums(reference_model, g) for g in batch}
    signals_by_id = signals_of(batch)
    module = dpo(policy, stored, objective, signals_by_id)
    losses, _ = module.losses(MicroBatch(pack(batch), True))
    for group, loss in zip(batch, losses, strict=True):
        count = len(group.negatives)
        lengths = torch.tensor([[len(response) for response in group.responses]])
        sums, mask = padded_sums(plain, group)[None], torch.ones(1, count, dtype=torch.bool)
        signals = Signals(signals_by_id[group.id].scores[None], signals_by_id[group.id].sampler_logps[None])
        expected = objective(sums, stored[group.id][None], lengths, mask, signals).loss[0]
        torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
        (expected / len(batch)).backward()
    (losses.sum() / len(batch)).backward()
    gradient, expected = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (policy, plain))
    assert float(expected.norm()) > 1e-2
    assert float((gradient - expected).norm() / expected.norm()) <= 1e-5


def test_dpo_metrics_equal_hand_computation() -> None:
    """The second of two groups has only one negative. The reference is chosen so that every metric is known."""
    batch = [Group("a", [1, 2], [3, 4], [[5], [6, 7, 8]]), Group("b", [9], [10, 11, 12, 13], [[14, 15]])]
    policy = llama()
    with torch.no_grad():
        logps = {g.id: plain_log_probs(policy, [(g.prompt, r) for r in g.responses]) for g in batch}
    # policy minus reference, target first
    change = {"a": torch.tensor([1.0, -2.0, 3.0]), "b": torch.tensor([-1.0, -4.0])}
    module = dpo(policy, {name: logps[name] - change[name] for name in logps})
    _, sums = module.losses(MicroBatch(pack(batch), True))
    a, b = logps["a"].tolist(), logps["b"].tolist()
    assert metric_means(sums) == pytest.approx(
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
            "kl_reference_policy_on_negatives": ((2 - 3) / 2 + 4) / 2,
            "negatives": (2 + 1) / 2,
            "accuracy_rank_1": 1.0,
            "accuracy_rank_2": 0.0,  # only group a has rank 2
            "margin_rank_1": 0.1 * ((1 + 2) + (-1 + 4)) / 2,
            "margin_rank_2": 0.1 * (1 - 3),
        },
        abs=1e-5,
    )


def ragged(counts: list[int], seed: int = 0) -> list[Group]:
    """Return groups with these numbers of negatives."""
    drawn = groups(len(counts), negatives=max(counts), seed=seed)
    return [replace(group, negatives=group.negatives[:count]) for group, count in zip(drawn, counts, strict=True)]


def test_dpo_metrics_over_ragged_microbatches_equal_plain_loop() -> None:
    """Groups with 1 to 4 negatives fill three micro-batches. One of these is a filler, which must not count."""
    parts = [ragged([1, 3]), ragged([4, 2, 1], seed=1), ragged([2], seed=2)]
    batch = [replace(g, id=f"{i}{g.id}") for i, part in enumerate(parts[:2]) for g in part]
    filler = [replace(g, id=f"2{g.id}") for g in parts[2]]
    policy, reference_model = llama(1), llama(2)
    with torch.no_grad():
        stored = {
            g.id: plain_log_probs(reference_model, [(g.prompt, r) for r in g.responses]) for g in [*batch, *filler]
        }
        policy_scores = {g.id: plain_log_probs(policy, [(g.prompt, r) for r in g.responses]).tolist() for g in batch}
    module = dpo(policy, stored)
    module._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    microbatches = [
        MicroBatch(pack(batch[:2]), True),
        MicroBatch(pack(batch[2:]), True),
        MicroBatch(pack(filler), False),
    ]
    estimates = module._means([_zero_if_filler(module.losses(part)[1], part) for part in microbatches])

    lists: dict[str, list[float]] = defaultdict(list)
    for g in batch:
        reference_log_probs, policy_log_probs = stored[g.id].tolist(), policy_scores[g.id]
        rewards = [0.1 * (a - b) for a, b in zip(policy_log_probs, reference_log_probs, strict=True)]
        margins = [rewards[0] - r for r in rewards[1:]]
        lists["loss"].append(mean([math.log1p(math.exp(-m)) for m in margins]))
        lists["chosen_reward"].append(rewards[0])
        lists["rejected_reward"].append(mean(rewards[1:]))
        lists["margin"].append(mean(margins))
        lists["accuracy"].append(mean([float(m > 0) for m in margins]))
        lists["chosen_log_prob"].append(policy_log_probs[0])
        lists["chosen_log_prob_per_token"].append(policy_log_probs[0] / len(g.target))
        lists["rejected_log_prob_per_token"].append(
            mean([p / len(n) for p, n in zip(policy_log_probs[1:], g.negatives, strict=True)])
        )
        lists["chosen_log_prob_change"].append(policy_log_probs[0] - reference_log_probs[0])
        lists["kl_reference_policy_on_negatives"].append(
            mean([b - a for a, b in zip(policy_log_probs[1:], reference_log_probs[1:], strict=True)])
        )
        lists["negatives"].append(len(g.negatives))
        for rank, margin in enumerate(margins, start=1):
            lists[f"margin_rank_{rank}"].append(margin)
            lists[f"accuracy_rank_{rank}"].append(float(margin > 0))
    assert {name: len(values) for name, values in lists.items() if "rank_" in name} == {
        f"{name}_rank_{rank}": count
        for name in ("margin", "accuracy")
        for rank, count in enumerate((5, 3, 2, 1), start=1)
    }
    assert estimates == pytest.approx({name: mean(values) for name, values in lists.items()}, abs=1e-4)


def test_dpo_kl_estimate_equals_exact_divergence() -> None:
    """Responses are single tokens, so the exact divergence is a sum over the vocabulary."""
    group, policy, reference_model = Group("a", [3, 1], [2], []), llama(1, spread=0.05), llama(2, spread=0.05)
    with torch.no_grad():
        p, q = (
            model(torch.tensor([group.prompt])).logits[0, -1].log_softmax(-1) for model in (policy, reference_model)
        )
        exact = float((q.exp() * (q - p)).sum())
        tokens = torch.multinomial(q.exp(), 4000, replacement=True, generator=torch.Generator().manual_seed(0))
    drawn = replace(group, negatives=[[token] for token in tokens.tolist()])
    stored = {"a": torch.cat([q[[2]], q[tokens]])}
    with torch.no_grad():
        estimates = metric_means(dpo(policy, stored).losses(MicroBatch(pack([drawn]), True))[1])[
            "kl_reference_policy_on_negatives"
        ]
    noise = float((q - p)[tokens].std() / 4000**0.5)
    assert exact > 4 * noise
    assert estimates == pytest.approx(exact, abs=4 * noise)


def test_dpo_unused_ranks_of_reference_do_not_change_loss() -> None:
    batch = groups(3, negatives=2)
    stored = {g.id: torch.tensor([-5.0, -6.0, -7.0, -800.0, -900.0]) for g in batch}
    wide, narrow = dpo(llama(), stored), dpo(llama(), {name: scores[:3] for name, scores in stored.items()})
    part = MicroBatch(pack(batch), True)
    assert torch.equal(wide.losses(part)[0], narrow.losses(part)[0])


def test_total_counts_groups_for_dpo_and_target_tokens_for_sft() -> None:
    step = as_step(groups(5, negatives=1))
    assert dpo(llama(), {}).total(step) == 5
    supervised = SupervisedFineTuning(llama(), optim(), 6, 7, lambda record: None)
    assert supervised.total(step) == sum(len(g.target) for g in groups(5, negatives=1))


def test_dpo_state_dict_has_only_policy_weights() -> None:
    module = dpo(llama(), {"a": torch.zeros(2)})
    assert set(module.state_dict()) == {f"policy.{name}" for name in llama().state_dict()}
