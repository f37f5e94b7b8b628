"""Test the boundary between prompt and response with the chat templates of many models."""

import re
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import assume, given
from hypothesis import strategies as st

from selfcontrast.data.example import Example, Message
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from tiny import TEMPLATE, tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# This template has no generation prompt and no system role. The answer follows the instruction's closing bracket.
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"
)
# This template ends an answer without a special token.
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# In this template the generation prompt ends with a colon, and the answer begins with a space.
OPENCHAT = (
    "{{ bos_token }}{% for m in messages %}GPT4 Correct {{ m.role.title() }}: {{ m.content }}<|end_of_turn|>"
    "{% endfor %}{% if add_generation_prompt %}GPT4 Correct Assistant:{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TEMPLATES = {
    "builtin": TEMPLATE,
    "chatml": CHATML,
    "zephyr": ZEPHYR,
    "inst": INST,
    "plain": PLAIN,
    "openchat": OPENCHAT,
    "llama3": LLAMA3,
}
# The text of the response "Paris" in each template, and the end token that follows the text.
ANSWERS = {
    "builtin": ("Paris", "<|end|>"),
    "chatml": ("Paris", "<|im_end|>"),
    "zephyr": ("Paris", "<|end|>"),
    "inst": (" Paris", "<|end|>"),
    "plain": ("Paris\n\n", "<|end|>"),
    "openchat": (" Paris", "<|end_of_turn|>"),
    "llama3": ("Paris", "<|eot_id|>"),
}
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "<|end_of_turn|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
]
QUESTION: list[Message] = [{"role": "user", "content": "Where is it?"}]
TALK: list[Message] = [*QUESTION, {"role": "assistant", "content": "Here."}, {"role": "user", "content": "Why?"}]


def special_tokenizer(template: str) -> Any:
    with_special = tokenizer(template)
    with_special.add_tokens(SPECIAL, special_tokens=True)
    with_special.bos_token = "<s>"
    return with_special


RENDERERS = {name: Renderer(special_tokenizer(template)) for name, template in TEMPLATES.items()}


