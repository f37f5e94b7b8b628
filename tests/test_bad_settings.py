"""Test hundreds of bad settings: each job starts, or is refused in one line before compute."""

import math
import random
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jobs import ROOT, TINY, run_train
from selfcontrast.config import build, configure
from selfcontrast.data.example import Example, Split
from selfcontrast.errors import UserError

sys.path.insert(0, str(ROOT))

from selfcontrast.cli.hydra_app import one_line

CHOICES = {
    "plain": (),
    "judge": (
        "+benchmark@evaluation.benchmarks.mt_bench=mt_bench",
        "evaluation.benchmarks.mt_bench.judge.model=x",
        "evaluation.benchmarks.mt_bench.judge.reading.price="
        "{_target_: selfcontrast.evaluation.judges.budget.Price, prompt: 1, completion: 1}",
        "evaluation.max_cost=5",
    ),
    "local judge": (
        "+benchmark@evaluation.benchmarks.grades=mt_bench",
        "judge@evaluation.benchmarks.grades.judge=hf",
        "evaluation.benchmarks.grades.judge.path=/nowhere",
    ),
    "server": ("generator=openai",),
    "vllm": ("generator=vllm",),
    "pairs": ("method=dpo_std",),
    "lora, lexical, mmr": ("adapter=lora", "encoder=lexical", "filter=mmr", "objective=softmax", "engine=ray"),
    "rewards": ("filter=oracle_reward", "filter.reward_model.path=/nowhere"),
    "clusters": ("filter=clusters", "tracking=csv"),
    "ranks": ("filter=rank_sum", "generator.system=x"),
    "determinant": ("filter=log_det", "filter.selector.fraction=1.0"),
    "below": ("filter=below_mean",),
}
BAD = [
    math.nan, math.inf, -math.inf, -1, -5, 0, 0.5, -0.5, 1e308, 10**12, 10**30, "", " ", "nan", "x\0y", "no such thing",
    True, None, [], {}, [math.nan], [None], {"a": 1}, "${nowhere}", "../..", "$x^2",
]  # fmt: skip


@cache
def composed(choice: str, config: str = "config") -> DictConfig:
    tiny = [setting for setting in TINY if choice != "pairs" or not setting.startswith("generator.")]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(config, [*tiny, *CHOICES[choice], "output=out", "store=store"])


