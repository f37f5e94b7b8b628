"""Check the values of every sweep file with the real config, as an agent passes them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import ROOT
from selfcontrast.config import configure
from test_config import composed

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
SMALL = ("data.train=64", "data.test=16", "data.validation=16", "tracking=none", "output=out")


def read(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text()))


def values(parameter: dict[str, Any]) -> list[Any]:
    """Return all values of a list, or the ends and the geometric middle of a range."""
    if "values" in parameter:
        return list(parameter["values"])
    if "value" in parameter:
        return [parameter["value"]]
    assert parameter["distribution"] == "log_uniform_values"
    low, high = parameter["min"], parameter["max"]
    return [low, math.sqrt(low * high), high]


def points() -> Iterator[Any]:
    """Yield each value of each parameter with the first values of the others."""
    for file in FILES:
        choices = {name: values(parameter) for name, parameter in read(file)["parameters"].items()}
        first = {name: options[0] for name, options in choices.items()}
        for name, options in choices.items():
            for value in options:
                yield pytest.param({**first, name: value}, id=f"{file.stem}: {name}={value}")


@pytest.mark.parametrize("point", list(points()))
def test_sweep_point_is_a_valid_config(point: dict[str, Any]) -> None:
    configure(composed(*[f"{name}={value}" for name, value in point.items()], *SMALL))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_sweep_file_calls_train_py_and_optimises_a_logged_metric(file: Path) -> None:
    sweep = read(file)
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["command"] == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    if "early_terminate" not in sweep:
        assert sweep["metric"]["name"] == "value"


def test_negatives_sweep_is_a_grid_over_k() -> None:
    sweep = read(ROOT / "sweeps/negatives.yaml")
    assert sweep["method"] == "grid"
    assert set(sweep["parameters"]) == {"negatives", "seed"}
    assert max(sweep["parameters"]["negatives"]["values"]) == composed().filter.max_negatives
