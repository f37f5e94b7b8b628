"""Documents for lm-eval, and its accuracy against one computed here."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nltk
import numpy as np
import pytest
import torch
import yaml
from scipy import stats

from measuring import lm_eval
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation.lm_eval import TASKS, _configs, _theirs, parts_of, run_tasks
from selfcontrast.evaluation.lm_eval_documents import choice_documents, generation_documents
from selfcontrast.evaluation.statistics.task_metrics import metric_interval
from selfcontrast.models.loading import save_policy
from tiny import example, llama, policy_folder, taught, tokenizer
from vllm_cases import backend as vllm

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
    (found,) = run_tasks(lm_eval("target_choice"), policy, EXAMPLES, RENDERER, "cpu", seed=0).values()
    assert torch.equal(torch.get_rng_state(), state)  # lm-eval would else seed the whole process
    right, right_by_length = chosen(llama(), EXAMPLES)
    assert 0 < np.mean(right) < 1
    assert found["acc"] == pytest.approx(np.mean(right))
    assert found["acc_norm"] == pytest.approx(np.mean(right_by_length))
    assert found["documents"] == 24
    assert found["acc stderr"] == pytest.approx(stats.sem(right))
    interval = metric_interval(found, "acc", 0.95)
    exact = stats.binomtest(sum(right), 24).proportion_ci(0.95, method="exact")
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high))
    assert all(type(value) in (int, float) for value in found.values())


def chosen(model: Any, examples: list[Example]) -> tuple[list[bool], list[bool]]:
    """Whether the likeliest choice of each document is the right one, by its sum and by its mean over characters."""
    right, right_by_length = [], []
    for document in choice_documents(examples, RENDERER, 120, seed=0):
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
    return right, right_by_length


def test_a_limit_and_no_tasks(policy: Path) -> None:
    limited = run_tasks(lm_eval("target_choice", limit=6), policy, EXAMPLES, RENDERER, "cpu", seed=0)
    assert limited["target_choice"]["documents"] == 6
    assert run_tasks(lm_eval(), policy, EXAMPLES, RENDERER, "cpu", seed=0) == {}


def greedy(model: Any, prompt: list[int], most: int) -> str:
    """Token by token, without a cache."""
    ids = list(prompt)
    while len(ids) - len(prompt) < most and (len(ids) == len(prompt) or ids[-1] not in RENDERER.end_ids):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(RENDERER.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)).strip()


def test_lm_evals_exact_match_is_that_of_greedy_answers(tmp_path: Path) -> None:
    model = taught(EXAMPLES[::2])
    save_policy(tmp_path, model, RENDERER.tokenizer, "")
    fitting = generation_documents(EXAMPLES, RENDERER, 120, 32)
    expected = [d["target"] == greedy(model, RENDERER.tokenizer(d["query"])["input_ids"], 32) for d in fitting]
    (found,) = run_tasks(lm_eval("target_generation"), tmp_path, EXAMPLES, RENDERER, "cpu", seed=0).values()
    assert 0 < np.mean(expected) < 1
    assert found["exact_match"] == pytest.approx(np.mean(expected))
    assert (found["documents"], found["left_out"]) == (24, 0)
    assert (found["truncated"], found["fewshot"], found["chat_template"]) == (0, 0, 1)


@pytest.mark.parametrize("form", ["20{}-01-02", "[{}, 2]", "0{}", "{{'a': {}}}"])
def test_targets_that_a_library_would_read_otherwise_stay_texts(form: str, tmp_path: Path) -> None:
    """A column of dates became times, and a target such as [1, 2] a list: no answer was ever right."""
    examples = [example(f"e{i}", f"what is {i}?", form.format(10 + i)) for i in range(8)]
    model = taught(examples)
    save_policy(tmp_path, model, RENDERER.tokenizer, "")
    found = run_tasks(lm_eval("target_generation", "target_choice"), tmp_path, examples, RENDERER, "cpu", seed=0)
    greedily = [greedy(model, RENDERER.prompt(e.prompt), 32) == e.target for e in examples]
    assert any(greedily)
    assert found["target_generation"]["exact_match"] == pytest.approx(np.mean(greedily))
    assert found["target_choice"]["acc"] == pytest.approx(np.mean(chosen(model, examples)[0]))


def test_a_prompt_that_cannot_be_answered_whole_is_left_out_of_generation() -> None:
    short, long_target, long_prompt = (
        example("a", "a?", "b"),
        example("b", "a?", "the cat sat on the mat " * 20),
        example("c", "what is the name of the cat? " * 9, "b"),
    )
    room = len(RENDERER.prompt(short.prompt)) + 64
    assert [d["target"] for d in generation_documents([short, long_target, long_prompt], RENDERER, room, 64)] == ["b"]
    assert generation_documents([short], RENDERER, room - 1, 64) == []


def test_a_document_that_does_not_fit_is_counted(policy: Path) -> None:
    long = example("long", "what is the name of the cat? " * 30, "b", category="odd")
    found = run_tasks(lm_eval("target_choice"), policy, [*EXAMPLES, long], RENDERER, "cpu", seed=0)
    assert (found["target_choice"]["documents"], found["target_choice"]["left_out"]) == (24, 1)


def test_a_request_that_lm_eval_cuts_is_counted(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task file with data of its own is used as it stands, whatever the length of its prompts."""
    rows = [{"query": "cat " * words, "target": "dog"} for words in (1, 2, 400)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = yaml.safe_load((TASKS / "target_generation.yaml").read_text())
    kept = {"data_files": {"test": str(tmp_path / "own.jsonl")}, "cache_dir": str(tmp_path)}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**config, "task": "own", "dataset_kwargs": kept}))
    monkeypatch.setattr("selfcontrast.evaluation.lm_eval.TASKS", tmp_path)
    lm_eval("own").check()
    found = run_tasks(lm_eval("own"), policy, EXAMPLES, RENDERER, "cpu", seed=0)["own"]
    assert (found["documents"], found["left_out"], found["truncated"]) == (3, 0, 1)


