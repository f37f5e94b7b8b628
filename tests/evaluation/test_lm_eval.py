"""Documents for lm-eval, and its accuracy against one computed here."""

from pathlib import Path

import numpy as np
import pytest
import torch

from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation.lm_eval import check_tasks, choice_documents, run_tasks
from tiny import example, llama, policy_folder, tokenizer

RENDERER = Renderer(tokenizer())
WORDS = ["cat", "dog", "Paris", "the mat", "a name", "France", "sat on", "and"]
EXAMPLES = [
    example(f"e{i}", f"what is {i}?", f"it is {WORDS[i * 3 % 8]} {i % 7}", category="odd" if i % 2 else "even")
    for i in range(24)
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_folder(tmp_path_factory.mktemp("policy"))


def test_a_document_is_the_prompt_its_target_and_three_others_of_its_category() -> None:
    category = {e.target: e.category for e in EXAMPLES}
    documents = choice_documents(EXAMPLES, RENDERER, 120, seed=0)
    assert len(documents) == 24
    for document, one in zip(documents, EXAMPLES, strict=True):
        rendered = RENDERER.tokenizer.apply_chat_template(one.prompt, tokenize=False, add_generation_prompt=True)
        assert document["query"] == rendered
        assert document["choices"][document["gold"]] == one.target
        assert len(set(document["choices"])) == len(document["choices"]) == 4
        assert {category[choice] for choice in document["choices"]} == {one.category}
    assert len({document["gold"] for document in documents}) == 4
    assert documents == choice_documents(EXAMPLES, RENDERER, 120, seed=0)
    assert documents != choice_documents(EXAMPLES, RENDERER, 120, seed=1)


def test_a_target_shared_by_prompts_is_never_its_own_distractor() -> None:
    shared = [example(f"e{i}", f"{i}?", "yes" if i % 3 else "no") for i in range(9)]
    for document in choice_documents(shared, RENDERER, 120, seed=0):
        assert sorted(document["choices"]) == ["no", "yes"]
    assert choice_documents([e for e in shared if e.target == "yes"], RENDERER, 120, seed=0) == []


def test_a_lonely_category_borrows_from_the_others() -> None:
    lonely = [example("x", "?", "only", category="lonely"), *EXAMPLES]
    (document,) = choice_documents(lonely, RENDERER, 120, seed=0)[:1]
    assert len(document["choices"]) == 4


def test_lm_evals_accuracy_is_an_argmax_of_summed_log_probabilities(policy: Path) -> None:
    state = torch.get_rng_state()
    (found,) = run_tasks(["target_choice"], None, policy, EXAMPLES, RENDERER, 120, "cpu", seed=0).values()
    assert torch.equal(torch.get_rng_state(), state)  # lm-eval would else seed the whole process
    model, right, right_by_length = llama(), [], []
    for document in choice_documents(EXAMPLES, RENDERER, 120, seed=0):
        prompt = RENDERER.tokenizer(document["query"])["input_ids"]
        sums = []
        for choice in document["choices"]:
            response = RENDERER.tokenizer(choice)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            sums.append(sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(response)))
        by_length = [value / len(choice) for value, choice in zip(sums, document["choices"], strict=True)]
        right.append(int(np.argmax(sums)) == document["gold"])
        right_by_length.append(int(np.argmax(by_length)) == document["gold"])
    assert 0 < np.mean(right) < 1
    assert found["acc"] == pytest.approx(np.mean(right))
    assert found["acc_norm"] == pytest.approx(np.mean(right_by_length))
    assert found["documents"] == 24
    assert all(type(value) in (int, float) for value in found.values())


def test_a_limit_and_no_tasks(policy: Path) -> None:
    limited = run_tasks(["target_choice"], 6, policy, EXAMPLES, RENDERER, 120, "cpu", seed=0)
    assert limited["target_choice"]["documents"] == 6
    assert run_tasks([], None, policy, EXAMPLES, RENDERER, 120, "cpu", seed=0) == {}


def test_a_task_without_a_file_is_a_users_mistake() -> None:
    check_tasks(["target_choice"])
    with pytest.raises(UserError, match=r"evaluation\.lm_eval=mmlu: no such task; lm_eval/ holds target_choice"):
        check_tasks(["mmlu"])
