"""Test sampling from another model, and with a system message."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfcontrast.data.candidates import Candidate, Decoding, Request, read_candidates
from selfcontrast.data.example import Message
from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.generators.backend import Sampler
from selfcontrast.generators.generate import FILE, Generation
from selfcontrast.generators.hf import HF
from selfcontrast.generators.source import OtherModel, check_system, with_system_message
from selfcontrast.models.loading import save_policy, train_tokenizer
from selfcontrast.store import settings_of
from selfcontrast.training.groups import preference_groups
from tiny import CORPUS, TEMPLATE, example, llama, policy_folder, tokenizer

RENDERER = Renderer(tokenizer())
EXAMPLES = [example(f"e{i}", "the cat " * (1 + i % 4), "a cat") for i in range(5)]
USER, SYSTEM = Message(role="user", content="a cat?"), Message(role="system", content="a dog")
PLAIN = Generation(None, 3, 1.0, 1.0, 5, 64, 0, 0.0, HF("float32", 6), None, None, None, None)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_folder(tmp_path_factory.mktemp("policy") / "model")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of another model with the same tokenizer."""
    return policy_folder(tmp_path_factory.mktemp("other") / "model", seed=5)


def sample_all(folder: Path, settings: Generation, model: Path) -> list[Candidate]:
    folder.mkdir()
    settings.generate(folder, model, EXAMPLES, Local(3, 1), "cpu")
    return read_candidates(folder / FILE)


def test_candidates_come_from_the_configured_model(policy: Path, other: Path, tmp_path: Path) -> None:
    named = sample_all(tmp_path / "a", replace(PLAIN, model=str(other)), policy)
    assert named == sample_all(tmp_path / "b", PLAIN, other) != sample_all(tmp_path / "c", PLAIN, policy)


def test_artifact_folder_equals_the_model_folder_in_it(policy: Path, other: Path, tmp_path: Path) -> None:
    assert other.name == "model"
    artifact, folder = (replace(PLAIN, model=str(path)) for path in (other.parent, other))
    artifact.check(EXAMPLES)
    assert settings_of(artifact) == settings_of(folder)
    assert sample_all(tmp_path / "a", artifact, policy) == sample_all(tmp_path / "b", folder, policy)


def test_model_samples_come_last_for_each_prompt(policy: Path, other: Path, tmp_path: Path) -> None:
    mixed = replace(PLAIN, samples=5, prompts=3, seed=7, model=str(other), model_samples=2)
    (tmp_path / "mixed").mkdir()
    counts = mixed.generate(tmp_path / "mixed", policy, EXAMPLES, Local(3, 1), "cpu")
    candidates = read_candidates(tmp_path / "mixed" / FILE)
    fine_tuned = sample_all(tmp_path / "own", replace(PLAIN, samples=3, prompts=3, seed=7), policy)
    names = list(dict.fromkeys(candidate.id for candidate in fine_tuned))
    assert [(c.id, c.sample) for c in candidates] == [(name, i) for name in names for i in range(5)]
    assert [c for c in candidates if c.sample < 3] == fine_tuned
    examples = [e for e in EXAMPLES if e.id in names]
    (tmp_path / "weak").mkdir()
    replace(PLAIN, samples=2, seed=8).generate(tmp_path / "weak", other, examples, Local(3, 1), "cpu")
    from_other = [replace(c, sample=c.sample + 3) for c in read_candidates(tmp_path / "weak" / FILE)]
    assert [c for c in candidates if c.sample >= 3] == from_other
    tokens = sum(len(c.token_ids) for c in candidates)
    assert (counts["prompts"], counts["responses"], counts["tokens"], counts["failed"]) == (3, 15, tokens, 0)
    assert counts["cut_share"] == pytest.approx(sum(c.finish_reason == "length" for c in candidates) / 15)