def test_an_unknown_task_is_a_users_mistake() -> None:
    lm_eval("target_choice", "target_generation").check()
    with pytest.raises(UserError, match=r"lm_eval\.tasks=nothing_so: no such task; lm_eval/ holds target_choice"):
        lm_eval("nothing_so").check()


def test_a_task_of_lm_evals_without_its_data_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"lm_eval.tasks=piqa: its data cannot be had .*download them once.*data_files"):
        lm_eval("piqa").check()


@pytest.mark.parametrize("task", ["humaneval", "mbpp", "humaneval_infilling"])
def test_a_task_that_runs_the_models_code_is_refused_before_its_data_are_looked_for(task: str) -> None:
    with pytest.raises(UserError, match=f"lm_eval.tasks={task}: it runs code.*confirm_run_unsafe_code=true"):
        lm_eval(task).check()


def test_a_file_of_ours_may_not_run_code_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcontrast.evaluation.lm_eval.TASKS", tmp_path)
    (tmp_path / "own.yaml").write_text("task: own\nunsafe_code: true\n")
    with pytest.raises(UserError, match=r"lm_eval\.tasks=own: it runs code"):
        lm_eval("own").check()
    lm_eval("own", confirm_run_unsafe_code=True).check()


def test_a_group_stands_for_all_tasks_in_it() -> None:
    found = {"group_subtasks": {"all": ["few", "one"], "few": ["two", "three"], "one": []}}
    assert parts_of(found, "all") == ["two", "three", "one"]
    assert parts_of(found, "two") == ["two"]
    assert parts_of({}, "alone") == ["alone"]


