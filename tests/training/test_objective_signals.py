"""Test how stored signals reach the objective, and the three references: stored, none, sampler."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfcontrast.data.candidates import Decoding, Negative, Request
from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.generators.sampling import sample
from selfcontrast.models.adapters import NoAdapter
from selfcontrast.models.packing import Group, pack
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.objectives import DFT, SWEPO, Objective, ObjectiveOutput, Signals
from selfcontrast.training.align import align
from selfcontrast.training.dpo import SelfContrastDPO
from selfcontrast.training.groups import (
    StoredScores,
    nearest_first,
    preference_groups,
    sampler_reference,
    select_signals,
)
from selfcontrast.training.packed_module import Record
from selfcontrast.training.reference import Scoring, read_reference, score_reference
from selfcontrast.training.steps import MicroBatch
from selfcontrast.training.training import Training
from tiny import example, hardware, llama, optim, policy_folder, self_contrast, tokenizer

SCORED = SWEPO(beta=0.5, alpha=1.0, power=1, nll_weight=0.0, length_normalised=False)
DISCRIMINATIVE = DFT(tau=1.0)
RANKED = [
    Negative("a", rank, rank, "", [10 + rank] * (rank + 1), similarity, log_prob=-1.0 - rank, score=rank / 8)
    for rank, similarity in enumerate((0.2, 0.9, 0.5, 0.9))
]


def groups_and_negatives(
    ranked: list[Negative], count: int, max_length: int = 100
) -> tuple[list[Group], dict[str, list[Negative]]]:
    used = {"a": nearest_first(ranked, count)}
    return preference_groups(Renderer(tokenizer()), [example("a", "cat?", "a cat")], used, max_length)[0], used


def test_select_signals_follow_order_of_negatives() -> None:
    groups, used = groups_and_negatives(RANKED, 3)
    assert [list(tokens) for tokens in groups[0].negatives] == [[11, 11], [12, 12, 12], [10]]
    scored = select_signals(SCORED, groups, used, {"a": 0.75, "b": 0.0})["a"]
    assert scored.scores.tolist() == [0.75, 0.125, 0.25, 0.0]
    sampled = select_signals(DISCRIMINATIVE, groups, used, {"a": 0.75})["a"]
    assert sampled.sampler_logps.tolist() == [-2.0, -3.0, -1.0]
    targets = {"a": torch.tensor([-9.0]), "b": torch.tensor([-8.0])}
    assert sampler_reference(targets, groups, used)["a"].tolist() == [-9.0, -2.0, -3.0, -1.0]


def test_select_signals_is_empty_for_objective_without_signals() -> None:
    unknown = [replace(negative, log_prob=math.nan, score=math.nan) for negative in RANKED]
    assert select_signals(self_contrast(0.1), *groups_and_negatives(unknown, 3), {}) == {}


@pytest.mark.parametrize(
    ("objective", "changes", "target", "problem"),
    [
        (SCORED, {"score": math.nan}, 1.0, r"^objective=SWEPO needs the score.* prompt a "),
        (SCORED, {}, math.nan, r"^objective=SWEPO needs the score.* prompt a "),
        (DISCRIMINATIVE, {"log_prob": math.nan}, 1.0, r"^objective=DFT needs the sampler's .* prompt a "),
    ],
)
def test_select_signals_missing_value_names_prompt(
    objective: Objective, changes: dict[str, Any], target: float, problem: str
) -> None:
    ranked = [replace(negative, **changes) if negative.rank == 1 else negative for negative in RANKED]
    with pytest.raises(UserError, match=problem):
        select_signals(objective, *groups_and_negatives(ranked, 3), {"a": target})
    select_signals(objective, *groups_and_negatives(ranked, 1), {"a": 1.0})  # K = 1 does not use rank 1


def test_sampler_logps_of_truncated_negative_are_refused() -> None:
    groups, _ = groups_and_negatives(RANKED, 4)
    max_length = len(groups[0].prompt) + 3  # the negative of four tokens loses one
    with pytest.raises(UserError, match=r"trainer\.max_length .*prompt a"):
        select_signals(DISCRIMINATIVE, *groups_and_negatives(RANKED, 4, max_length), {"a": 1.0})
    with pytest.raises(UserError, match=r"^reference=sampler .*trainer\.max_length"):
        sampler_reference({"a": torch.zeros(1)}, *groups_and_negatives(RANKED, 4, max_length))


class RecordingObjective:
    """An objective that records its signals."""

    uses_negatives = needs_reference = needs_scores = needs_sampler = True

    def __init__(self) -> None:
        self.signals: list[Signals | None] = []

    def __call__(
        self, policy: Tensor, reference: Tensor, lengths: Tensor, mask: Tensor, signals: Signals | None = None
    ) -> ObjectiveOutput:
        self.signals.append(signals)
        return ObjectiveOutput(policy[:, 0], policy[:, 0], policy[:, 1:], policy[:, 1:])


def test_dpo_passes_signals_by_group_id() -> None:
    batch = [Group("a", [1, 2], [3], [[4], [5, 6]]), Group("b", [1], [2, 3], [[7]])]
    signals_by_id = {
        "b": Signals(torch.tensor([1.0, 0.5]), torch.tensor([-3.0])),
        "a": Signals(torch.tensor([0.9, 0.1, 0.2]), torch.tensor([-1.0, -2.0])),
    }
    policy, recorder = llama(), RecordingObjective()
    use_shared_prompt(policy)
    stored = StoredScores({g.id: torch.zeros(1 + len(g.negatives)) for g in batch}, signals_by_id)
    module = SelfContrastDPO(policy, optim(), 6, 7, lambda record: None, recorder, stored)
    module.losses(MicroBatch(pack(batch), True))
    (signals,) = recorder.signals
    assert signals is not None
    torch.testing.assert_close(signals.scores, torch.tensor([[0.9, 0.1, 0.2], [1.0, 0.5, 0.0]]))
    torch.testing.assert_close(signals.sampler_logps, torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]))
    assert not any("signals" in name or "stored" in name for name in module.state_dict())


# ---- the three references, on negatives sampled by the model itself


class SampledPool:
    """Four prompts, three samples of a tiny model for each prompt, and the model's scores of all responses."""

    def __init__(self, folder: Path) -> None:
        self.sft, self.folder = policy_folder(folder / "sft"), folder
        renderer = Renderer(tokenizer())
        examples = [example(f"e{i}", "what is the cat?" + " a dog" * i, "a cat" + " sat" * i) for i in range(4)]
        decoding = Decoding(3, 1.3, 0.9, 12, 120)  # candidates record log_prob at temperature 1
        requests = [Request(e.id, renderer.prompt(e.prompt)) for e in examples]
        drawn = sample(llama(), tokenizer(), requests, decoding, 0, renderer.end_ids)
        pool: dict[str, list[Negative]] = {}
        for c in drawn:
            negatives = pool.setdefault(c.id, [])
            negatives.append(Negative(c.id, c.sample, c.sample, c.text, c.token_ids, -c.sample / 9, c.log_prob))
        self.used = {name: nearest_first(ranked, 2) for name, ranked in pool.items()}
        self.groups, _ = preference_groups(renderer, examples, self.used, 120)
        targets, _ = preference_groups(renderer, examples, dict.fromkeys(pool, ()), 120)
        assert all(not group.negatives for group in targets)
        self.scored = self._score("stored", self.groups)
        self.sampler = sampler_reference(self._score("targets", targets), self.groups, self.used)

    def _score(self, name: str, groups: list[Group]) -> dict[str, Tensor]:
        folder = self.folder / name
        folder.mkdir()
        score_reference(folder, Local(3, 1), Scoring(self.sft, "float32", hardware()), groups, "cpu")
        return read_reference(folder)

    def run_align(self, name: str, stored: StoredScores, objective: Objective) -> tuple[dict[str, Any], list[Record]]:
        folder, records = self.folder / name, list[Record]()
        folder.mkdir()
        training = Training(NoAdapter(), optim(batch_size=4, epochs=3), hardware(), 0, records.append)
        return align(folder, self.sft, "float32", self.groups, stored, objective, training), records


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> SampledPool:
    return SampledPool(tmp_path_factory.mktemp("sampled"))