@cache
def keys_of(choice: str) -> list[str]:
    """Return the full keys of all settings and groups of settings except `_target_`."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key in map(str, node):
            if key == "_target_":
                continue
            name = f"{prefix}{key}"
            yield name
            if isinstance(node, DictConfig) and isinstance(node[key], DictConfig):
                yield from walk(node[key], f"{name}.")

    return list(walk(composed(choice), ""))


def refusal_line(choice: str, key: str, value: Any) -> str | None:
    """Return the line that refuses the job, or None if it would start. Other errors propagate."""
    cfg = OmegaConf.create(OmegaConf.to_container(composed(choice), resolve=False))
    OmegaConf.set_struct(cfg, True)
    try:
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        configure(DictConfig(cfg), splits(key))
    except (UserError, OmegaConfBaseException) as error:
        return one_line(error)
    return None


@cache
def load_data() -> dict[Split, list[Example]]:
    return dict(build(composed("plain").data, "data").load())


def splits(key: str) -> dict[Split, list[Example]] | None:
    """Return the data, which is loaded once, or None if `key` is a setting of the data."""
    return None if key.startswith("data") else load_data()


@st.composite
def bad_settings(draw: st.DrawFn) -> tuple[str, str, Any]:
    choice = draw(st.sampled_from(sorted(CHOICES)))
    return choice, draw(st.sampled_from(keys_of(choice))), draw(st.sampled_from(BAD))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(bad_settings())
@example(("plain", "evaluation.seed", -1))
@example(("clusters", "fraction_of", math.nan))
@example(("judge", "evaluation.benchmarks.mt_bench.judge.extra", {"top_p": math.nan}))
def test_bad_setting_is_accepted_or_refused_in_one_line(bad: tuple[str, str, Any]) -> None:
    choice, key, value = bad
    line = refusal_line(choice, key, value)
    assert line is None or (line.startswith("error: ") and "\n" not in line)
    if isinstance(value, float) and not math.isfinite(value):
        assert line is not None, f"{key}={value} is accepted as a number"


@pytest.mark.parametrize(
    ("choice", "key"),
    [
        ("plain", "sft.optimizer"),
        ("plain", "model.dtype"),
        ("local judge", "evaluation.benchmarks.dialogues.grading"),
        ("local judge", "evaluation.benchmarks.grades.judge.dtype"),
        ("server", "generator.backend.api"),
        ("rewards", "filter.reward_model.dtype"),
    ],
)
def test_unknown_choice_is_refused_with_its_full_key(choice: str, key: str) -> None:
    line = refusal_line(choice, key, "nothing")
    assert line is not None
    assert line.startswith(f"error: {key}=nothing")


NUMBERS = {
    "evaluation.seed": [-1, 2**32, math.nan],
    "seed": [-1, 2**32, 0.5, True, math.inf],
    "hardware.threads": [0, -1, 10**6],
    "model.heads": [0, -2],
    "model.vocabulary": [0, 260],
    "model.hidden": [10**9],
    "encoder.batch_size": [0],
    "generator.backend.batch_size": [0, None],
    "sft.weight_decay": [-5, math.nan, math.inf],
    "trainer.lr": [0, 1e308, math.nan, "nan"],
    "trainer.betas": [[0.9], [0.9, 1.0], [0.9, math.nan], 0.9],
    "evaluation.confidence": [0, 1, math.nan],
    "evaluation.decodings": [[{"name": "a", "temperature": math.nan, "samples": 1}], 5, [{"name": "", "samples": 1}]],
    "evaluation.n_bootstrap": [10**12],
    "data.train": [0, 10**12],
    "filter.selector": [None, "least", {}],
    "generator.backend": [5, {"a": 1}],
    "objective": [5, {}],
    "data": [None],
    "store": ["", " ", None, 5, "x\0y"],
    "store_cache": [""],
    "output": ["", None, 5, [1]],
    "tracking.project": ["", "a/b", "x" * 129],
    "tracking.tags": [[""], ["x" * 65], [None]],
}
JUDGED = {
    "evaluation.max_cost": [math.nan, -1, math.inf],
    "evaluation.benchmarks.mt_bench.judge": [None, 5],
    "evaluation.benchmarks.mt_bench.judge.reading.price.prompt": [-1, math.nan],
    "evaluation.benchmarks.mt_bench.judge.servers.timeout": [-1, 0, 1e300],
    "evaluation.benchmarks.mt_bench.judge.servers.base_urls": [
        ["http://a:99999/v1"],
        ["http://a:0/v1"],
        ["http://[::1"],
        [],
    ],
    "evaluation.benchmarks.mt_bench.judge.extra": [{"top_p": math.nan}, {"stop": [math.inf]}],
}
CASES = [("plain", key, value) for key, values in NUMBERS.items() for value in values]
CASES += [("judge", key, value) for key, values in JUDGED.items() for value in values]


@pytest.mark.parametrize(("choice", "key", "value"), CASES, ids=lambda part: str(part)[:40].replace("\0", "NUL"))
def test_impossible_value_is_refused_with_its_full_key(choice: str, key: str, value: Any) -> None:
    line = refusal_line(choice, key, value)
    assert line is not None
    assert line.startswith(f"error: {key}") or "servers" in key
    assert line == " ".join(line.split())


@pytest.mark.parametrize(
    "override", ["objective=0", "encoder=[null]", "hardware.devices={a: 1}", "hardware.devices=[1]", "model=1"]
)
def test_command_with_override_that_hydra_rejects_prints_one_line(override: str, tmp_path: Path) -> None:
    ended = run_train(override, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("override", ["sft.lr=nan", "evaluation.seed=-1", "hardware.threads=0", "store=''"])
def test_command_with_bad_value_prints_one_line_and_exits_with_1(override: str, tmp_path: Path) -> None:
    ended = run_train(override, cwd=tmp_path)
    assert ended.returncode == 1
    *before, last = ended.stderr.splitlines()
    assert last.startswith(f"error: {override.partition('=')[0]}=")
    assert all("checking the settings" in line for line in before)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("override", ["label=M\udcff", "+x\udce9=1", "data.path=\udcc3", "name=\ud83d"], ids=ascii)
def test_command_with_setting_that_is_not_utf8_prints_one_line(override: str, tmp_path: Path) -> None:
    """The report used to fail on a setting that is not UTF-8, after all compute."""
    ended = run_train(override, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert "is not valid text in the encoding utf-8" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value"), [("name", "\udcff"), ("evaluation.top_p", {"\udcff": 1}), ("store", "\ud800")]
)
def test_setting_that_is_not_utf8_is_refused(key: str, value: Any) -> None:
    line = refusal_line("plain", key, value)
    assert line is not None
    assert line.startswith(f"error: {key}")
    line.encode()


def hydra_text(value: Any) -> str:
    """Return a value as text in the grammar of Hydra's command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, str):
        return "'" + value.replace("'", r"\'") + "'"
    if isinstance(value, list):
        return f"[{','.join(map(hydra_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {hydra_text(item)}' for key, item in value.items())}}}"
    return str(value)


