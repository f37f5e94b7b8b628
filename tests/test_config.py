"""Build every option of every group of `conf`, and check the settings of every method."""

from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from jobs import ROOT, TINY
from selfcontrast.config import GROUPS, assemble, build, build_groups, configure
from selfcontrast.errors import UserError

pytestmark = pytest.mark.usefixtures("quiet_environment")
CONF = ROOT / "conf"
OPTIONS = [(group, file.stem) for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]


REQUIRED = {  # values of the settings that conf leaves open with ???
    ("data", "jsonl"): "data.path=data.jsonl",
    ("data", "hub"): "data.train.path=data.jsonl",
    ("model", "hf"): "model.path=folder",
    ("filter", "oracle_reward"): "filter.reward_model.path=folder",
    ("generator", "import"): "generator.path=candidates.jsonl",
}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed: DictConfig = compose("config", list(overrides))
    return composed


def nodes(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    """Yield path and content of every node that names a class, including nested nodes."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in map(str, node):
            if not OmegaConf.is_missing(node, key):
                yield from nodes(node[key], f"{path}.{key}")


# --- files of conf


OTHER_FOLDERS = {
    "hydra",
    "method",
    "debug",
    "experiment",
    "backend",
    "benchmark",
    "judge",
    "reward_model",
}  # folders of conf that are not groups of the config


def test_groups_match_folders_of_conf() -> None:
    assert {folder.name for folder in CONF.iterdir() if folder.is_dir()} - OTHER_FOLDERS == set(GROUPS)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_build_every_option_of_every_group(group: str, option: str) -> None:
    overrides = [f"{group}={option}", *([REQUIRED[group, option]] if (group, option) in REQUIRED else [])]
    node = composed(*overrides)[group]
    part = build(node, group)
    assert type(part) is get_class(node["_target_"])
    for path, inner in nodes(node, group):
        assert set(inner) - {"_target_"} == {f.name for f in fields(get_class(inner["_target_"]))}, path


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_conf_every_option_starts_with_a_comment(group: str, option: str) -> None:
    assert (CONF / group / f"{option}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_conf_numbers_are_parsed_as_numbers(file: Path) -> None:
    """YAML 1.1 reads 1e-5 as text. Write 1.0e-5."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from texts(item)
        elif isinstance(value, str):
            yield value

    for text in texts(yaml.safe_load(file.read_text())):
        with pytest.raises(ValueError):
            float(text)


def test_conf_defaults_list_names_options_of_each_group() -> None:
    lines = {
        line.split(":")[0].strip(" #-"): line.split("#")[-1]
        for line in (CONF / "config.yaml").read_text().split("negatives:")[0].splitlines()
        if line.startswith(("  - ", "  # - ")) and "#" in line
    }
    for group, option in OPTIONS:
        assert option in lines[group] or "…" in lines[group], f"{group}={option}"


def test_build_without_a_required_setting_names_it() -> None:
    for (group, option), override in REQUIRED.items():
        key = override.split("=")[0]
        with pytest.raises(UserError, match=f"^{key} is required"):
            build(composed(f"{group}={option}")[group], group)


# --- helpers of the files test_config_*.py


@cache
def tiny() -> str:
    """Return the tiny job's config as YAML, composed once."""
    return OmegaConf.to_yaml(composed(*TINY))


def mistake(*overrides: str, base: DictConfig | None = None) -> str:
    """Return the error of the config `base`, by default the tiny job's, with these overrides."""
    cfg = base or DictConfig(OmegaConf.create(tiny()))
    cfg.merge_with_dotlist(list(overrides))
    with pytest.raises(UserError) as caught:
        configure(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the method and its baselines


METHODS = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))


@pytest.mark.parametrize("method", METHODS)
def test_configure_every_method_on_built_in_data(method: str) -> None:
    small = ("data.train=64", "data.test=16", "data.validation=16", "tracking=none", "output=out")
    parts = configure(composed(f"method={method}", *small, "trainer.tokens=1000"))  # method=equal_tokens requires it
    expected = {
        "self_contrast": ("Self-Contrast", 8, 1, 64, 16),
        "no_filter": ("no filter", 8, 1, 64, 16),
        "dpo_std": ("DPO_std", 1, 1, 1, 1),
        "spin": ("SPIN", 1, 3, 1, 1),
        "sft_continued": ("SFT continued", 8, 1, 64, 16),
        "sft": ("none", 8, 0, 64, 16),
        "equal_tokens": ("K=1, tokens of the largest K", 1, 1, 64, 16),
        "random_negatives": ("random negatives", 8, 1, 64, 16),
        "best_vs_worst": ("best vs worst", 1, 1, 64, 1),
        "rft": ("RFT", 1, 1, 64, 1),
        "best_vs_below_mean": ("best vs below mean", 1, 1, 64, 1),
        "scpo": ("ScPO", 1, 1, 64, 1),
    }
    pool = (parts.generator.samples, parts.filter.max_negatives)
    assert (parts.label, parts.negatives, parts.iterations, *pool) == expected[method]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "Self-Contrast K=8 s1"),
        (["filter=random"], "Self-Contrast, filter.selector=Random K=8 s1"),
        (
            ["chosen=consensus", "objective=softmax", "negatives=2", "seed=3"],
            "Self-Contrast, chosen=Consensus, objective=Softmax K=2 s3",
        ),
        (["method=random_negatives"], "random negatives K=8 s1"),
        (["filter=random", "name=mine"], "mine"),
        (["filter=random", "name=Self-Contrast-v2"], "Self-Contrast-v2"),
        (["generator.model=x/y", "generator.system=wrong"], "Self-Contrast, generator.model, generator.system K=8 s1"),
    ],
)
def test_default_name_names_classes_that_are_not_the_papers(overrides: list[str], name: str) -> None:
    cfg = composed("output=out", *overrides)
    parts = assemble(cfg, build_groups(cfg), {"train": [], "validation": [], "test": []})
    assert parts.name == name
    assert parts.label == cfg.label


def test_compose_command_line_overrides_method() -> None:
    assert composed("method=spin", "iterations=2").iterations == 2
    assert composed("method=dpo_std", "generator=hf").generator.samples == 64


def test_configure_max_cost_with_the_price_of_a_judge_is_accepted() -> None:
    name = "evaluation.benchmarks.mt_bench"
    price = "{_target_: selfcontrast.evaluation.judges.budget.Price, prompt: 2.5, completion: 10}"
    judge = (f"+benchmark@{name}=mt_bench", f"{name}.judge.model=x", f"{name}.judge.reading.price={price}")
    parts = configure(composed(*judge, "evaluation.max_cost=5", "output=out"))
    assert parts.evaluation.max_cost == 5
    assert parts.evaluation.benchmarks["mt_bench"].judge.reading.price.of(1e6, 1e6) == 12.5


def test_configure_without_benchmarks_is_accepted() -> None:
    none = [f"~benchmark@evaluation.benchmarks.{name}" for name in ("dialogues", "pairwise")]
    assert configure(composed(*none, "output=out")).evaluation.benchmarks == {}