def test_sampler_reference_equals_scored_reference(sampled: SampledPool) -> None:
    for name, scores in sampled.scored.items():
        assert sampled.sampler[name].tolist() == pytest.approx(scores.tolist(), abs=1e-3)


def test_align_sampler_reference_trains_as_stored_reference(sampled: SampledPool) -> None:
    stored, sampler = (
        sampled.run_align(name, StoredScores(scores), self_contrast(0.5))
        for name, scores in (("by-stored", sampled.scored), ("by-sampler", sampled.sampler))
    )
    for summary, records in (stored, sampler):
        assert records[0]["step0/margin_std"] == pytest.approx(0, abs=1e-3)
        assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
        assert "target_log_prob_change" in summary
    assert [r["loss"] for r in sampler[1]] == pytest.approx([r["loss"] for r in stored[1]], abs=1e-2)
    assert stored[1][-1]["margin"] > 0.1


def test_align_without_reference_rewards_are_log_probabilities(sampled: SampledPool) -> None:
    """Rewards are beta times the policy's log-probabilities. No change from a reference is recorded."""
    zeros = {group.id: torch.zeros(len(group.responses)) for group in sampled.groups}
    summary, records = sampled.run_align("by-none", StoredScores(zeros, reference_is_model=False), self_contrast(0.5))
    margins = [0.5 * (scores[0] - scores[1:]) for scores in sampled.scored.values()]
    expected = [torch.log1p(torch.exp(-margin)).mean() for margin in margins]
    assert records[0]["loss"] == pytest.approx(float(sum(expected)) / 4, abs=1e-3)
    assert records[0]["margin"] == pytest.approx(float(sum(m.mean() for m in margins)) / 4, abs=1e-3)
    assert records[0]["chosen_reward"] == pytest.approx(0.5 * records[0]["chosen_log_prob"], abs=1e-4)
    for record in records:
        assert not {"step0/margin_std", "chosen_log_prob_change", "kl_reference_policy_on_negatives"} & record.keys()
    assert not {"displaced", "target_log_prob_change"} & summary.keys()


def test_align_dft_initial_importance_weights_are_one(sampled: SampledPool) -> None:
    """At the first step the policy equals the sampler, so at tau = 1 the term of the negatives is 0."""
    signals = select_signals(DISCRIMINATIVE, sampled.groups, sampled.used, {})
    _, records = sampled.run_align("dft", StoredScores(sampled.scored, signals), DISCRIMINATIVE)
    assert records[0]["loss"] == pytest.approx(-records[0]["chosen_log_prob"], abs=1e-3)
    assert records[-1]["chosen_log_prob"] > records[0]["chosen_log_prob"] + 1
