"""Test base models and policy folders."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.models.loading import (
    FromScratch,
    Pretrained,
    folder_hash,
    load_model,
    load_tokenizer,
    save_policy,
    train_tokenizer,
)
from selfcontrast.models.shared_prompt import use_shared_prompt
from tiny import CORPUS, TEMPLATE, llama, policy_folder, tokenizer

SCRATCH = FromScratch(
    vocabulary=280,
    hidden=32,
    layers=2,
    heads=2,
    intermediate=48,
    max_length=64,
    init_std=0.02,
    chat_template=TEMPLATE,
    dtype="float32",
)


def pretrained(path: Path | str, **changes: Any) -> Pretrained:
    model = Pretrained(str(path), None, None, [], "float32", trust_remote_code=False, local_files_only=True)
    return replace(model, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return policy_folder(tmp_path / "policy")


def test_from_scratch_start_is_seeded() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    (first, tokenizer_), (same, _), (other, _) = (SCRATCH.start(CORPUS, seed) for seed in (0, 0, 5))
    assert torch.equal(torch.rand(1), expected)  # the global random state is unchanged
    weights = [model.lm_head.weight for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.config.vocab_size == len(tokenizer_) == 280
    assert weights[0].std().item() == pytest.approx(0.02, rel=0.05)
    assert first.config.max_position_embeddings == 64


def test_from_scratch_weights_have_the_configured_dtype() -> None:
    model, _ = replace(SCRATCH, dtype="bfloat16").start(CORPUS, 0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("wrong", [{"hidden": 30, "heads": 4}, {"hidden": 12, "heads": 4}, {"dtype": "int8"}], ids=str)
def test_from_scratch_invalid_settings_raise(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"model\."):
        replace(SCRATCH, **wrong)


def test_chat_template_file_equals_inline_template(tmp_path: Path) -> None:
    (tmp_path / "custom.jinja").write_text(TEMPLATE)
    from_file = replace(SCRATCH, chat_template=str(tmp_path / "custom.jinja"))
    from_file.check()
    assert from_file.fingerprint() == SCRATCH.fingerprint()  # identified by content, not by path
    with pytest.raises(UserError, match=r"model\.chat_template=none\.jinja"):
        replace(SCRATCH, chat_template="none.jinja").check()


def test_train_tokenizer_round_trips_any_text() -> None:
    tokenizer_ = train_tokenizer(CORPUS, 300, 64)
    assert len(tokenizer_.tokenize(" cat")) == 1
    for text in (*CORPUS, "Zürich 你好 🙂\n\ttab", "  two  spaces , kept ."):
        assert tokenizer_.decode(tokenizer_(text)["input_ids"]) == text
    for special in ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"):
        assert len(tokenizer_(special)["input_ids"]) == 1
        assert tokenizer_.decode(tokenizer_(special)["input_ids"], skip_special_tokens=True) == ""
    assert (tokenizer_.pad_token, tokenizer_.eos_token) == ("<|pad|>", "<|end|>")


def test_save_policy_folder_loads_without_this_package(folder: Path) -> None:
    model, tokenizer_ = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer_.chat_template == TEMPLATE
    assert all(torch.equal(value, llama().state_dict()[name]) for name, value in model.state_dict().items())
    assert model.config._attn_implementation == "sdpa"
    generation = GenerationConfig.from_pretrained(folder)
    assert set(generation.eos_token_id) == Renderer(tokenizer_).end_ids  # generation stops at the end of the turn
    assert generation.pad_token_id == tokenizer_.pad_token_id
    assert (folder / "README.md").read_text() == "# a card\n"
    assert {file.suffix for file in folder.iterdir()} == {".json", ".jinja", ".md", ".safetensors"}


def test_save_policy_in_shared_prompt_mode_resets_attention(tmp_path: Path) -> None:
    model = llama()
    use_shared_prompt(model)
    save_policy(tmp_path, model, tokenizer(), "")
    assert "shared_prompt" not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_load_model_returns_eval_mode_and_requested_dtype(folder: Path) -> None:
    model = load_model(folder, "bfloat16")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert load_tokenizer(folder)("cat")["input_ids"] == tokenizer()("cat")["input_ids"]


def test_weights_other_than_safetensors_raise(folder: Path) -> None:
    torch.save(llama().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(folder)
    with pytest.raises(UserError, match=r"model\.path=.*\*\.safetensors"):
        pretrained(folder).check()


def test_pretrained_start_loads_the_folder(folder: Path) -> None:
    base = pretrained(folder)
    base.check()
    model, tokenizer_ = base.start([], 0)
    assert torch.equal(model.lm_head.weight, llama().lm_head.weight)
    assert tokenizer_.chat_template == TEMPLATE


def test_pretrained_chat_template_replaces_that_of_the_tokenizer(folder: Path) -> None:
    other = TEMPLATE.replace("<|assistant|>", "<|assistant|>\n").replace(
        "{{ message.role }}|>", "{{ message.role }}|>\n"
    )
    changed = pretrained(folder, chat_template=other)
    changed.check()
    assert changed.start([], 0)[1].chat_template == other
    assert changed.fingerprint() != pretrained(folder).fingerprint()


def test_tokenizer_without_padding_pads_with_eos(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer_ = pretrained(folder).start([], 0)[1]
    assert tokenizer_.pad_token == tokenizer_.eos_token == "<|end|>"


def test_pretrained_check_incomplete_folders_raise(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path=\./nowhere"):
        pretrained("./nowhere").check()
    with pytest.raises(UserError, match=r"model\.path=.*config\.json"):
        pretrained(tmp_path).check()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        pretrained(folder).check()
    pretrained(folder, chat_template=TEMPLATE).check()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    with pytest.raises(UserError, match=r"model\.path=.*tokenizer"):
        pretrained(folder).check()


def test_pretrained_fingerprint_depends_on_content_not_path(folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert pretrained(moved).fingerprint() == pretrained(folder).fingerprint()
    assert folder_hash(moved) == folder_hash(folder)
    base = pretrained(folder)
    assert replace(base, local_files_only=False).fingerprint() == base.fingerprint()
    assert replace(base, dtype="bfloat16").fingerprint() != base.fingerprint()
    weights = (moved / "model.safetensors").read_bytes()
    (moved / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert pretrained(moved).fingerprint() != base.fingerprint()


# --- chat templates of the package, and added tokens

DIALOGUE: Any = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]


@pytest.mark.parametrize(
    ("template", "prompt", "answer"),
    [
        (
            "zephyr",
            "<|system|>\n<|end|>\n<|user|>\nOne?<|end|>\n<|assistant|>\nTwo.<|end|>\n<|user|>\nThree?<|end|>\n<|assistant|>\n",
            "Four.<|end|>",
        ),
        (
            "openchat",
            "GPT4 Correct User: One?<|end_of_turn|>GPT4 Correct Assistant: Two.<|end_of_turn|>"
            "GPT4 Correct User: Three?<|end_of_turn|>GPT4 Correct Assistant:",
            " Four.<|end_of_turn|>",
        ),
    ],
)
def test_package_templates_render_as_the_reference(folder: Path, template: str, prompt: str, answer: str) -> None:
    """The reference implementation samples with this rendering. This package also trains and evaluates with it."""
    added = [] if template == "zephyr" else ["<|end_of_turn|>"]
    model = pretrained(folder, chat_template=template, added_tokens=added)
    model.check()
    _, tokenizer_ = model.start([], 0)
    renderer = Renderer(tokenizer_)
    assert tokenizer_.decode(renderer.prompt(DIALOGUE)) == prompt
    assert tokenizer_.decode(renderer.response(DIALOGUE, "Four.")) == answer
    system: Any = [{"role": "system", "content": "Be brief."}, *DIALOGUE[:1]]
    prompt_text = tokenizer_.decode(renderer.prompt(system))
    assert prompt_text.startswith(
        "<|system|>\nBe brief.<|end|>\n<|user|>" if template == "zephyr" else "Be brief.<|end_of_turn|>GPT4"
    )


def test_added_tokens_start_at_the_mean_embedding(folder: Path) -> None:
    before = llama()
    model, tokenizer_ = pretrained(folder, added_tokens=["<|end_of_turn|>", "<|other|>"]).start([], 0)
    count = len(tokenizer())
    assert tokenizer_.convert_tokens_to_ids(["<|end_of_turn|>", "<|other|>"]) == [count, count + 1]
    assert model.config.vocab_size == count + 2
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert torch.equal(layer.weight[:count], before.model.embed_tokens.weight)
        torch.testing.assert_close(layer.weight[count], before.model.embed_tokens.weight.mean(dim=0))
        assert torch.equal(layer.weight[count], layer.weight[count + 1])
    assert tokenizer_("a<|end_of_turn|>b")["input_ids"].count(count) == 1


def test_added_tokens_that_exist_raise(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.added_tokens.*<\|end\|>\."):
        pretrained(folder, added_tokens=["<|end|>", "<|new|>"]).check()
