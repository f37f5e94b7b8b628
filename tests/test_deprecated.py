"""Test old names of settings with Hydra: each row of the table, as an override and in a user's file."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from jobs import TINY_MODEL, run_train
from selfcontrast import deprecated
from selfcontrast.api import compose, plan
from selfcontrast.cli.evaluate import overrides
from selfcontrast.config import configure
from selfcontrast.deprecated import RENAMED, current_arguments, current_config, new_name
from selfcontrast.errors import UserError

pytestmark = pytest.mark.usefixtures("quiet_environment")
JUDGE = "evaluation.benchmarks.pairwise.judge"
LOCAL, SERVED = (f"judge@{JUDGE}=hf", f"{JUDGE}.path=m"), (f"judge@{JUDGE}=openai", f"{JUDGE}.model=m")
PANEL = (f"judge@{JUDGE}=panel", f"judge@{JUDGE}.judges.second=hf", f"{JUDGE}.judges.second.path=m")
CASES: list[
    tuple[tuple[str, ...], str, Any]
] = [  # overrides that choose the class, an old key, and a value other than the default
    ((), "method", "My own"),
    ((), "rounds", 2),
    ((), "reference_over_rounds", "initial"),
    ((), "prompts_over_rounds", "disjoint"),
    ((), "negatives_over_rounds", "all"),
    ((), "share", 0.4),
    ((), "share_of", "samples"),
    ((), "sft.prompts_per_step", 4),
    ((), "trainer.cutoff", 64),
    ((), "trainer.warmup", 0.2),
    ((), "sft.clip_norm", 2.0),
    ((), "hardware.tokens_per_pass", 512),
    ((), "model.max_positions", 640),
    ((), "model.precision", "bfloat16"),
    ((), "encoder.precision", "bfloat16"),
    ((), "generator.backend.precision", "bfloat16"),
    (LOCAL, f"{JUDGE}.precision", "bfloat16"),
    (PANEL, f"{JUDGE}.judges.second.precision", "bfloat16"),
    ((), "evaluation.backend.rows", 8),
    (("generator=vllm",), "generator.backend.max_model_len", 640),
    (("generator=openai",), "generator.backend.urls", ["http://a/v1"]),
    (("generator=openai",), "generator.backend.wait", 2.0),
    (("generator=openai",), "generator.backend.key_variable", "KEY"),
    (SERVED, f"{JUDGE}.servers.urls", ["http://a/v1"]),
    (SERVED, f"{JUDGE}.servers.wait", 2.0),
    (SERVED, f"{JUDGE}.servers.key_variable", "KEY"),
    (LOCAL, f"{JUDGE}.batch", 2),
    ((), "evaluation.lm_eval.batch", 2),
    ((), "filter.selector.share", 0.4),
    (("filter=threshold",), "filter.selector.bar", 0.5),
    ((), "generator.max_failed_share", 0.5),
    (("data=hub", "data.train.path=d"), "data.test_share", 0.5),
    ((), "evaluation.level", 0.9),
    ((), "evaluation.resamples", 300),
    ((), "evaluation.cap", 5),
]
IDS = [key for _, key, _ in CASES]


@pytest.fixture(autouse=True)
def reset_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecated, "_logged", set[str]())


def logged_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if "the old name works until" in line]


def expected_line(old: str, new: str) -> str:
    return f"`{old}` is now `{new}`; the old name works until 0.3.0."


def file_of(folder: Path, key: str, value: Any, text: str = "") -> tuple[str, ...]:
    """Write a user's file with one setting, and return the overrides that choose it."""
    for name in reversed(key.split(".")):
        value = {name: value}
    (folder / "user").mkdir(exist_ok=True)
    (folder / "user" / "mine.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(value)}{text}")
    return f"hydra.searchpath=[file://{folder}]", "+user=mine"


def override(key: str, value: Any) -> str:
    return f"{key}={yaml.safe_dump(value, default_flow_style=True).partition(chr(10))[0]}"


