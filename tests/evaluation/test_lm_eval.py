"""Test the documents for lm-eval, and compare its metrics with metrics computed in this file."""

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

from benchmark_cases import lm_eval
from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.evaluation.lm_eval_documents import choice_documents, generation_documents
from selfcontrast.evaluation.lm_eval_run import run_tasks, subtasks
from selfcontrast.evaluation.lm_eval_tasks import TASKS, builtin_configs
from selfcontrast.evaluation.statistics.task_metrics import metric_interval
from selfcontrast.models.loading import save_policy
from tiny import example, llama, policy_folder, tokenizer, train_to_overfit
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


def test_choice_documents_draw_three_distractors_from_the_prompts_category() -> None:
    category = {e.target: e.category for e in EXAMPLES}
    documents = choice_documents(EXAMPLES, RENDERER, 120, seed=0)
    assert len(documents) == 24
    for document, source in zip(documents, EXAMPLES, strict=True):
        rendered = RENDERER.tokenizer.apply_chat_template(source.prompt, tokenize=False, add_generation_prompt=True)
        assert document["query"] == rendered
        assert document["choices"][document["gold"]] == source.target
        assert len(set(document["choices"])) == len(document["choices"]) == 4
        assert {category[choice] for choice in document["choices"]} == {source.category}
    assert len({document["gold"] for document in documents}) == 4
    assert documents == choice_documents(EXAMPLES, RENDERER, 120, seed=0)
    assert documents != choice_documents(EXAMPLES, RENDERER, 120, seed=1)


def test_choice_documents_shared_target_is_no_distractor_of_itself() -> None:
    shared = [example(f"e{i}", f"{i}?", "yes" if i % 3 else "no") for i in range(9)]
    for document in choice_documents(shared, RENDERER, 120, seed=0):
        assert sorted(document["choices"]) == ["no", "yes"]
    assert choice_documents([e for e in shared if e.target == "yes"], RENDERER, 120, seed=0) == []


def test_choice_documents_single_prompt_category_uses_other_categories() -> None:
    lonely = [example("x", "?", "only", category="lonely"), *EXAMPLES]
    (document,) = choice_documents(lonely, RENDERER, 120, seed=0)[:1]
    assert len(document["choices"]) == 4


def test_run_tasks_accuracy_equals_argmax_of_summed_log_probabilities(policy: Path) -> None:
    state = torch.get_rng_state()
    (metrics,) = run_tasks(lm_eval("target_choice"), policy, EXAMPLES, RENDERER, "cpu", seed=0).values()
    assert torch.equal(torch.get_rng_state(), state)  # by default lm-eval reseeds the whole process
    right, right_by_length = choice_hits(llama(), EXAMPLES)
    assert 0 < np.mean(right) < 1
    assert metrics["acc"] == pytest.approx(np.mean(right))
    assert metrics["acc_norm"] == pytest.approx(np.mean(right_by_length))
    assert metrics["documents"] == 24
    assert metrics["acc stderr"] == pytest.approx(stats.sem(right))
    interval = metric_interval(metrics, "acc", 0.95)
    exact = stats.binomtest(sum(right), 24).proportion_ci(0.95, method="exact")
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high))
    assert all(type(value) in (int, float) for value in metrics.values())


def choice_hits(model: Any, examples: list[Example]) -> tuple[list[bool], list[bool]]:
    """Return per document whether the likeliest choice is right, by summed and by per-character log-probability."""
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


def test_run_tasks_obeys_limit_and_returns_nothing_without_tasks(policy: Path) -> None:
    limited = run_tasks(lm_eval("target_choice", limit=6), policy, EXAMPLES, RENDERER, "cpu", seed=0)
    assert limited["target_choice"]["documents"] == 6
    assert run_tasks(lm_eval(), policy, EXAMPLES, RENDERER, "cpu", seed=0) == {}


def greedy(model: Any, prompt: list[int], max_new_tokens: int) -> str:
    """Decode token by token, without a cache."""
    ids = list(prompt)
    while len(ids) - len(prompt) < max_new_tokens and (len(ids) == len(prompt) or ids[-1] not in RENDERER.end_ids):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(RENDERER.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)).strip()


