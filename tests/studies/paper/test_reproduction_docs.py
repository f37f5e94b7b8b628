"""Every command of docs/reproduction.md is accepted by the real config."""

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


def test_there_are_commands_for_every_method_and_both_scripts() -> None:
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
def test_a_command_composes_for_each_of_its_values(command: str) -> None:
    words = [word for word in shlex.split(command)[2:] if word != "-m"]
    several = [word for word in words if "," in word and "[" not in word]
    fixed = [word.replace("=N", "=1000") if word.endswith("=N") else word for word in words if word not in several]
    choices = [[f"{word.partition('=')[0]}={value}" for value in word.partition("=")[2].split(",")] for word in several]
    for point in product(*choices):
        composed(*fixed, *point)


def test_mt_bench_asks_the_questions_that_its_published_figures_are_of() -> None:
    """Check that they are FastChat's questions, not this project's 80, the benchmark's default."""
    (command,) = [command for command in TRAIN if "mt_bench" in command]
    bench = composed(*shlex.split(command)[2:]).evaluation.benchmarks.mt_bench
    assert (bench.questions, bench.references) == ("question.jsonl", "gpt-4.jsonl")


@pytest.mark.parametrize("command", PLAN)
def test_a_plan_names_experiments(command: str) -> None:
    names = [word for word in shlex.split(command)[3:] if not word.startswith("-") and word != "outputs/RUN"]
    assert reproduce.experiments(names)


def test_other_pages_that_it_names_are_there() -> None:
    for page in re.findall(r"\]\((\w+\.md)\)", TEXT):
        assert (ROOT / "docs" / page).is_file()