def test_every_row_of_the_table_has_a_case() -> None:
    keys = [key.rpartition(".") for key in IDS]
    for pattern, old, _ in RENAMED:
        assert any(re.fullmatch(pattern, parent) and last == old for parent, _, last in keys), (pattern, old)
    assert all(new_name(key) != key for key in IDS)


@pytest.mark.parametrize(("choice", "key", "value"), CASES, ids=IDS)
def test_old_key_as_an_override_and_in_a_file_sets_the_new_key(
    choice: tuple[str, ...], key: str, value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = compose(*choice, override(new_name(key), value), output="out")
    assert OmegaConf.select(expected, new_name(key)) == value
    assert logged_lines(caplog) == []
    assert compose(*choice, override(key, value), output="out") == expected
    assert compose(*choice, *file_of(tmp_path, key, value), output="out") == expected
    assert logged_lines(caplog) == [expected_line(key, new_name(key))]  # one line for the override and the file


def test_hardware_precision_is_not_renamed(caplog: pytest.LogCaptureFixture) -> None:
    assert compose("hardware.precision=bf16-mixed", output="out").hardware.precision == "bf16-mixed"
    assert logged_lines(caplog) == []


def test_old_group_arm_selects_the_group_method(caplog: pytest.LogCaptureFixture) -> None:
    assert compose("arm=spin", output="out") == compose("method=spin", output="out")
    assert logged_lines(caplog) == [expected_line("arm", "method")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", "arm=sft,spin"], ["-m", "method=sft,spin"]),
        (["arm=spin", "method=my own"], ["method=spin", "label=my own"]),
        (["method=spin,sft"], ["method=spin,sft"]),
        (["arm=spin", "method=Self-Contrast"], ["method=spin", "label=Self-Contrast"]),
        (["method=a label"], ["label=a label"]),
        (["+share=0.5", "++rounds=2", "~model.precision"], ["+fraction=0.5", "++iterations=2", "~model.dtype"]),
        (["hydra.sweeper.params.share=0.1,0.2"], ["hydra.sweeper.params.fraction=0.1,0.2"]),
        (["--cfg", "job", "-p", "share"], ["--cfg", "job", "-p", "share"]),
        (["name=share=1"], ["name=share=1"]),
        (["data.rows=DPO", "data.path=a/share"], ["data.rows=DPO", "data.path=a/share"]),
        (overrides(["model=m", "share=0.5"]), ["model=hf", "model.path='m'", "fraction=0.5"]),
    ],
    ids=str,
)
def test_current_arguments_renames_only_old_names(arguments: list[str], expected: list[str]) -> None:
    assert current_arguments(arguments) == expected
    assert current_arguments(expected) == expected


def test_method_file_of_a_users_folder_is_not_taken_for_a_label(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# @package _global_\nlabel: ours\n")
    for folder in ([f"--config-dir={tmp_path}"], ["-cd", str(tmp_path)], [f"hydra.searchpath=[file://{tmp_path}]"]):
        assert current_arguments([*folder, "method=mine"]) == [*folder, "method=mine"]
    assert compose(f"hydra.searchpath=[file://{tmp_path}]", "method=mine", output="out").label == "ours"


@pytest.mark.parametrize(
    "value", ["spni", "choice(spin, sft)", "'spin'", '"spin"', "glob(*)", "[spin]", "sft,spni", ""], ids=str
)
def test_method_value_of_one_word_or_a_sweep_is_not_taken_for_a_label(value: str) -> None:
    arguments = [f"method={value}", f"hydra.sweeper.params.method={value}", "~method"]
    assert current_arguments(arguments) == arguments


@given(st.lists(st.text()))
def test_current_arguments_keeps_the_values_of_any_text(arguments: list[str]) -> None:
    renamed = current_arguments(arguments)
    assert [w.partition("=")[2] for w in renamed] == [w.partition("=")[2] for w in arguments]


@pytest.mark.parametrize("arguments", [("share=0.5", "fraction=0.4"), ("+sft.warmup=0", "sft.warmup_ratio=0")], ids=str)
def test_old_and_new_name_together_are_refused(arguments: tuple[str, ...]) -> None:
    old, new = (w.partition("=")[0].strip("+") for w in arguments)
    for order in (arguments, arguments[::-1]):
        with pytest.raises(UserError, match=rf"{old} .*{new}.* both"):
            compose(*order, output="out")


def test_old_and_new_group_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"arm .*method.* both"):
        compose("arm=spin", "method=sft", output="out")


