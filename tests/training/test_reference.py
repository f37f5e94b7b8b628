"""Test that stored reference scores equal those of a plain forward pass."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.models.adapters import Adapter, NoAdapter
from selfcontrast.models.loading import load_model
from selfcontrast.models.packing import Group
from selfcontrast.training.align import align
from selfcontrast.training.dpo import SelfContrastDPO
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.groups import StoredScores
from selfcontrast.training.hardware import Hardware
from selfcontrast.training.packed_module import Record
from selfcontrast.training.reference import (
    FILE,
    Scoring,
    read_reference,
    score_groups,
    score_in_microbatches,
    score_reference,
)
from selfcontrast.training.steps import Steps
from selfcontrast.training.training import Training
from tiny import groups, hardware, llama, lora, optim, policy_folder, self_contrast

GROUPS = groups(7, negatives=3)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_folder(tmp_path_factory.mktemp("policy"))


def score(folder: Path, scoring: Scoring) -> None:
    score_reference(folder, Local(3, 1), scoring, GROUPS, "cpu")


def log_probs_of(group: Group, response: list[int]) -> list[float]:
    """Return the log-probabilities of a response's tokens, computed in a separate row."""
    with torch.no_grad():
        logits = llama()(torch.tensor([group.prompt + response])).logits[0].log_softmax(-1)
    return [float(logits[len(group.prompt) - 1 + i, token]) for i, token in enumerate(response)]


@pytest.mark.parametrize("max_tokens_per_microbatch", [1, 10**6])
def test_score_reference_equals_plain_forward(tmp_path: Path, policy: Path, max_tokens_per_microbatch: int) -> None:
    score(tmp_path, Scoring(policy, "float32", hardware(max_tokens_per_microbatch=max_tokens_per_microbatch)))
    rows = {row["id"]: row["log_probs"] for row in pq.read_table(tmp_path / FILE).to_pylist()}
    summed = read_reference(tmp_path)
    assert rows.keys() == summed.keys() == {group.id for group in GROUPS}
    for group in GROUPS:
        expected = [log_probs_of(group, response) for response in group.responses]
        for log_probs, plain_log_probs in zip(rows[group.id], expected, strict=True):
            assert log_probs == pytest.approx(plain_log_probs, abs=1e-4)
        assert summed[group.id].tolist() == pytest.approx([sum(log_probs) for log_probs in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("weights", "precision"), [("float32", "32-true"), ("float32", "bf16-mixed"), ("bfloat16", "32-true")]
)
def test_fit_stored_reference_has_zero_margin_at_start(
    tmp_path: Path, policy: Path, weights: str, precision: str
) -> None:
    """Policy and reference have the same weights and must use the same arithmetic."""
    hardware_config = hardware(precision=precision)
    score(tmp_path, Scoring(policy, weights, hardware_config))
    settings = optim(batch_size=7, epochs=1)
    objective = self_contrast(1.0)
    records: list[Record] = []
    data, model = StepData(GROUPS, [], settings, hardware_config, 0), load_model(policy, weights)
    prepare(model, GROUPS, hardware_config)
    module = SelfContrastDPO(model, settings, 1, 7, records.append, objective, StoredScores(read_reference(tmp_path)))
    fit(module, data, tmp_path, "test")
    assert records[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert records[0]["chosen_log_prob_change"] == pytest.approx(0, abs=1e-4)
    assert records[0]["step0/margin_std"] == pytest.approx(0, abs=1e-4)
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


def run_align(
    folder: Path, policy: Path, hardware_config: Hardware, reference: dict[str, torch.Tensor], adapter: Adapter
) -> list[Record]:
    objective, records = self_contrast(1.0), list[Record]()
    settings = optim(batch_size=4, epochs=1)
    training = Training(adapter, settings, hardware_config, 0, records.append)
    align(folder, policy, "float32", GROUPS, StoredScores(reference), objective, training)
    return records


@pytest.mark.parametrize("adapter", [NoAdapter(), lora(dropout=0.0)], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": "selective", "bf16_copy": True}], ids=str)
def test_align_rescored_reference_has_zero_margin_in_bf16(
    tmp_path: Path, policy: Path, adapter: Adapter, options: dict[str, Any]
) -> None:
    """Stored scores come from micro-batches of one group. Training's micro-batches hold several groups."""
    hardware_config = hardware(precision="bf16-mixed", max_tokens_per_microbatch=10**6, logits_chunk=64, **options)
    score(tmp_path, Scoring(policy, "float32", replace(hardware_config, max_tokens_per_microbatch=1)))
    stored = read_reference(tmp_path)
    before = run_align(tmp_path / "before", policy, hardware_config, stored, adapter)[0]
    after = run_align(tmp_path / "after", policy, replace(hardware_config, rescore_reference=True), stored, adapter)
    assert before["step0/margin_std"] > 0
    assert after[0]["step0/margin_std"] == 0
    assert after[0]["margin"] == after[0]["chosen_log_prob_change"] == 0
    assert after[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert len(after) == 2
    assert after[1]["margin"] != 0


def test_score_in_microbatches_two_ranks_cover_every_group() -> None:
    policy, hardware_config = llama(), hardware(max_tokens_per_microbatch=40)
    steps = [Steps(GROUPS, 4, 2, 40, 0, ranks=(rank, 2)) for rank in range(2)]
    scores = score_in_microbatches(policy, steps, hardware_config)
    assert scores.keys() == {group.id for group in GROUPS}
    for group in GROUPS:
        expected = [sum(log_probs_of(group, response)) for response in group.responses]
        assert scores[group.id].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "options", [{"strategy": "fsdp2"}, {"max_tokens_per_microbatch": "auto"}, {"compile": True}], ids=str
)
def test_hardware_rescore_reference_unsupported_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^hardware\.rescore_reference=true"):
        hardware(rescore_reference=True, **options)


def test_fit_margin_at_step_0_is_recorded_once_and_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reference of each target is one nat too low, so at beta = 0.5 every margin is 0.5."""
    policy, settings = llama(), optim(batch_size=4, epochs=1, lr=1e-9)
    hardware_config = hardware(max_tokens_per_microbatch=60)
    prepare(policy, GROUPS, hardware_config)
    scored = score_groups(policy, GROUPS, hardware_config)
    reference = {name: torch.tensor([sum(tokens) for tokens in rows]) for name, rows in scored.items()}
    for scores in reference.values():
        scores[0] -= 1.0
    objective = self_contrast(0.5)
    records: list[Record] = []
    module = SelfContrastDPO(
        policy, settings, 2, hardware_config.logits_chunk, records.append, objective, StoredScores(reference)
    )
    fit(module, StepData(GROUPS, [], settings, hardware_config, 0), tmp_path, "test")
    assert records[0]["step0/margin_std"] == pytest.approx(0.5, abs=1e-4)
    assert "step0/margin_std" not in records[1]
    (message,) = [r.getMessage() for r in caplog.records if "step 0" in r.getMessage()]
    assert "margins" in message
    assert " 0.5 " in message


def test_score_reference_killed_resumes_from_shards(tmp_path: Path, policy: Path) -> None:
    scoring = Scoring(policy, "float32", hardware())
    score(tmp_path, scoring)
    content, shards = (tmp_path / FILE).read_bytes(), sorted((tmp_path / "resume").iterdir())
    assert len(shards) == 3
    kept = shards[1].stat().st_mtime_ns
    shards[0].unlink()
    (tmp_path / FILE).unlink()
    score(tmp_path, scoring)
    assert (tmp_path / FILE).read_bytes() == content
    assert shards[1].stat().st_mtime_ns == kept