def test_a_tasks_file_decides_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcontrast.evaluation.lm_eval.TASKS", tmp_path)
    (tmp_path / "own.yaml").write_text("task: own\n")
    before = lm_eval("own").fingerprint()
    data = tmp_path / "d.jsonl"
    for written in ("a", "b"):  # the file's own content, then that of its data
        data.write_text(written)
        (tmp_path / "own.yaml").write_text(f"task: own\ndataset_kwargs:\n  data_files: {{test: {data}}}\n")
        before, known = lm_eval("own").fingerprint(), before
        assert before != known


def test_a_tasks_file_that_cannot_be_read_is_a_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcontrast.evaluation.lm_eval.TASKS", tmp_path)
    (tmp_path / "own.yaml").write_text("task: own\nprocess_docs: !function utils.process\n")
    with pytest.raises(UserError, match=r"lm_eval\.tasks=own: own\.yaml cannot be read"):
        lm_eval("own").check()


def test_a_backend_without_what_it_needs_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"lm_eval\.backend: .*backend\.python=nowhere"):
        lm_eval("target_choice", backend=vllm(python="nowhere")).check()
    with pytest.raises(UserError, match=r"lm_eval\.backend: hf or vllm"):
        lm_eval("target_choice", backend=None).check()


@pytest.mark.parametrize(("setting", "value"), [("limit", 0), ("fewshot", -1), ("batch_size", 0)])
def test_numbers_that_cannot_be(setting: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"evaluation\.lm_eval\.{setting}={value}"):
        lm_eval("target_choice", **{setting: value})


IFEVAL = [
    {
        "key": 1,
        "prompt": "Write no comma.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{"num_bullets": None}],
    },
    {
        "key": 2,
        "prompt": "Say zebra twice. Use no comma.",
        "instruction_id_list": ["punctuation:no_comma", "keywords:frequency"],
        "kwargs": [{}, {"relation": "at least", "keyword": "zebra", "frequency": 2}],
    },
]


@pytest.fixture
def ifeval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A local file of IFEval's. The packages that its checks import, of which these need nothing, are stood in for."""
    for name, content in (("immutabledict", {"immutabledict": dict}), ("langdetect", {})):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    (tmp_path / "nltk/tokenizers/punkt_tab").mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, name)
    file = tmp_path / "input_data.jsonl"
    file.write_text("\n".join(map(json.dumps, IFEVAL)))
    return file