def test_run_tasks_exact_match_equals_that_of_greedy_answers(tmp_path: Path) -> None:
    model = train_to_overfit(EXAMPLES[::2])
    save_policy(tmp_path, model, RENDERER.tokenizer, "")
    documents = generation_documents(EXAMPLES, RENDERER, 120, 32)
    expected = [d["target"] == greedy(model, RENDERER.tokenizer(d["query"])["input_ids"], 32) for d in documents]
    (metrics,) = run_tasks(lm_eval("target_generation"), tmp_path, EXAMPLES, RENDERER, "cpu", seed=0).values()
    assert 0 < np.mean(expected) < 1
    assert metrics["exact_match"] == pytest.approx(np.mean(expected))
    assert (metrics["documents"], metrics["left_out"]) == (24, 0)
    assert (metrics["truncated"], metrics["fewshot"], metrics["chat_template"]) == (0, 0, 1)


@pytest.mark.parametrize("form", ["20{}-01-02", "[{}, 2]", "0{}", "{{'a': {}}}"])
def test_run_tasks_date_like_and_list_like_targets_stay_texts(form: str, tmp_path: Path) -> None:
    """An earlier version read a column of dates as times and "[1, 2]" as a list, so no answer was ever right."""
    examples = [example(f"e{i}", f"what is {i}?", form.format(10 + i)) for i in range(8)]
    model = train_to_overfit(examples)
    save_policy(tmp_path, model, RENDERER.tokenizer, "")
    results = run_tasks(lm_eval("target_generation", "target_choice"), tmp_path, examples, RENDERER, "cpu", seed=0)
    correct = [greedy(model, RENDERER.prompt(e.prompt), 32) == e.target for e in examples]
    assert any(correct)
    assert results["target_generation"]["exact_match"] == pytest.approx(np.mean(correct))
    assert results["target_choice"]["acc"] == pytest.approx(np.mean(choice_hits(model, examples)[0]))


def test_generation_documents_leave_out_prompts_without_room_for_an_answer() -> None:
    short, long_target, long_prompt = (
        example("a", "a?", "b"),
        example("b", "a?", "the cat sat on the mat " * 20),
        example("c", "what is the name of the cat? " * 9, "b"),
    )
    room = len(RENDERER.prompt(short.prompt)) + 64
    assert [d["target"] for d in generation_documents([short, long_target, long_prompt], RENDERER, room, 64)] == ["b"]
    assert generation_documents([short], RENDERER, room - 1, 64) == []


def test_run_tasks_too_long_prompt_counts_as_left_out(policy: Path) -> None:
    long = example("long", "what is the name of the cat? " * 30, "b", category="odd")
    results = run_tasks(lm_eval("target_choice"), policy, [*EXAMPLES, long], RENDERER, "cpu", seed=0)
    assert (results["target_choice"]["documents"], results["target_choice"]["left_out"]) == (24, 1)


