import hashlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from selfcontrast.data.builtin import Builtin, check_disjoint, content
from selfcontrast.data.example import SPLITS, Example
from selfcontrast.data.families import FAMILIES, FORMS, sample_target
from selfcontrast.data.verifier import BuiltinVerifier
from selfcontrast.errors import UserError

SETTINGS = {
    "train": 1600,
    "validation": 64,
    "test": 320,
    "noise": 0.15,
    "rejected_noise": 0.3,
    "two_turn": 0.25,
    "seed": 5,
}
DATA = Builtin(**SETTINGS).load()
HELD_OUT = DATA["validation"] + DATA["test"]
ROOT = Path(__file__).parents[2]


def family(name: str, examples: list[Example] = HELD_OUT) -> list[Example]:
    return [example for example in examples if example.category == name]


def users(example: Example) -> list[str]:
    return [message["content"] for message in example.prompt if message["role"] == "user"]


def test_splits_have_requested_sizes_and_equally_many_examples_per_family() -> None:
    for split in SPLITS:
        counts = Counter(example.category for example in DATA[split])
        assert counts == dict.fromkeys(FAMILIES, SETTINGS[split] // 8)


def test_a_quarter_of_train_is_dialogues_and_prompts_end_with_the_user() -> None:
    dialogues = [example for example in DATA["train"] if example.turns]
    assert 0.2 < len(dialogues) / len(DATA["train"]) < 0.3
    for example in DATA["train"]:
        roles = [message["role"] for message in example.prompt]
        assert roles == (["user", "assistant", "user"] if example.turns else ["user"])
        assert example.turns in ([], users(example))


def test_ids_and_prompts_are_unique_and_contents_disjoint() -> None:
    examples = [example for split in SPLITS for example in DATA[split]]
    assert len({example.id for example in examples}) == len(examples)
    assert len({tuple(users(example)) for example in examples}) == len(examples)
    contents = [{content(example) for example in DATA[split]} for split in SPLITS]
    assert not contents[0] & contents[1] | contents[0] & contents[2] | contents[1] & contents[2]


def test_check_disjoint_overlap_raises() -> None:
    leaked = {**DATA, "train": [*DATA["train"], DATA["test"][3]]}
    with pytest.raises(ValueError, match=re.escape(content(DATA["test"][3]))):
        check_disjoint(leaked)
    with pytest.raises(ValueError, match="repeats 1"):
        check_disjoint({"test": [*DATA["test"], DATA["test"][0]]})


def test_train_targets_have_the_expected_noise() -> None:
    scores = [BuiltinVerifier().score(example, example.target) for example in DATA["train"]]
    assert 0.83 < statistics.mean(scores) < 0.89
    assert 0.42 < scores.count(1.0) / len(scores) < 0.6


def test_rejected_answers_have_a_wrong_slot() -> None:
    examples = [example for split in SPLITS for example in DATA[split]]
    assert {e.rejected == e.target or BuiltinVerifier().score(e, e.rejected) == 1.0 for e in examples} == {False}
    for example in examples:
        wrong = [slot for slot, right in BuiltinVerifier().details(example, example.rejected).items() if not right]
        assert wrong
        assert "form" not in wrong


def test_rejected_answers_are_noisier_than_targets_but_not_always_worse() -> None:
    """Clean targets never score less than their rejected answers. Noisy targets sometimes do."""

    def fraction_worse(examples: list[Example]) -> float:
        scores = [(BuiltinVerifier().score(e, e.target), BuiltinVerifier().score(e, e.rejected)) for e in examples]
        return sum(rejected > target for target, rejected in scores) / len(scores)

    assert fraction_worse(HELD_OUT) == 0
    assert 0 < fraction_worse(DATA["train"]) < 0.2


def test_rejected_noise_changes_only_rejected_answers() -> None:
    other = Builtin(**SETTINGS | {"rejected_noise": 0.9}).load()
    assert [e.to_dict() | {"rejected": ""} for e in other["train"]] == [
        e.to_dict() | {"rejected": ""} for e in DATA["train"]
    ]
    assert [e.rejected for e in other["train"]] != [e.rejected for e in DATA["train"]]


def test_noise_changes_only_train_targets() -> None:
    clean = Builtin(**SETTINGS | {"noise": 0.0}).load()
    assert [users(e) for e in clean["train"]] == [users(e) for e in DATA["train"]]
    assert clean["test"] == DATA["test"]
    assert clean["validation"] == DATA["validation"]
    assert {BuiltinVerifier().score(e, e.target) for e in clean["train"]} == {1.0}


def test_held_out_splits_do_not_depend_on_the_size_of_train() -> None:
    assert Builtin(**SETTINGS | {"train": 8}).load()["test"] == DATA["test"]


def test_builtin_same_seed_gives_the_same_bytes_in_another_process() -> None:
    small = SETTINGS | {"train": 160}
    code = (
        "import hashlib, json; from selfcontrast.data.builtin import Builtin;"
        f"data = Builtin(**{small}).load();"
        "text = json.dumps([e.to_dict() for s in data.values() for e in s]);"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": "1"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    text = json.dumps([e.to_dict() for split in Builtin(**small).load().values() for e in split])
    assert process.stdout.strip() == hashlib.sha256(text.encode()).hexdigest()


def test_builtin_another_seed_gives_other_prompts() -> None:
    other = Builtin(**SETTINGS | {"seed": 6}).load()
    assert len({users(e)[0] for e in other["test"]} & {users(e)[0] for e in DATA["test"]}) < 80


@pytest.mark.parametrize("name", FAMILIES)
def test_thirty_two_draws_leave_enough_distinct_responses_for_sixteen_negatives(name: str) -> None:
    distinct = []
    for example in family(name):
        turn = json.loads(example.reference)["turns"][-1]
        rng = random.Random(example.id)
        draws = {sample_target(FORMS[turn["form"]], turn["want"], rng, 0.15) for _ in range(32)}
        distinct.append(len(draws))
    assert statistics.mean(distinct) >= 24
    assert sum(count >= 22 for count in distinct) >= 0.9 * len(distinct)


def test_coding_targets_compute_the_function_of_the_prompt() -> None:
    verbs = {"add": int.__add__, "subtract": int.__sub__, "multipl": int.__mul__}
    for example in family("coding"):
        steps = re.findall(r"(add|subtract|multipl)\D+(\d+)", users(example)[0])
        scope: dict[str, object] = {}
        exec(example.target, scope)
        (function,) = (value for name, value in scope.items() if name != "__builtins__")
        for number in (-3, 0, 11):
            expected = number
            for verb, operand in steps:
                expected = verbs[verb](expected, int(operand))
            assert function(number) == expected  # type: ignore[operator]
        assert ("lambda" in users(example)[-1]) == ("lambda" in example.target)


def test_reasoning_targets_follow_from_the_prompt() -> None:
    superlatives = {"oldest", "tallest", "fastest", "strongest", "richest"}
    for example in family("reasoning"):
        pairs = re.findall(r"([A-Z][a-z]+) is \w+er than ([A-Z][a-z]+)", users(example)[0])
        above, below = {a for a, _ in pairs}, {b for _, b in pairs}
        extreme = re.findall(r"\w+est\b", users(example)[-1])[-1]
        (answer,) = above - below if extreme in superlatives else below - above
        assert f"{answer} is the {extreme}" in example.target or f"the {extreme} is {answer}" in example.target


def test_math_targets_are_true_and_use_the_numbers_of_the_prompt() -> None:
    signs = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
    for example in family("math"):
        a, op, b = re.search(r"(\d+) (plus|minus|times) (\d+)", example.target).groups()  # type: ignore[union-attr]
        result = signs[op](int(a), int(b))
        assert str(result) in re.findall(r"\d+", example.target.replace(f"{a} {op} {b}", ""))
        if not example.turns:
            assert sorted([a, b]) == sorted(re.findall(r"\d+", users(example)[0]))


def test_extraction_targets_contain_the_values_of_the_note() -> None:
    for example in family("extraction"):
        want = json.loads(example.reference)["turns"][-1]["want"]
        for field, (value,) in want.items():
            assert field in users(example)[-1]
            assert value in users(example)[0].replace(".", "").replace(",", "").split()
            assert value in re.findall(r"\w+", example.target)


@pytest.mark.parametrize("name", ["stem", "humanities"])
def test_facts_in_test_occur_in_training(name: str) -> None:
    def facts(example: Example) -> set[tuple[str, str]]:
        turns = json.loads(example.reference)["turns"]
        return {(t["want"]["entity"][0], key) for t in turns for key in t["want"] if key != "entity"}

    # Training draws each fact 11 times on average with these settings, and 17 times with the shipped settings.
    train = Builtin(**SETTINGS | {"train": 8000}).load()["train"]
    trained = set().union(*map(facts, family(name, train)))
    missing = [fact for example in family(name) for fact in facts(example) if fact not in trained]
    assert missing == []


def test_no_slot_value_contains_another_value() -> None:
    # Otherwise, in a response that matches no template, the verifier would find a right value inside a wrong value.
    for form in FORMS.values():
        for slot in form.slots.values():
            assert len(set(slot.pool)) == len(slot.pool)
            inside = [(a, b) for a in slot.pool for b in slot.pool if a != b and re.search(rf"\b{re.escape(a)}\b", b)]
            assert inside == []


def test_settings_out_of_range_raise() -> None:
    with pytest.raises(UserError, match=r"data\.noise=1\.5"):
        Builtin(**SETTINGS | {"noise": 1.5})
    with pytest.raises(UserError, match=r"data\.test=0"):
        Builtin(**SETTINGS | {"test": 0})


def test_too_many_prompts_raise() -> None:
    with pytest.raises(UserError, match=r"^data\.\w+=\d+: .*no new prompt left"):
        Builtin(**SETTINGS | {"test": 16000}).load()


def test_config_has_every_setting() -> None:
    config = yaml.safe_load((ROOT / "conf/data/builtin.yaml").read_text())
    assert config.pop("defaults")  # the verifier has its own config group
    assert config.pop("_target_") == f"{Builtin.__module__}.{Builtin.__name__}"
    assert Builtin(**config).fingerprint().items() >= config.items()