def test_ifeval_over_a_local_file_needs_no_network(ifeval: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers with zebras follows all instructions but none that is broken by a comma."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    own = lm_eval("ifeval", local={"ifeval": str(ifeval)})
    own.check()
    teach = [
        example("a", IFEVAL[0]["prompt"], "cat dog"),  # type: ignore[arg-type]
        example("b", IFEVAL[1]["prompt"], "zebra, zebra"),  # type: ignore[arg-type]
    ]
    folder = ifeval.parent / "policy"
    model = taught(teach)
    model.config.max_position_embeddings = 2048  # IFEval has answers of 1280 tokens written
    save_policy(folder, model, tokenizer(), "# a card\n")
    (found,) = run_tasks(own, folder, EXAMPLES, RENDERER, "cpu", seed=0).values()
    assert found["documents"] == 2
    assert found["prompt_level_strict_acc"] == 0.5  # the first prompt alone
    assert found["inst_level_strict_acc"] == pytest.approx(2 / 3)  # of the second the zebras


def test_ifeval_names_what_is_not_installed_before_anything_is_computed(
    ifeval: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = lm_eval("ifeval", local={"ifeval": str(ifeval)})
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(
        UserError, match=r"tasks=ifeval: it needs NLTK's punkt_tab: python -m nltk\.downloader punkt_tab"
    ):
        own.check()
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(
        UserError, match=r"tasks=ifeval: it needs the package langdetect.*pip install -e '\.\[ifeval\]'"
    ):
        own.check()


@pytest.mark.parametrize(
    ("tasks", "local", "changes", "message"),
    [
        (["piqa"], {"ifeval": "file.jsonl"}, {}, r"local\.ifeval: .* names no such task"),
        (["target_choice"], {"target_choice": "file.jsonl"}, {}, r"local\.target_choice: .* names no such task"),
        (["piqa"], {"piqa": "absent.jsonl"}, {}, r"local\.piqa=.*absent\.jsonl: no such file"),
        (["piqa"], {"piqa": "file.txt"}, {}, r"local\.piqa=.*file\.txt: its name must end with \.json,"),
        (
            ["piqa"],
            {"piqa": "file.jsonl"},
            {"fewshot": 3},
            r"fewshot=3: .*file\.jsonl holds the documents.*null, which are the same here",
        ),
        (["mmlu"], {"mmlu": "file.jsonl"}, {}, r"local\.mmlu: it is no single task"),
    ],
    ids=str,
)
def test_local_data_that_cannot_be_used(
    tmp_path: Path, tasks: list[str], local: dict[str, str], changes: dict[str, Any], message: str
) -> None:
    for name in ("file.jsonl", "file.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=message):
        lm_eval(*tasks, local={task: str(tmp_path / name) for task, name in local.items()}, **changes).check()


@pytest.mark.parametrize("task", ["gsm8k", "gsm8k_cot"])
def test_task_over_a_local_file_shows_no_examples_whatever_its_own_number(task: str, tmp_path: Path) -> None:
    """Its own number is for the hub's splits: of a file, the examples were the documents asked, with their answers."""
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(json.dumps({"question": f"what is {word}?", "answer": "#### 1"}) for word in WORDS))
    model = llama()
    model.config.max_position_embeddings = 2048  # GSM8K has answers of 256 tokens written
    save_policy(tmp_path / "policy", model, tokenizer(), "# a card\n")
    own = lm_eval(task, local={task: str(file)}, limit=2)
    assert _configs(_theirs(), task)[0]["num_fewshot"] > 0
    own.check()
    (found,) = run_tasks(own, tmp_path / "policy", EXAMPLES, RENDERER, "cpu", seed=0).values()
    assert (found["documents"], found["fewshot"]) == (2, 0)


def test_own_task_file_without_examples_to_show_refuses_to_show_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval would take them from the test documents, the document asked among them."""
    rows = [{"query": f"{word}?", "target": word} for word in WORDS]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = yaml.safe_load((TASKS / "target_generation.yaml").read_text())
    files = {"test": str(tmp_path / "own.jsonl"), "train": str(tmp_path / "own.jsonl")}
    own = {**config, "task": "own", "dataset_kwargs": {"data_files": files, "cache_dir": str(tmp_path)}}
    monkeypatch.setattr("selfcontrast.evaluation.lm_eval.TASKS", tmp_path)

    def write(**changes: Any) -> None:
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({**own, **changes}))

    write()
    lm_eval("own").check()
    with pytest.raises(UserError, match=r"tasks=own: 3 examples.*own\.yaml names no split.*training_split.*fewshot=0"):
        lm_eval("own", fewshot=3).check()
    write(num_fewshot=2)
    with pytest.raises(UserError, match=r"tasks=own: 2 examples"):
        lm_eval("own").check()
    lm_eval("own", fewshot=0).check()
    for split in ("training_split", "fewshot_split"):
        write(num_fewshot=2, **{split: "train"})
        lm_eval("own").check()


def test_answers_longer_than_the_model_are_refused_before_anything_is_computed() -> None:
    lm_eval("ifeval").check_positions(1281)
    with pytest.raises(UserError, match=r"tasks=ifeval: it has answers of up to 1280 tokens.* 1280 positions"):
        lm_eval("ifeval").check_positions(1280)
    lm_eval("target_generation").check_positions(8)


def test_local_data_decide_the_result_by_their_content(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for file, text in zip(files, ("{}", "{}", "[]"), strict=True):
        file.write_text(text)
    one, same, other = (lm_eval("piqa", local={"piqa": str(file)}).fingerprint() for file in files)
    assert one == same != other
    assert "local" not in lm_eval("piqa").fingerprint()