def test_run_tasks_request_longer_than_the_model_counts_as_truncated(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task file with its own data keeps all its documents, however long."""
    rows = [{"query": "cat " * words, "target": "dog"} for words in (1, 2, 400)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = yaml.safe_load((TASKS / "target_generation.yaml").read_text())
    data = {"data_files": {"test": str(tmp_path / "own.jsonl")}, "cache_dir": str(tmp_path)}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**config, "task": "own", "dataset_kwargs": data}))
    monkeypatch.setattr("selfcontrast.evaluation.lm_eval_tasks.TASKS", tmp_path)
    lm_eval("own").check()
    metrics = run_tasks(lm_eval("own"), policy, EXAMPLES, RENDERER, "cpu", seed=0)["own"]
    assert (metrics["documents"], metrics["left_out"], metrics["truncated"]) == (3, 0, 1)


def test_check_unknown_task_names_the_existing_ones() -> None:
    lm_eval("target_choice", "target_generation").check()
    with pytest.raises(UserError, match=r"lm_eval\.tasks=nothing_so: .*target_choice"):
        lm_eval("nothing_so").check()


def test_check_task_without_its_data_names_the_ways_to_supply_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"lm_eval\.tasks=piqa: .*HF_HOME.*local\.piqa=FILE.*data_files"):
        lm_eval("piqa").check()


@pytest.mark.parametrize("task", ["humaneval", "mbpp", "humaneval_infilling"])
def test_check_code_running_task_is_rejected_before_its_data_load(task: str) -> None:
    with pytest.raises(UserError, match=f"lm_eval.tasks={task}: .*confirm_run_unsafe_code=true"):
        lm_eval(task).check()


def test_check_code_running_task_file_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcontrast.evaluation.lm_eval_tasks.TASKS", tmp_path)
    (tmp_path / "own.yaml").write_text("task: own\nunsafe_code: true\n")
    with pytest.raises(UserError, match=r"lm_eval\.tasks=own: .*confirm_run_unsafe_code"):
        lm_eval("own").check()
    lm_eval("own", confirm_run_unsafe_code=True).check()


def test_subtasks_of_a_group_include_those_of_nested_groups() -> None:
    results = {"group_subtasks": {"all": ["few", "one"], "few": ["two", "three"], "one": []}}
    assert subtasks(results, "all") == ["two", "three", "one"]
    assert subtasks(results, "two") == ["two"]
    assert subtasks({}, "alone") == ["alone"]


def test_fingerprint_changes_with_the_task_file_and_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcontrast.evaluation.lm_eval_tasks.TASKS", tmp_path)
    (tmp_path / "own.yaml").write_text("task: own\n")
    before = lm_eval("own").fingerprint()
    data = tmp_path / "d.jsonl"
    for written in ("a", "b"):  # first the task file changes, then only its data
        data.write_text(written)
        (tmp_path / "own.yaml").write_text(f"task: own\ndataset_kwargs:\n  data_files: {{test: {data}}}\n")
        before, previous = lm_eval("own").fingerprint(), before
        assert before != previous


def test_check_unreadable_task_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcontrast.evaluation.lm_eval_tasks.TASKS", tmp_path)
    (tmp_path / "own.yaml").write_text("task: own\nprocess_docs: !function utils.process\n")
    with pytest.raises(UserError, match=r"lm_eval\.tasks=own: own\.yaml"):
        lm_eval("own").check()


def test_check_unusable_backend_is_rejected() -> None:
    with pytest.raises(UserError, match=r"lm_eval\.backend: .*backend\.python=nowhere"):
        lm_eval("target_choice", backend=vllm(python="nowhere")).check()
    with pytest.raises(UserError, match=r"lm_eval\.backend: .*hf or vllm"):
        lm_eval("target_choice", backend=None).check()


@pytest.mark.parametrize(("setting", "value"), [("limit", 0), ("fewshot", -1), ("batch_size", 0)])
def test_settings_number_out_of_range_is_named(setting: str, value: int) -> None:
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
    """Write a local file in IFEval's format. Replace packages that IFEval imports and these rows do not need."""
    for name, content in (("immutabledict", {"immutabledict": dict}), ("langdetect", {})):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    (tmp_path / "nltk/tokenizers/punkt_tab").mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, name)
    file = tmp_path / "input_data.jsonl"
    file.write_text("\n".join(map(json.dumps, IFEVAL)))
    return file


