"""Compose every command of docs/reproduction.md with the real config."""

import re
import shlex
from itertools import product

import pytest

from jobs import ROOT
from studies.paper import reproduce
from test_config import composed

TEXT = (ROOT / "docs" / "reproduction.md").read_text()
COMMANDS = sorted(set(re.findall(r"python (?:train\.py|-m studies\.paper\.reproduce) [^`\n]*", TEXT)))
TRAIN = [command for command in COMMANDS if "train.py" in command]
PLAN = [command for command in COMMANDS if ".reproduce" in command and "NAME" not in command]


def test_reproduction_docs_have_commands_for_every_method_and_both_scripts() -> None:
    for part in (
        "method=sft",
        "method=dpo_std",
        "method=spin",
        "data=hh_rlhf negatives",
        "method=sft_continued",
        "trainer.tokens",
        "no_filter",
    ):
        assert any(part in command for command in TRAIN), part
    assert len(PLAN) >= 3


@pytest.mark.parametrize("command", TRAIN)
def test_reproduction_docs_train_command_composes_for_each_value(command: str) -> None:
    args = [arg for arg in shlex.split(command)[2:] if arg != "-m"]
    swept = [arg for arg in args if "," in arg and "[" not in arg]
    fixed = [arg.replace("=N", "=1000") if arg.endswith("=N") else arg for arg in args if arg not in swept]
    choices = [[f"{arg.partition('=')[0]}={value}" for value in arg.partition("=")[2].split(",")] for arg in swept]
    for point in product(*choices):
        composed(*fixed, *point)


def test_reproduction_docs_mt_bench_command_uses_the_published_questions() -> None:
    """By default the benchmark uses this project's own 80 questions."""
    (command,) = [command for command in TRAIN if "mt_bench" in command]
    bench = composed(*shlex.split(command)[2:]).evaluation.benchmarks.mt_bench
    assert (bench.questions, bench.references) == ("question.jsonl", "gpt-4.jsonl")


@pytest.mark.parametrize("command", PLAN)
def test_reproduction_docs_plan_command_names_experiments(command: str) -> None:
    names = [arg for arg in shlex.split(command)[3:] if not arg.startswith("-") and arg != "outputs/RUN"]
    assert reproduce.experiments(names)


def test_reproduction_docs_linked_pages_exist() -> None:
    for page in re.findall(r"\]\((\w+\.md)\)", TEXT):
        assert (ROOT / "docs" / page).is_file()