LONG_STAGES = ("sft", "generate", "align", "evaluate")  # stages that may take hours
RUNNABLE = [choice for choice in sorted(CHOICES) if choice not in ("server", "vllm", "lora, lexical, mmr")]


def draw_settings(count: int, seed: int) -> list[tuple[str, str, Any]]:
    """Return bad settings of jobs that need no server, GPU or cluster."""
    draw = random.Random(seed)
    settings: list[tuple[str, str, Any]] = []
    while len(settings) < count:
        choice = draw.choice(RUNNABLE)
        key, value = draw.choice(keys_of(choice)), draw.choice(BAD)
        if not (key.endswith(".tokens") and value == 10**12):  # a valid budget, but too large for this machine
            settings.append((choice, key, value))
    return settings


@pytest.mark.slow
@pytest.mark.parametrize("number", range(30))
def test_command_with_a_bad_setting_succeeds_or_fails_in_one_line_before_compute(number: int, tmp_path: Path) -> None:
    choice, key, value = draw_settings(30, seed=0)[number]
    tiny = [setting for setting in TINY if choice != "pairs" or not setting.startswith("generator.")]
    ended = run_train(*tiny, *CHOICES[choice], f"{key}={hydra_text(value)}", cwd=tmp_path)
    assert "Traceback" not in ended.stderr, f"{key}={value!r}\n{ended.stderr}"
    if ended.returncode:
        assert ended.returncode == 1
        assert ended.stderr.splitlines()[-1].startswith("error: "), f"{key}={value!r}\n{ended.stderr}"
        late = [stage for stage in LONG_STAGES if list(tmp_path.glob(f"store/{stage}/*/manifest.json"))]
        assert not late, f"{key}={value!r} is refused late\n{ended.stderr}"


@pytest.mark.parametrize(
    "override",
    ["theory.draws=nan", "theory.confidence=1.0", "theory.bandit.beta=-1", "theory.prompts=0", "theory.negatives=[]"],
)
def test_theory_setting_is_refused_with_its_full_key(override: str) -> None:
    searched = f"hydra.searchpath=[file://{ROOT / 'conf'}]"
    with initialize_config_dir(str(ROOT / "studies" / "gradient_error"), version_base="1.3"):
        cfg = compose("gradient_error", [override, searched])
    with pytest.raises(UserError, match=rf"^{override.partition('=')[0]}="):
        build(cfg.theory, "theory")
