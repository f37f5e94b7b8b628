"""Test LoRA: its initialisation, trained parameters, merging, and the checks before any compute."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from selfcontrast.errors import UserError
from selfcontrast.models.adapters import NoAdapter
from selfcontrast.models.loading import FromScratch, Pretrained
from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import pack
from selfcontrast.models.shared_prompt import use_shared_prompt
from tiny import TEMPLATE, gpt2, groups, llama, lora, policy_folder

SCRATCH = FromScratch(300, 32, 2, 2, 64, 128, 0.2, TEMPLATE, "float32")
POLICIES = {"llama": llama, "gpt2": lambda: gpt2(0.0)}


def with_random_b(policy: Any) -> Any:
    """Make B random, because adapters have no effect while B has its initial value of zero."""
    torch.manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return policy


@pytest.mark.parametrize("name", POLICIES)
def test_lora_wrap_keeps_the_log_probs_of_the_base_model(name: str) -> None:
    plain, packed = POLICIES[name](), pack(groups(3, 2))
    wrapped = lora().wrap(copy.deepcopy(plain), seed=0).eval()
    assert torch.equal(response_log_probs(wrapped, packed, 7), response_log_probs(plain, packed, 7))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_only_the_adapters(name: str, checkpointing: bool) -> None:
    policy = with_random_b(lora(dropout=0.0).wrap(POLICIES[name](), seed=0)).train()
    use_shared_prompt(policy)
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    response_log_probs(policy, pack(groups(3, 2)), 7).sum().backward()
    reached = {n for n, p in policy.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {n for n, _ in policy.named_parameters() if "lora_" in n}
    layers = sum(isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D" for m in POLICIES[name]().modules())
    assert len(reached) == 2 * (layers - 1)  # A and B of every linear layer except the output layer


def test_lora_update_is_alpha_over_rank_times_b_a() -> None:
    plain = llama()
    policy = with_random_b(lora(rank=2, alpha=6.0, dropout=0.5).wrap(copy.deepcopy(plain), seed=0))
    layer = policy.base_model.model.model.layers[1].mlp.down_proj
    update = 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = lora().merge(policy)
    torch.testing.assert_close(
        merged.model.layers[1].mlp.down_proj.weight, plain.model.layers[1].mlp.down_proj.weight + update
    )


@pytest.mark.parametrize("name", POLICIES)
def test_lora_merge_returns_a_plain_model_with_the_same_logits(name: str) -> None:
    policy = with_random_b(lora().wrap(POLICIES[name](), seed=0)).eval()
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapted, base = policy(ids).logits, POLICIES[name]()(ids).logits
        merged = lora().merge(policy)
        logits = merged(ids).logits
    assert float((adapted - base).abs().max()) > 0.1
    assert float((logits - adapted).abs().max()) <= 1e-5
    assert type(merged) is type(POLICIES[name]())
    assert merged.state_dict().keys() == POLICIES[name]().state_dict().keys()


def test_lora_wrap_is_seeded_and_keeps_the_global_random_state() -> None:
    first, same, other = (lora().wrap(llama(), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())
    policy, state = llama(), torch.get_rng_state()
    lora().wrap(policy, seed=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_adapter_returns_the_policy() -> None:
    policy = llama()
    assert NoAdapter().merge(NoAdapter().wrap(policy, 0)) is policy
    assert all(p.requires_grad for p in policy.parameters())


def test_lora_at_returns_no_adapter_for_unlisted_stages() -> None:
    both, align = lora(stages=["sft", "align"]), lora(stages=["align"])
    assert (both.at("sft"), both.at("align")) == (both, both)
    assert (align.at("sft"), align.at("align")) == (NoAdapter(), align)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["q_proj", "v_prj"], "v_prj is no linear layer of a llama.* down_proj, gate_proj, k_proj, o_proj"),
        (["proj"], "proj is no linear layer"),
        (["embed_tokens"], "embed_tokens is no linear layer"),
        (["lm_head"], "lm_head is the output layer"),
    ],
)
def test_lora_check_unknown_target_modules_raise(tmp_path: Path, names: list[str], message: str) -> None:
    folder = policy_folder(tmp_path / "policy")
    for model in (SCRATCH, Pretrained(str(folder), None, None, [], "float32", False, True)):
        with pytest.raises(UserError, match=rf"^adapter\.target_modules: {message}"):
            lora(target_modules=names).check(model)


def test_lora_trains_only_the_target_modules() -> None:
    adapter = lora(target_modules=["q_proj", "mlp.up_proj"])
    adapter.check(SCRATCH)
    trained = {n for n, p in adapter.wrap(llama(), 0).named_parameters() if p.requires_grad}
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained} == {"q_proj", "up_proj"}
    assert len(trained) == 2 * 2 * 2  # A and B of two layers in each of two blocks


def test_lora_check_random_weights_in_sft_raise() -> None:
    with pytest.raises(UserError, match=r"adapter\.stages=.*random weights.*adapter\.stages=\[align\]"):
        lora(stages=["sft", "align"]).check(SCRATCH)


def test_lora_check_without_peft_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs peft.*pip install -e '\.\[peft\]'"):
        lora().check(SCRATCH)
    NoAdapter().check(SCRATCH)


@pytest.mark.parametrize(
    "setting",
    [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"target_modules": []}, {"stages": []}, {"stages": ["evaluate"]}],
    ids=str,
)
def test_lora_invalid_settings_raise(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^adapter\.{next(iter(setting))}="):
        lora(**setting)
