"""Test micro-batches that fill a GPU's memory: compare estimated with measured bytes per token."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import LlamaConfig, LlamaForCausalLM

from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.training import fit as fit_module
from selfcontrast.training import hardware as hardware_module
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.memory import MAX_TOKENS, MIN_TOKENS, bytes_per_token, reserved_bytes, token_budget
from selfcontrast.training.sft import SupervisedFineTuning
from selfcontrast.training.steps import MicroBatch
from tiny import groups, hardware, llama, optim

MIXED = {"precision": "bf16-mixed", "logits_chunk": 64}


def peak_bytes(policy: Any, tokens: int) -> float:
    """Return the peak bytes of a forward and backward pass, measured by torch's MemTracker."""
    policy.zero_grad()
    part = [1] * (tokens // 3)
    tracker = MemTracker()
    tracker.track_external(policy)
    with tracker, torch.autocast("cpu", torch.bfloat16):
        response_log_probs(policy, pack([Group("a", part, part, [part])]), 64).sum().backward()
    return float(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
def test_bytes_per_token_is_near_measured_peak(checkpointing: Any) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4
    )
    policy = LlamaForCausalLM(config).train()
    use_shared_prompt(policy, "blocks")
    expected = bytes_per_token(policy, hardware(gradient_checkpointing=checkpointing, **MIXED))
    assert policy.is_gradient_checkpointing == bool(checkpointing)
    measured = (peak_bytes(policy, 384) - peak_bytes(policy, 192)) / 192
    assert 0.5 * expected <= measured <= 1.25 * expected


def test_bytes_per_token_selective_adds_kept_results() -> None:
    policy = llama().train()
    use_shared_prompt(policy, "varlen")
    none, full, selective = (
        bytes_per_token(policy, hardware(gradient_checkpointing=checkpointing, **MIXED))
        for checkpointing in (False, True, "selective")
    )
    # The model has two layers of width 32 with a key head of 16. Each layer keeps q, k, v, o (32 + 16 + 16 + 32) and
    # attention's output (32) in 2 bytes per number, and a log-sum-exp for each of two heads in 4 bytes.
    assert selective - full == pytest.approx(2 * ((32 + 16 + 16 + 32 + 32) * 2 + 2 * 4))
    assert full < none


def test_bytes_per_token_leaves_policy_and_random_state_unchanged() -> None:
    policy, before = llama().train(), torch.get_rng_state()
    bytes_per_token(policy, hardware(**MIXED))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in policy.parameters())


def test_token_budget_equals_hand_computation() -> None:
    # 0.8 * (10e9 - 2e9) / 1e6 = 6400 tokens, in whole steps of 1024.
    assert token_budget(10**10, 2 * 10**9, 1e6) == 6 * 1024
    assert token_budget(10**10, 2 * 10**10, 1e6) == MIN_TOKENS
    assert token_budget(10**12, 0, 1e3) == MAX_TOKENS


def test_reserved_bytes_equal_hand_computation() -> None:
    policy, hardware_config = llama(vocabulary=50), hardware(**MIXED)
    weights = sum(p.numel() for p in policy.parameters())
    matrices = 50 * 32 + 2 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64)
    logits = 64 * 50 * 8 + 50 * 32 * 6
    assert reserved_bytes(policy, [], hardware_config) == 3 * 4 * weights + logits + 2 * matrices
    optimizer = torch.optim.AdamW(policy.parameters())
    sum(p.sum() for p in policy.parameters()).backward()
    optimizer.step()
    assert reserved_bytes(policy, [optimizer], hardware_config) == 4 * weights + logits + 2 * matrices
    assert reserved_bytes(policy, [optimizer], hardware(**MIXED, bf16_copy=True)) == 4 * weights + logits


def test_max_tokens_per_microbatch_auto_on_cpu_is_8192() -> None:
    assert hardware(max_tokens_per_microbatch="auto").fixed_tokens_per_microbatch() == 8192
    assert hardware(max_tokens_per_microbatch=77).fixed_tokens_per_microbatch() == 77


def test_fit_auto_on_gpu_measures_after_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A CPU stands in for the GPU, and the test sets the budget."""
    calls: list[tuple[int, float]] = []

    def fake_budget(policy: Any, optimizers: Any, hardware_config: Any, per_token: float) -> int:
        calls.append((len(list(optimizers)), per_token))
        return 30

    hardware_config, settings = hardware(max_tokens_per_microbatch="auto"), optim(validations=1)
    policy, rows, tokens_per_microbatch = llama(), groups(10), []
    expected = bytes_per_token(policy, hardware_config)
    prepare(policy, rows, hardware_config)
    data = StepData(rows, groups(3, seed=1), settings, hardware_config, seed=3)
    module = SupervisedFineTuning(policy, settings, len(data.steps()), 7, lambda record: None)
    losses = module.losses

    def count_tokens(microbatch: MicroBatch) -> Any:
        tokens_per_microbatch.append(microbatch.packed.input_ids.shape[1])
        return losses(microbatch)

    monkeypatch.setattr(module, "losses", count_tokens)
    monkeypatch.setattr(fit_module, "gpu_token_budget", fake_budget)
    monkeypatch.setattr(hardware_module.Hardware, "device", "cuda")
    with caplog.at_level(logging.INFO):
        fit(module, data, tmp_path, "test")
    assert calls == [(1, expected)]
    assert max(tokens_per_microbatch) <= 30
    assert "hardware.max_tokens_per_microbatch=auto: 30 tokens" in caplog.messages
