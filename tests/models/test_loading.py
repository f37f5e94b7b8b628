"""Base models and policy folders."""

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
    fine = Pretrained(str(path), None, None, [], "float32", trust_remote_code=False, local_files_only=True)
    return replace(fine, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return policy_folder(tmp_path / "policy")


def test_a_model_from_scratch_is_a_function_of_its_seed() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    (one, words), (same, _), (other, _) = (SCRATCH.start(CORPUS, seed) for seed in (0, 0, 5))
    assert torch.equal(torch.rand(1), expected)  # the global generator is left as it was
    weights = [model.lm_head.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert one.config.vocab_size == len(words) == 280
    assert weights[0].std().item() == pytest.approx(0.02, rel=0.05)
    assert one.config.max_position_embeddings == 64


def test_precision_is_that_of_the_weights() -> None:
    model, _ = replace(SCRATCH, dtype="bfloat16").start(CORPUS, 0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("wrong", [{"hidden": 30, "heads": 4}, {"hidden": 12, "heads": 4}, {"dtype": "int8"}], ids=str)
def test_a_model_from_scratch_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"model\."):
        replace(SCRATCH, **wrong)


def test_a_chat_template_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    from_file = replace(SCRATCH, chat_template=str(tmp_path / "own.jinja"))
    from_file.check()
    assert from_file.fingerprint() == SCRATCH.fingerprint()  # its content decides, not where it lies
    with pytest.raises(UserError, match=r"model\.chat_template=none\.jinja: cannot be read"):
        replace(SCRATCH, chat_template="none.jinja").check()


def test_the_tokenizer_knows_its_words_and_every_other_byte() -> None:
    own = train_tokenizer(CORPUS, 300, 64)
    assert len(own.tokenize(" cat")) == 1
    for text in (*CORPUS, "Zürich 你好 🙂\n\ttab", "  two  spaces , kept ."):
        assert own.decode(own(text)["input_ids"]) == text
    for special in ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"):
        assert len(own(special)["input_ids"]) == 1
        assert own.decode(own(special)["input_ids"], skip_special_tokens=True) == ""
    assert (own.pad_token, own.eos_token) == ("<|pad|>", "<|end|>")


def test_a_policy_folder_is_transformers_own(folder: Path) -> None:
    """Loads with nothing of this package, and generates until the end of the turn."""
    model, own = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert own.chat_template == TEMPLATE
    assert all(torch.equal(value, llama().state_dict()[name]) for name, value in model.state_dict().items())
    assert model.config._attn_implementation == "sdpa"
    generation = GenerationConfig.from_pretrained(folder)
    assert set(generation.eos_token_id) == Renderer(own).end_ids
    assert generation.pad_token_id == own.pad_token_id
    assert (folder / "README.md").read_text() == "# a card\n"
    assert {file.suffix for file in folder.iterdir()} == {".json", ".jinja", ".md", ".safetensors"}


def test_a_policy_in_shared_prompt_mode_is_saved_as_an_ordinary_one(tmp_path: Path) -> None:
    model = llama()
    use_shared_prompt(model)
    save_policy(tmp_path, model, tokenizer(), "")
    assert "shared_prompt" not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


def test_load_model_and_tokenizer(folder: Path) -> None:
    model = load_model(folder, "bfloat16")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert load_tokenizer(folder)("cat")["input_ids"] == tokenizer()("cat")["input_ids"]


def test_other_weight_formats_are_not_read(folder: Path) -> None:
    torch.save(llama().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(folder)
    with pytest.raises(UserError, match=r"no \*\.safetensors there"):
        pretrained(folder).check()


def test_a_pretrained_model_starts_as_it_lies_there(folder: Path) -> None:
    own = pretrained(folder)
    own.check()
    model, words = own.start([], 0)
    assert torch.equal(model.lm_head.weight, llama().lm_head.weight)
    assert words.chat_template == TEMPLATE


def test_a_chat_template_given_replaces_the_tokenizers(folder: Path) -> None:
    other = TEMPLATE.replace("<|assistant|>", "<|assistant|>\n").replace(
        "{{ message.role }}|>", "{{ message.role }}|>\n"
    )
    own = pretrained(folder, chat_template=other)
    own.check()
    assert own.start([], 0)[1].chat_template == other
    assert own.fingerprint() != pretrained(folder).fingerprint()


def test_a_tokenizer_without_padding_pads_with_its_end(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    own = pretrained(folder).start([], 0)[1]
    assert own.pad_token == own.eos_token == "<|end|>"


def test_what_a_folder_lacks_is_said_before_any_compute(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path=\./nowhere: no such folder"):
        pretrained("./nowhere").check()
    with pytest.raises(UserError, match=r"no config\.json there"):
        pretrained(tmp_path).check()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        pretrained(folder).check()
    pretrained(folder, chat_template=TEMPLATE).check()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        pretrained(folder).check()


def test_a_folders_content_decides_its_fingerprint(folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert pretrained(moved).fingerprint() == pretrained(folder).fingerprint()
    assert folder_hash(moved) == folder_hash(folder)
    own = pretrained(folder)
    assert replace(own, local_files_only=False).fingerprint() == own.fingerprint()
    assert replace(own, dtype="bfloat16").fingerprint() != own.fingerprint()
    weights = (moved / "model.safetensors").read_bytes()
    (moved / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert pretrained(moved).fingerprint() != own.fingerprint()


# --- chat templates of the package, and tokens that a model lacks

TALK: Any = [
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
def test_the_packages_templates_word_by_word(folder: Path, template: str, prompt: str, answer: str) -> None:
    """As the reference implementation renders for sampling, in training and in evaluation too."""
    added = [] if template == "zephyr" else ["<|end_of_turn|>"]
    model = pretrained(folder, chat_template=template, added_tokens=added)
    model.check()
    _, words = model.start([], 0)
    renderer = Renderer(words)
    assert words.decode(renderer.prompt(TALK)) == prompt
    assert words.decode(renderer.response(TALK, "Four.")) == answer
    system: Any = [{"role": "system", "content": "Be brief."}, *TALK[:1]]
    told = words.decode(renderer.prompt(system))
    assert told.startswith(
        "<|system|>\nBe brief.<|end|>\n<|user|>" if template == "zephyr" else "Be brief.<|end_of_turn|>GPT4"
    )


def test_an_added_token_begins_as_the_mean_of_all_others(folder: Path) -> None:
    before = llama()
    model, words = pretrained(folder, added_tokens=["<|end_of_turn|>", "<|other|>"]).start([], 0)
    count = len(tokenizer())
    assert words.convert_tokens_to_ids(["<|end_of_turn|>", "<|other|>"]) == [count, count + 1]
    assert model.config.vocab_size == count + 2
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert torch.equal(layer.weight[:count], before.model.embed_tokens.weight)
        torch.testing.assert_close(layer.weight[count], before.model.embed_tokens.weight.mean(dim=0))
        assert torch.equal(layer.weight[count], layer.weight[count + 1])
    assert words("a<|end_of_turn|>b")["input_ids"].count(count) == 1


def test_a_token_that_is_there_already_is_not_added(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.added_tokens: the tokenizer of .* has <\|end\|> already"):
        pretrained(folder, added_tokens=["<|end|>", "<|new|>"]).check()