def test_model_samples_with_the_highest_seed(policy: Path, other: Path, tmp_path: Path) -> None:
    mixed = replace(PLAIN, samples=2, prompts=1, seed=2**32 - 1, model=str(other), model_samples=1)
    assert len(sample_all(tmp_path / "mixed", mixed, policy)) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model_samples": 1}, "generator.model_samples need generator.model"),
        ({"model_revision": "main"}, "generator.model_samples need generator.model"),
        ({"model": "a/b", "model_samples": 3}, "generator.model_samples=3 must be below generator.samples=3"),
    ],
)
def test_contradictory_settings_of_the_other_model_raise(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        replace(PLAIN, **wrong)


def test_system_message_is_used_in_sampling_only(policy: Path, tmp_path: Path) -> None:
    requests_seen: list[Request] = []

    class RecordingBackend(HF):
        @contextmanager
        def open(self, model: Path, device: str) -> Iterator[Sampler]:
            with super().open(model, device) as sample:

                def recorded(requests: Sequence[Request], decoding: Decoding, seed: int) -> list[Candidate]:
                    requests_seen.extend(requests)
                    return sample(requests, decoding, seed)

                yield recorded

    settings = replace(PLAIN, backend=RecordingBackend("float32", 6), system="a dog")
    candidates = sample_all(tmp_path / "a", settings, policy)
    by_id = {request.id: request for request in requests_seen}
    for ex in EXAMPLES:
        messages = [SYSTEM, *ex.prompt]
        assert by_id[ex.id].prompt == RENDERER.prompt(messages) != RENDERER.prompt(ex.prompt)
        assert by_id[ex.id].messages == messages
    assert [c.token_ids for c in candidates] != [c.token_ids for c in sample_all(tmp_path / "b", PLAIN, policy)]
    no_negatives: Any = {ex.id: [] for ex in EXAMPLES}
    groups, _ = preference_groups(RENDERER, EXAMPLES, dict.fromkeys(no_negatives, ()), 64)
    assert [list(group.prompt) for group in groups] == [RENDERER.prompt(ex.prompt) for ex in EXAMPLES]


def test_system_message_comes_before_the_dialogues_own() -> None:
    assert with_system_message([USER], None) == [USER]
    assert with_system_message([USER], "Be wrong.") == [{"role": "system", "content": "Be wrong."}, USER]
    assert with_system_message([SYSTEM, USER], "Be wrong.") == [
        {"role": "system", "content": "Be wrong.\n\na dog"},
        USER,
    ]


REFUSING_TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
)
IGNORING_TEMPLATE = TEMPLATE.replace(
    "<|{{ message.role }}|>", "{% if message.role != 'system' %}<|{{ message.role }}|>"
).replace("<|end|>{% endfor %}", "<|end|>{% endif %}{% endfor %}")


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (REFUSING_TEMPLATE, "the row e0: .*System role not supported"),
        (IGNORING_TEMPLATE, "the chat template ignores"),
    ],
)
def test_template_without_system_messages_raises(template: str, line: str) -> None:
    with pytest.raises(UserError, match=rf"^generator\.system: {line}") as caught:
        check_system(Renderer(tokenizer(template)), EXAMPLES[0], "Be wrong.")
    assert "\n" not in str(caught.value)
    check_system(RENDERER, EXAMPLES[0], "Be wrong.")


def test_settings_in_the_key_omit_null_and_hold_the_models_content(other: Path, tmp_path: Path) -> None:
    plain = settings_of(PLAIN)
    assert not {"model", "system"} & set(plain)
    assert settings_of(replace(PLAIN, system="Be wrong.")) == {**plain, "system": "Be wrong."}
    shutil.copytree(other, tmp_path / "moved")
    named, moved = (settings_of(replace(PLAIN, model=str(folder))) for folder in (other, tmp_path / "moved"))
    assert named == moved == {**plain, "model": named["model"]}
    (tmp_path / "moved" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert settings_of(replace(PLAIN, model=str(tmp_path / "moved"))) != named


def test_generation_with_a_model_does_not_follow_the_policy(other: Path) -> None:
    assert PLAIN.follows_model
    assert not replace(PLAIN, model=str(other)).follows_model


# --- models that cannot be sampled from


def test_missing_or_broken_model_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^generator\.model=\./no/folder has no config\.json.*OWNER/MODEL"):
        OtherModel("./no/folder", None).check()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"^generator\.model=\S+: its config cannot be loaded"):
        OtherModel(str(tmp_path), None).check()


def test_revision_of_a_model_folder_is_refused(other: Path) -> None:
    with pytest.raises(UserError, match=r"^generator\.model_revision=main: generator\.model=\S+ is a folder"):
        OtherModel(str(other), "main").check()


def test_model_with_another_vocabulary_raises(policy: Path, tmp_path: Path) -> None:
    foreign = train_tokenizer([*CORPUS, "zebra zebra zebra zebra"], 310, max_length=128)
    foreign.chat_template = TEMPLATE
    save_policy(tmp_path / "model", llama(vocabulary=310), foreign, "")
    with pytest.raises(UserError, match=r"^generator\.model=\S+: its vocabulary") as caught:
        sample_all(tmp_path / "out", replace(PLAIN, model=str(tmp_path / "model")), policy)
    assert "\n" not in str(caught.value)


def test_tokenizer_with_another_end_or_no_template_raises(tmp_path: Path) -> None:
    foreign = tokenizer(TEMPLATE.replace("{{ message.content }}<|end|>", "{{ message.content }}<|user|>"))
    foreign.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r"its answers end with the tokens \["):
        OtherModel(str(tmp_path), None).check_tokenizer(RENDERER)
    without_template = tokenizer()
    without_template.chat_template = None
    shutil.rmtree(tmp_path)
    without_template.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r"^generator\.model=\S+: the tokenizer has no chat template"):
        OtherModel(str(tmp_path), None).check_tokenizer(RENDERER)
