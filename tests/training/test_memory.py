"""Passes that fill a GPU's memory: what a token is expected to take, beside what it takes."""

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
from selfcontrast.training.memory import LEAST, MOST, bytes_per_token, still_to_come, tokens_that_fit
from selfcontrast.training.modules import SupervisedFineTuning
from tiny import groups, hardware, llama, optim

MIXED = {"precision": "bf16-mixed", "logits_chunk": 64}


def peak(policy: Any, tokens: int) -> float:
    """Bytes at the highest moment of a forward and backward pass, by torch's own tracker of every storage."""
    policy.zero_grad()
    part = [1] * (tokens // 3)
    tracker = MemTracker()
    tracker.track_external(policy)
    with tracker, torch.autocast("cpu", torch.bfloat16):
        response_log_probs(policy, pack([Group("a", part, part, [part])]), 64).sum().backward()
    return float(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


@pytest.mark.parametrize("how", [False, True, "selective"])
def test_a_token_takes_what_is_expected(how: Any) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4
    )
    policy = LlamaForCausalLM(config).train()
    use_shared_prompt(policy, "blocks")
    expected = bytes_per_token(policy, hardware(gradient_checkpointing=how, **MIXED))
    assert policy.is_gradient_checkpointing == bool(how)
    found = (peak(policy, 384) - peak(policy, 192)) / 192
    assert 0.5 * expected <= found <= 1.25 * expected


def test_the_order_of_what_checkpointing_takes() -> None:
    policy = llama().train()
    use_shared_prompt(policy, "varlen")
    none, full, selective = (
        bytes_per_token(policy, hardware(gradient_checkpointing=how, **MIXED)) for how in (False, True, "selective")
    )
    # Two layers of width 32 with a key head of 16: q, k, v and o are 32 + 16 + 16 + 32 wide, in 2 bytes; attention's
    # output 32 in 2 bytes, and for each of two heads a log-sum-exp of 4.
    assert selective - full == pytest.approx(2 * ((32 + 16 + 16 + 32 + 32) * 2 + 2 * 4))
    assert full < none


def test_counting_leaves_the_policy_as_it_was() -> None:
    policy, before = llama().train(), torch.get_rng_state()
    bytes_per_token(policy, hardware(**MIXED))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in policy.parameters())


def test_tokens_by_hand() -> None:
    # 0.8 * (10e9 - 2e9) / 1e6 = 6400 tokens, in whole steps of 1024.
    assert tokens_that_fit(10**10, 2 * 10**9, 1e6) == 6 * 1024
    assert tokens_that_fit(10**10, 2 * 10**10, 1e6) == LEAST
    assert tokens_that_fit(10**12, 0, 1e3) == MOST


def test_what_is_still_to_come_by_hand() -> None:
    policy, own = llama(vocabulary=50), hardware(**MIXED)
    weights = sum(p.numel() for p in policy.parameters())
    matrices = 50 * 32 + 2 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64)
    logits = 64 * 50 * 8 + 50 * 32 * 6
    assert still_to_come(policy, [], own) == 3 * 4 * weights + logits + 2 * matrices
    optimizer = torch.optim.AdamW(policy.parameters())
    sum(p.sum() for p in policy.parameters()).backward()
    optimizer.step()
    assert still_to_come(policy, [optimizer], own) == 4 * weights + logits + 2 * matrices
    assert still_to_come(policy, [optimizer], hardware(**MIXED, bf16_copy=True)) == 4 * weights + logits


def test_auto_on_a_cpu_is_a_fixed_number() -> None:
    assert hardware(max_tokens_per_microbatch="auto").fixed_tokens_per_microbatch() == 8192
    assert hardware(max_tokens_per_microbatch=77).fixed_tokens_per_microbatch() == 77


def test_auto_on_a_gpu_is_asked_for_once_all_weights_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The GPU is a CPU here: what is free on it is said by the test."""
    asked: list[tuple[int, float]] = []

    def fitting(policy: Any, optimizers: Any, own: Any, per_token: float) -> int:
        asked.append((len(list(optimizers)), per_token))
        return 30

    own, how = hardware(max_tokens_per_microbatch="auto"), optim(validations=1)
    policy, rows, microbatches = llama(), groups(10), []
    expected = bytes_per_token(policy, own)
    prepare(policy, rows, own)
    data = StepData(rows, groups(3, seed=1), how, own, seed=3)
    module = SupervisedFineTuning(policy, how, len(data.steps()), 7, lambda record: None)
    losses = module.losses
    monkeypatch.setattr(
        module, "losses", lambda part: microbatches.append(part.packed.input_ids.shape[1]) or losses(part)
    )
    monkeypatch.setattr(fit_module, "fitting_pass", fitting)
    monkeypatch.setattr(hardware_module.Hardware, "device", "cuda")
    with caplog.at_level(logging.INFO):
        fit(module, data, tmp_path, "test")
    assert asked == [(1, expected)]
    assert max(microbatches) <= 30
    assert "hardware.max_tokens_per_microbatch=auto: 30 tokens" in caplog.messages