def test_run_tasks_ifeval_over_a_local_file_needs_no_network(
    ifeval: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model follows two of three instructions: its second answer holds a comma."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = lm_eval("ifeval", local={"ifeval": str(ifeval)})
    settings.check()
    teach = [
        example("a", IFEVAL[0]["prompt"], "cat dog"),  # type: ignore[arg-type]
        example("b", IFEVAL[1]["prompt"], "zebra, zebra"),  # type: ignore[arg-type]
    ]
    folder = ifeval.parent / "policy"
    model = train_to_overfit(teach)
    model.config.max_position_embeddings = 2048  # IFEval generates up to 1280 tokens
    save_policy(folder, model, tokenizer(), "# a card\n")
    (metrics,) = run_tasks(settings, folder, EXAMPLES, RENDERER, "cpu", seed=0).values()
    assert metrics["documents"] == 2
    assert metrics["prompt_level_strict_acc"] == 0.5  # the model follows only the first prompt
    assert metrics["inst_level_strict_acc"] == pytest.approx(2 / 3)  # and two of the three instructions


def test_check_ifeval_names_missing_package_and_data(ifeval: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = lm_eval("ifeval", local={"ifeval": str(ifeval)})
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(UserError, match=r"tasks=ifeval: .*python -m nltk\.downloader punkt_tab"):
        settings.check()
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(UserError, match=r"tasks=ifeval: .*langdetect.*pip install -e '\.\[ifeval\]'"):
        settings.check()


@pytest.mark.parametrize(
    ("tasks", "local", "changes", "message"),
    [
        (["piqa"], {"ifeval": "file.jsonl"}, {}, r"local\.ifeval: .*evaluation\.lm_eval\.tasks"),
        (["target_choice"], {"target_choice": "file.jsonl"}, {}, r"local\.target_choice: .*evaluation\.lm_eval\.tasks"),
        (["piqa"], {"piqa": "absent.jsonl"}, {}, r"local\.piqa=.*absent\.jsonl: no such file"),
        (["piqa"], {"piqa": "file.txt"}, {}, r"local\.piqa=.*file\.txt: .*\.json,"),
        (
            ["piqa"],
            {"piqa": "file.jsonl"},
            {"fewshot": 3},
            r"fewshot=3: .*file\.jsonl .*piqa",
        ),
        (["mmlu"], {"mmlu": "file.jsonl"}, {}, r"local\.mmlu: .*group"),
    ],
    ids=str,
)
def test_check_unusable_local_file_is_named(
    tmp_path: Path, tasks: list[str], local: dict[str, str], changes: dict[str, Any], message: str
) -> None:
    for name in ("file.jsonl", "file.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=message):
        lm_eval(*tasks, local={task: str(tmp_path / name) for task, name in local.items()}, **changes).check()


@pytest.mark.parametrize("task", ["gsm8k", "gsm8k_cot"])
def test_run_tasks_over_a_local_file_ignores_the_tasks_num_fewshot(task: str, tmp_path: Path) -> None:
    """A file has no split for examples. In an earlier version, lm-eval showed the test questions with their answers."""
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(json.dumps({"question": f"what is {word}?", "answer": "#### 1"}) for word in WORDS))
    model = llama()
    model.config.max_position_embeddings = 2048  # GSM8K generates up to 256 tokens
    save_policy(tmp_path / "policy", model, tokenizer(), "# a card\n")
    settings = lm_eval(task, local={task: str(file)}, limit=2)
    assert builtin_configs(task)[0]["num_fewshot"] > 0
    settings.check()
    (metrics,) = run_tasks(settings, tmp_path / "policy", EXAMPLES, RENDERER, "cpu", seed=0).values()
    assert (metrics["documents"], metrics["fewshot"]) == (2, 0)


def test_check_task_file_without_example_split_rejects_fewshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval would take the examples from the test documents, even the question itself."""
    rows = [{"query": f"{word}?", "target": word} for word in WORDS]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = yaml.safe_load((TASKS / "target_generation.yaml").read_text())
    files = {"test": str(tmp_path / "own.jsonl"), "train": str(tmp_path / "own.jsonl")}
    task = {**config, "task": "own", "dataset_kwargs": {"data_files": files, "cache_dir": str(tmp_path)}}
    monkeypatch.setattr("selfcontrast.evaluation.lm_eval_tasks.TASKS", tmp_path)

    def write(**changes: Any) -> None:
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({**task, **changes}))

    write()
    lm_eval("own").check()
    with pytest.raises(UserError, match=r"tasks=own: own\.yaml .*3 .*training_split.*fewshot=0"):
        lm_eval("own", fewshot=3).check()
    write(num_fewshot=2)
    with pytest.raises(UserError, match=r"tasks=own: own\.yaml .*2 "):
        lm_eval("own").check()
    lm_eval("own", fewshot=0).check()
    for split in ("training_split", "fewshot_split"):
        write(num_fewshot=2, **{split: "train"})
        lm_eval("own").check()


def test_check_positions_rejects_generations_longer_than_the_model() -> None:
    lm_eval("ifeval").check_positions(1281)
    with pytest.raises(UserError, match=r"tasks=ifeval: .*1280 tokens.*1280 positions"):
        lm_eval("ifeval").check_positions(1280)
    lm_eval("target_generation").check_positions(8)


def test_fingerprint_depends_on_the_content_of_local_files(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for file, text in zip(files, ("{}", "{}", "[]"), strict=True):
        file.write_text(text)
    first, same, other = (lm_eval("piqa", local={"piqa": str(file)}).fingerprint() for file in files)
    assert first == same != other
    assert "local" not in lm_eval("piqa").fingerprint()