def test_old_name_in_a_file_and_new_name_as_an_override_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.warmup,.*trainer\.warmup_ratio.* both"):
        compose(*file_of(tmp_path, "trainer.warmup", 0.2), "trainer.warmup_ratio=0.1", output="out")


def test_references_and_class_in_a_file_are_renamed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "name: a ${share} ${trainer.cutoff} ${method}\n"
    chosen = file_of(tmp_path, "trainer._target_", "selfcontrast.training.recipe.Recipe", text)
    cfg = compose(*chosen, output="out")
    assert cfg.name == "a 0.3 512 Self-Contrast"
    assert cfg.trainer._target_ == "selfcontrast.training.optim.OptimConfig"
    assert logged_lines(caplog)[-1] == expected_line(
        "selfcontrast.training.recipe.Recipe", "selfcontrast.training.optim.OptimConfig"
    )
    assert len(logged_lines(caplog)) == 4


def test_relative_references_are_renamed_and_other_keys_are_unchanged() -> None:
    old = {
        "share": 0.5,
        "trainer": {"warmup": "${.clip_norm}", "clip_norm": "${..share}", "lr": "${sft.warmup}"},
        "by_name": {"v2.0": 1, 3: "${..name}"},
    }
    assert OmegaConf.to_container(current_config(OmegaConf.create(old))) == {
        "fraction": 0.5,
        "trainer": {"warmup_ratio": "${.max_grad_norm}", "max_grad_norm": "${..fraction}", "lr": "${sft.warmup_ratio}"},
        "by_name": {"v2.0": 1, 3: "${..name}"},
    }


def test_current_config_is_the_same_object_without_an_old_name() -> None:
    cfg = compose(output="out")
    assert current_config(cfg) is cfg


def test_plan_accepts_old_names_in_a_config_changed_by_hand(tmp_path: Path) -> None:
    small = ("data.train=64", "data.test=16", "data.validation=16", "tracking=none", f"store={tmp_path / 'store'}")
    cfg = compose(*small, "label=a", output=tmp_path / "out")
    by_hand = DictConfig({**cfg, "rounds": 0})
    assert plan(by_hand).parts.iterations == 0
    assert configure(current_config(by_hand)).iterations == 0


def test_old_group_in_a_defaults_list_is_reported_with_its_new_name(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /arm: spin\n")
    ended = run_train(f"hydra.searchpath=[file://{tmp_path}]", "+user=mine", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: the group arm is now method")


def test_unknown_method_on_the_command_line_is_refused_with_a_hint_at_label(tmp_path: Path) -> None:
    ended = run_train("method=spni", cwd=tmp_path)
    assert ended.returncode == 1
    assert "Could not find 'method/spni'" in ended.stderr
    assert "label=NAME" in ended.stderr


def test_command_with_old_and_new_name_prints_one_line(tmp_path: Path) -> None:
    ended = run_train("share=0.5", "fraction=0.5", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: share is the old name of fraction")
    assert len(ended.stderr.splitlines()) == 1


def test_sweep_over_an_old_name_reports_the_new_name(tmp_path: Path) -> None:
    tiny = ("data.train=32", "data.test=16", "data.validation=16", "sft.epochs=1", "sft.validations=0", *TINY_MODEL)
    measured = ("evaluation.prompts=4", "evaluation.max_new_tokens=4", "evaluation.lm_eval.tasks=[]")
    short = ("max_length=128", "tracking=none", "hardware.threads=1", "hydra.sweep.dir=sweep", *tiny, *measured)
    ended = run_train("-m", "arm=sft", "sft.warmup=0.0,0.1", "evaluation.resamples=200", *short, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("the old name works until") == 3
    table = (tmp_path / "sweep" / "results.csv").read_text()
    assert "sft.warmup_ratio=0.1" in table
    assert "sft.warmup=" not in table
