"""Test models in which responses cannot share a prompt: compare their rows with one plain pass per sequence."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    MambaConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)

from padded import SHAPE, VOCABULARY, gradients, ragged, relative
from selfcontrast.models.loading import load_model
from selfcontrast.models.log_probs import response_log_probs, self_check
from selfcontrast.models.packing import Group, pack
from selfcontrast.models.rows import why_unshared
from selfcontrast.models.shared_prompt import is_shared, use_shared_prompt

EXPERTS = {"num_experts_per_tok": 2, "pad_token_id": 0, "head_dim": 8}
LINEAR = {f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim")} | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
STATE_SPACE = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
GEMMA2 = Gemma2Config(
    **SHAPE, head_dim=8, sliding_window=5, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, pad_token_id=0
)
QWEN3_NEXT = Qwen3NextConfig(
    **SHAPE | {"num_hidden_layers": 4},
    **EXPERTS,
    **LINEAR,
    num_experts=4,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
)
CONFIGS: dict[str, tuple[Any, str]] = {
    "gemma2": (GEMMA2, "soft-capped"),
    "gpt-oss": (GptOssConfig(**SHAPE, **EXPERTS, num_local_experts=4, sliding_window=5, rope_parameters=ROPE), "sinks"),
    "qwen3-next": (QWEN3_NEXT, "linear_attention"),
    "lfm2": (Lfm2Config(**SHAPE, layer_types=["conv", "full_attention", "conv"], pad_token_id=0), "type conv"),
    "falcon-h1 with scaled logits": (
        FalconH1Config(**SHAPE, **STATE_SPACE, lm_head_multiplier=0.5, pad_token_id=0),
        "type hybrid",
    ),
    "mamba": (
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, pad_token_id=0),
        "linear_attention",
    ),
    "recurrent gemma": (
        RecurrentGemmaConfig(
            **SHAPE, block_types=("recurrent", "recurrent", "attention"), lru_width=32, logits_soft_cap=3.0
        ),
        "convolutions",
    ),
    "bloom": (BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2), "AttentionInterface"),
}


def float64_model(config: Any) -> nn.Module:
    """Build a float64 model with random weights. Its attention and its experts use the eager implementation."""
    torch.manual_seed(0)
    options = {"attn_implementation": "eager"} if config.model_type != "mamba" else {}
    model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float64, **options)
    if hasattr(config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # grouped products do not support float64
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
    built: nn.Module = model.eval()
    return built


def separate_passes(model: nn.Module, groups: list[Group]) -> Tensor:
    """Return log-probabilities [B, K + 1] from one forward pass per sequence."""
    columns = max(len(group.responses) for group in groups)
    sums = torch.zeros(len(groups), columns, dtype=torch.float64)
    for row, group in enumerate(groups):
        for column, response in enumerate(group.responses):
            logits = model(input_ids=torch.tensor([[*group.prompt, *response]])).logits[0].log_softmax(-1)
            at = torch.arange(len(response)) + len(group.prompt) - 1
            sums[row, column] = logits[at, torch.tensor(response)].sum()
    return sums


@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_equal_one_forward_pass_per_sequence(name: str) -> None:
    config, reason = CONFIGS[name]
    plain, model = float64_model(config), float64_model(config)
    assert reason in str(why_unshared(model))
    for groups in (ragged(0), ragged(1, (2,)), ragged(2, (0, 0))):
        with torch.no_grad():
            expected = separate_passes(plain, groups)
        for sharing in (True, False):  # with sharing=True, the packed row is split into separate rows
            with torch.no_grad():
                actual = response_log_probs(model, pack(groups, sharing), chunk_size=16)
            assert relative(actual, expected) <= 1e-6  # some operations, such as norms, use float32
    assert not is_shared(model)


@pytest.mark.parametrize("name", ["gemma2", "gpt-oss", "qwen3-next"])
@pytest.mark.parametrize("sharing", [True, False])
def test_gradients_equal_one_forward_pass_per_sequence(name: str, sharing: bool) -> None:
    plain, model = float64_model(CONFIGS[name][0]), float64_model(CONFIGS[name][0])
    groups = ragged(3)
    actual = gradients(model, response_log_probs(model, pack(groups, sharing), chunk_size=7))
    assert relative(actual, gradients(plain, separate_passes(plain, groups))) <= 1e-6


@pytest.mark.parametrize(
    "config", [CohereConfig(**SHAPE, logit_scale=0.25), GraniteConfig(**SHAPE, logits_scaling=4.0)]
)
def test_scaled_logits_with_shared_prompts_equal_separate_passes(config: Any) -> None:
    plain, model, groups = float64_model(config), float64_model(config), ragged(4)
    actual, expected = response_log_probs(model, pack(groups), chunk_size=7), separate_passes(plain, groups)
    assert is_shared(model)
    assert relative(actual, expected) <= 1e-6
    assert relative(gradients(model, actual), gradients(plain, expected)) <= 1e-5


def test_use_shared_prompt_applies_soft_caps_that_sdpa_ignores(tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(GEMMA2))
    assert model.config._attn_implementation == "sdpa"
    ids = torch.tensor([[1, 2, 3, 4]])
    uncapped = model(ids).logits
    use_shared_prompt(model)
    capped = model(ids).logits
    assert relative(uncapped, capped) > 1e-3
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(load_model(tmp_path)(ids).logits, capped)  # sampling loads models with load_model


def test_self_check_passes_with_separate_rows() -> None:
    model = AutoModelForCausalLM.from_config(copy.deepcopy(QWEN3_NEXT))
    assert self_check(model, ragged(5), 1e-4) <= 1e-4
