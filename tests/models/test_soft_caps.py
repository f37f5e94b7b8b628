"""Test that loaded models apply soft caps on attention logits. SDPA, transformers' default, ignores these caps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2ForSequenceClassification,
    Gemma2Model,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
)

from benchmark_cases import lm_eval
from selfcontrast.data.rendering import Renderer
from selfcontrast.evaluation.lm_eval_run import open_lm
from selfcontrast.filters.encode import SentenceEncoder
from selfcontrast.models.reward import RewardModel
from selfcontrast.models.rows import use_exact_attention
from tiny import tokenizer

PROMPT, ANSWER = "what is the name of the cat?", "the cat sat on the mat"


def save_model(folder: Path, cls: Any) -> Path:
    """Save a Gemma-2 model with random weights. Its cap is so low that it changes the results."""
    tokenizer_ = tokenizer()
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer_), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=128, initializer_range=0.5, num_labels=1,
        attn_logit_softcapping=0.5, pad_token_id=tokenizer_.pad_token_id, eos_token_id=tokenizer_.eos_token_id,
    )  # fmt: skip
    cls(config).save_pretrained(str(folder))
    tokenizer_.save_pretrained(str(folder))
    return folder


def load_with_attention(folder: Path, cls: Any, attention: str) -> Any:
    return cls.from_pretrained(str(folder), attn_implementation=attention).eval()


def assert_equals_eager(result: Any, eager: Any, sdpa: Any) -> None:
    assert np.abs(np.asarray(eager) - np.asarray(sdpa)).max() > 1e-2
    np.testing.assert_allclose(result, eager, atol=1e-4)


@torch.inference_mode()
def test_use_exact_attention_reads_the_cap_of_a_nested_text_config(tmp_path: Path) -> None:
    """PaliGemma 2 has the settings of its Gemma-2 in a nested config."""
    text = {
        "model_type": "gemma2", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.5,
        "attn_logit_softcapping": 0.5,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "projection_dim": 32,
    }  # fmt: skip
    torch.manual_seed(0)
    config = PaliGemmaConfig(text_config=text, vision_config=vision, image_token_index=63)
    PaliGemmaForConditionalGeneration(config).save_pretrained(str(tmp_path))
    ids = torch.arange(1, 13)[None]
    model = load_with_attention(tmp_path, PaliGemmaForConditionalGeneration, "sdpa")
    use_exact_attention(model)
    eager, sdpa = (load_with_attention(tmp_path, type(model), name)(input_ids=ids).logits for name in ("eager", "sdpa"))
    assert_equals_eager(model(input_ids=ids).logits, eager, sdpa)


@torch.inference_mode()
def test_reward_model_with_soft_caps_equals_eager_attention(tmp_path: Path) -> None:
    folder = save_model(tmp_path, Gemma2ForSequenceClassification)
    dialogue = [{"role": "user", "content": PROMPT}]
    messages = [*dialogue, {"role": "assistant", "content": ANSWER}]
    ids = tokenizer().apply_chat_template(messages, return_tensors="pt", return_dict=False)
    settings = RewardModel(str(folder), None, "float32", 128, "last_token", trust_remote_code=False, batch_size=2)
    with settings.open("cpu") as reward:
        actual = reward([(dialogue, ANSWER)])
    eager, sdpa = (
        load_with_attention(folder, Gemma2ForSequenceClassification, name)(ids).logits[:, 0]
        for name in ("eager", "sdpa")
    )
    assert_equals_eager(actual, eager, sdpa)


@torch.inference_mode()
def test_lm_eval_of_a_model_with_soft_caps_equals_eager_attention(tmp_path: Path) -> None:
    folder = save_model(tmp_path, Gemma2ForCausalLM)
    prompt, answer = (tokenizer()(text)["input_ids"] for text in (PROMPT, ANSWER))

    def log_likelihood(attention: str) -> float:
        logits = (
            load_with_attention(folder, Gemma2ForCausalLM, attention)(torch.tensor([prompt + answer]))
            .logits[0]
            .log_softmax(-1)
        )
        return float(sum(logits[len(prompt) - 1 + at, token] for at, token in enumerate(answer)))

    with open_lm(lm_eval(), folder, Renderer(tokenizer()), "cpu", special_tokens=False) as lm:
        ((measured, _),) = lm._loglikelihood_tokens([((PROMPT, ANSWER), prompt, answer)], disable_tqdm=True)
    assert_equals_eager(measured, log_likelihood("eager"), log_likelihood("sdpa"))


@pytest.mark.parametrize("text", [PROMPT, ANSWER])
def test_encoder_with_soft_caps_equals_eager_attention(text: str, tmp_path: Path) -> None:
    save_model(tmp_path / "plain", Gemma2Model)

    def build_encoder(attention: str) -> SentenceTransformer:
        layer = Transformer(str(tmp_path / "plain"), model_kwargs={"attn_implementation": attention})
        return SentenceTransformer(modules=[layer, Pooling(32, "mean")], device="cpu")

    build_encoder("sdpa").save(str(tmp_path / "encoder"))
    encoder = SentenceEncoder(
        str(tmp_path / "encoder"),
        None,
        "",
        None,
        "float32",
        64,
        "cut",
        trust_remote_code=False,
        batch_size=4,
        devices=[],
    )
    with encoder.open("cpu") as encode:
        actual = encode([text])
    eager, sdpa = (build_encoder(name).encode([text], normalize_embeddings=True) for name in ("eager", "sdpa"))
    assert_equals_eager(actual, eager, sdpa)
