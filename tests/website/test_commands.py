"""Check the commands in the documents. tests/integration/test_readme.py checks those of train.py."""

import re
import shlex
from importlib.util import find_spec

import pytest

from jobs import ROOT
from selfcontrast.cli.__main__ import HYDRA, OTHERS
from test_config import composed

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(document.read_text() for document in DOCUMENTS)
PLANS = sorted(set(re.findall(r"^selfcontrast plan ([^#\n]+)", TEXT, re.MULTILINE)))


@pytest.mark.parametrize("arguments", PLANS)
def test_plan_command_in_documents_composes(arguments: str) -> None:
    composed(*shlex.split(arguments))


def test_subcommands_in_documents_exist() -> None:
    commands = set(re.findall(r"(?:^|`)selfcontrast ([a-z]+)", TEXT, re.MULTILINE))
    assert {"plan", "export"} <= commands <= {*HYDRA, *OTHERS}


def test_modules_in_documents_exist() -> None:
    modules = set(re.findall(r"python -m ((?:selfcontrast|studies)[\w.]*)", TEXT))
    assert {"selfcontrast.report", "studies.paper.reproduce"} <= modules
    for module in modules:
        spec = find_spec(module)
        assert spec is not None, module
        assert not spec.submodule_search_locations or find_spec(f"{module}.__main__"), module


def test_make_targets_in_documents_exist() -> None:
    used = set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE))
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"run", "test", "docs"} <= used <= targets


def test_files_named_by_commands_exist() -> None:
    matches = re.findall(r"wandb sweep (\S+)|pip install .*-r (\S+)|pytest (tests/\S+\.py)", TEXT)
    names = {name for names in matches for name in names if name}
    assert len(names) >= 3
    for name in names:
        assert (ROOT / name).exists(), name