@pytest.fixture(params=TEMPLATES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("messages", [QUESTION, TALK], ids=["question", "dialogue"])
def test_prompt_and_response_equal_the_templates_text(name: str, messages: list[Message]) -> None:
    renderer = RENDERERS[name]
    prompt, response = renderer.prompt(messages), renderer.response(messages, "Paris")
    generation = renderer.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert renderer.tokenizer.decode(prompt) == generation
    text, end = ANSWERS[name]
    assert renderer.tokenizer.decode(response) == text + end
    # The template's text of the answered dialogue begins with the prompt and the response.
    answered = [*messages, {"role": "assistant", "content": "Paris"}]
    full = renderer.tokenizer.apply_chat_template(answered, tokenize=False)
    assert (full + end).startswith(renderer.tokenizer.decode([*prompt, *response]))
    assert (prompt, response) == renderer.example(Example("a", messages, "Paris"))


def test_system_message_is_rendered_or_raises() -> None:
    messages: list[Message] = [{"role": "system", "content": "Be brief."}, *QUESTION]
    for name in TEMPLATES.keys() - {"inst"}:
        assert "Be brief." in RENDERERS[name].tokenizer.decode(RENDERERS[name].prompt(messages))
    with pytest.raises(UserError, match="only user and assistant roles"):
        RENDERERS["inst"].prompt(messages)


def test_prompt_has_one_beginning_of_sequence_token() -> None:
    renderer = RENDERERS["inst"]
    assert renderer.prompt(TALK).count(renderer.tokenizer.bos_token_id) == 1


def test_end_ids_are_eos_and_the_end_token_of_the_template(name: str) -> None:
    renderer = RENDERERS[name]
    ids = renderer.tokenizer.convert_tokens_to_ids
    assert renderer.end_ids == {ids("<|end|>"), ids(ANSWERS[name][1])}


@given(target=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_response_has_one_end_token_and_decodes_to_the_target(target: str) -> None:
    for renderer in RENDERERS.values():
        # A text that spells a special token is tokenized as that token (see Renderer).
        assume(not any(str(token) in target for token in renderer.tokenizer.added_tokens_decoder.values()))
        ids = renderer.response(QUESTION, target)
        assert ids[-1] in renderer.end_ids
        assert not renderer.end_ids & set(ids[:-1])
        assert renderer.text(ids) == target.strip()


@given(targets=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=2))
def test_prompt_does_not_depend_on_the_target(targets: list[str]) -> None:
    for renderer in RENDERERS.values():
        (first, _), (second, _) = (renderer.example(Example("a", TALK, target)) for target in targets)
        assert first == second == renderer.prompt(TALK)


@pytest.mark.parametrize("target", ["", " ", "\n", "é ü 你好 🙂‍↕️", "a\u200bb", "<|user|>", "{{ messages }}"])
def test_unusual_targets_decode_to_themselves(name: str, target: str) -> None:
    renderer = RENDERERS[name]
    ids = renderer.response(QUESTION, target)
    assert ids[-1] in renderer.end_ids
    assert renderer.text(ids) == ("" if target == "<|user|>" else target.strip())


def test_target_is_cut_at_its_first_end_token(name: str) -> None:
    """Sampling stops at the first end token, so nothing after it is learnt."""
    renderer = RENDERERS[name]
    ids = renderer.response(QUESTION, "one<|end|>two")
    assert ids[-1] == renderer.tokenizer.eos_token_id
    assert renderer.text(ids) == "one"


def test_response_ends_at_the_first_of_two_end_tokens_of_a_template() -> None:
    renderer = Renderer(special_tokenizer(CHATML.replace("<|im_end|>\n", "<|im_end|>\n<|end|>")))
    assert renderer.tokenizer.decode(renderer.response(QUESTION, "Paris")) == "Paris<|im_end|>"


def merging_tokenizer() -> Any:
    """Return a tokenizer that merges frequent text over any boundary: `assistant: yes` is one token."""
    from tokenizers import Tokenizer, models, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(special_tokens=["<|end|>"], vocab_size=200, show_progress=False)
    bpe.train_from_iterator(["assistant: yes", "assistant: no", "user: yes\n\n"] * 9, trainer)
    merging = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", clean_up_tokenization_spaces=False)
    merging.chat_template = PLAIN
    return merging


def test_tokens_never_merge_across_the_boundary() -> None:
    tok = merging_tokenizer()
    assert tok.convert_ids_to_tokens(tok("assistant: yes")["input_ids"]) == ["assistant: yes"]
    renderer = Renderer(tok)
    messages: list[Message] = [{"role": "user", "content": "yes"}]
    prompt, response = renderer.prompt(messages), renderer.response(messages, "yes")
    assert tok.convert_ids_to_tokens(prompt)[-1] == "assistant: "
    assert "".join(tok.convert_ids_to_tokens(response)) == "yes\n\n<|end|>"


def sentencepiece_tokenizer(scheme: str) -> Any:
    """Return a tokenizer that marks the beginning of words, as Llama's does. `first` marks a text's beginning, too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    bpe.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(special_tokens=["<|end|>"], vocab_size=99, show_progress=False)
    bpe.train_from_iterator(["user: Paris\n\nassistant: Paris\n"], trainer)
    sentencepiece = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", clean_up_tokenization_spaces=False
    )
    sentencepiece.chat_template = PLAIN.replace("assistant: {%", "assistant:\n{%").replace(
        "{{ m.role }}: ", "{{ m.role }}:\n"
    )
    return sentencepiece


@pytest.mark.parametrize("scheme", ["first", "never"])
def test_response_is_tokenized_as_the_prompts_continuation(scheme: str) -> None:
    tok = sentencepiece_tokenizer(scheme)
    renderer = Renderer(tok)
    prompt, response = renderer.prompt(QUESTION), renderer.response(QUESTION, "Paris")
    full = tok.apply_chat_template(
        [*QUESTION, {"role": "assistant", "content": "Paris"}], tokenize=True, return_dict=False
    )
    assert [*prompt, *response] == [*full, tok.eos_token_id]
    assert "▁" not in "".join(tok.convert_ids_to_tokens(response))


@pytest.mark.parametrize("template", [CHATML.partition("{% if")[0], "{{ messages[-1].content }}"], ids=["no", "none"])
def test_template_without_a_generation_prompt_raises(template: str) -> None:
    with pytest.raises(UserError, match=r"no generation prompt .*model\.chat_template=FILE"):
        Renderer(special_tokenizer(template))


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages[9].content }}{{ 1 / 0 }}"])
def test_template_that_fails_raises(template: str) -> None:
    with pytest.raises(UserError, match="the chat template fails on"):
        Renderer(special_tokenizer(template))


def test_tokenizer_without_template_or_end_token_raises() -> None:
    tok = tokenizer()
    tok.chat_template = None
    with pytest.raises(UserError, match=r"no chat template.*model\.chat_template=FILE"):
        Renderer(tok)
    tok.chat_template, tok.eos_token = TEMPLATE, None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        Renderer(tok)


# --- templates of published models, from TRL; their special tokens are read from the templates

PUBLISHED_FOLDER = Path(trl.__file__).parent / "chat_templates"
PUBLISHED_TEMPLATES = ["cohere", "gemma3", "glm4moe", "lfm2", "llama3_2", "phi3", "qwen2_5", "qwen3", "qwen3_5_think"]


def published_tokenizer(name: str) -> Any:
    template = (PUBLISHED_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    with_special = tokenizer(template)
    with_special.add_tokens(
        sorted({*re.findall(r"<\|[^<>{}'\"\s]*\|>|<\w*turn\w*>", template), "<s>"}), special_tokens=True
    )
    with_special.bos_token = "<s>"
    return with_special


@pytest.mark.parametrize("target", ["Paris", "巴黎 🙂", "two\nlines"])
@pytest.mark.parametrize("name", PUBLISHED_TEMPLATES)
def test_published_templates_end_the_prompt_where_the_answer_begins(name: str, target: str) -> None:
    tok = published_tokenizer(name)
    renderer = Renderer(tok)
    for messages in (QUESTION, TALK):
        prompt, response = renderer.example(Example("a", messages, target))
        assert renderer.text(response) == target
        assert response[-1] in renderer.end_ids
        # The template's text of the answered dialogue begins with the prompt and the response.
        answered = [*messages, {"role": "assistant", "content": target}]
        full = tok.apply_chat_template(answered, tokenize=False, enable_thinking=False)
        decoded = tok.decode([*prompt, *response])
        assert (full + tok.eos_token).startswith(decoded)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "nemotron_3_nano"])
def test_template_with_a_thinking_switch_renders_without_thoughts(name: str) -> None:
    """The prompt ends with an empty block of thoughts, so the response begins with the answer."""
    renderer = Renderer(published_tokenizer(name))
    prompt, response = renderer.prompt(TALK), renderer.response(TALK, "Paris")
    assert re.search(r"<think>\s*</think>\s*$", renderer.tokenizer.decode(prompt))
    assert renderer.tokenizer.decode(response) == "Paris<|im_end|>"


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "gptoss"])
def test_template_that_always_thinks_raises(name: str) -> None:
    with pytest.raises(UserError, match=r"no generation prompt .*model\.chat_template=FILE"):
        Renderer(published_tokenizer(name))
