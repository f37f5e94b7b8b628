"""Every value of every sweep file is accepted by the real config, in the form in which an agent passes it."""

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
    """All of a list, the ends and the middle of a range."""
    if "values" in parameter:
        return list(parameter["values"])
    if "value" in parameter:
        return [parameter["value"]]
    assert parameter["distribution"] == "log_uniform_values"
    low, high = parameter["min"], parameter["max"]
    return [low, math.sqrt(low * high), high]


def points() -> Iterator[Any]:
    """Yield each value of each parameter, together with the first values of the others."""
    for file in FILES:
        choices = {name: values(parameter) for name, parameter in read(file)["parameters"].items()}
        first = {name: found[0] for name, found in choices.items()}
        for name, found in choices.items():
            for value in found:
                yield pytest.param({**first, name: value}, id=f"{file.stem}: {name}={value}")


@pytest.mark.parametrize("point", list(points()))
def test_a_point_of_a_sweep_is_a_config(point: dict[str, Any]) -> None:
    configure(composed(*[f"{name}={value}" for name, value in point.items()], *SMALL))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sweep_calls_train_py_and_optimises_what_is_logged(file: Path) -> None:
    sweep = read(file)
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["command"] == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    if "early_terminate" not in sweep:
        assert sweep["metric"]["name"] == "value"


def test_the_figure_of_the_paper_is_a_grid_over_k() -> None:
    sweep = read(ROOT / "sweeps/negatives.yaml")
    assert sweep["method"] == "grid"
    assert set(sweep["parameters"]) == {"negatives", "seed"}
    assert max(sweep["parameters"]["negatives"]["values"]) == composed().filter.max_negatives
