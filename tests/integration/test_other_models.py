"""Run a whole job with a model whose responses cannot share a prompt."""

import re
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from jobs import TINY_FOR_ANY_MODEL, read_result, run_train, stages
from selfcontrast.models.loading import save_policy
from tiny import tokenizer


def gemma2(folder: Path) -> Path:
    """Write a random Gemma-2 with effective soft caps and windows shorter than the rows."""
    tokens = tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        sliding_window=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    torch.manual_seed(0)
    save_policy(folder, Gemma2ForCausalLM(config), tokens, "# a card\n")
    return folder


@pytest.mark.slow
def test_gemma_2_is_trained_in_unshared_rows(tmp_path: Path) -> None:
    model = ["model=hf", f"model.path={gemma2(tmp_path / 'gemma')}", "sft.lr=1e-3"]
    data = ["data.train=240", "data.test=48", "data.validation=24"]
    ended = run_train(*TINY_FOR_ANY_MODEL, *model, *data, "encoder=lexical", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    (ratio,) = re.findall(r"align: prompts are not shared.*soft-capped.* ([0-9.]+)x the tokens", ended.stderr)
    assert float(ratio) > 1.2
    result = read_result(tmp_path / "out")
    first = next(record for record in result["histories"]["align"] if "step0/loss" in record)
    assert first["step0/margin_std"] == pytest.approx(0, abs=1e-4)
    assert first["step0/loss"] == pytest.approx(0.693147, abs=1e-4)
    assert {row["system"] for row in result["comparison"]["rows"]} == {"SFT", "Self-Contrast"}
    policy = Gemma2ForCausalLM.from_pretrained(stages(result)["align"]["path"] + "/model")
    assert policy.config.attn_logit_softcapping == 2.0
