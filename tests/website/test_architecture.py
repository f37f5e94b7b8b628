"""Check that CONTRIBUTING.md lists every module and stage, and that its call chain names real functions."""

import re
from collections.abc import Iterator

import pytest

from jobs import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
PACKAGE = ROOT / "src" / "selfcontrast"
BLOCKS = re.findall(r"```\n(.*?)```", TEXT, re.DOTALL)
CHAIN = [line.split(maxsplit=2) for line in BLOCKS[3].splitlines()]


def names_in(block: str) -> set[str]:
    return {line.split()[0].rstrip("/") for line in block.splitlines()}


def modules_in(folder: str) -> set[str]:
    return {path.name for path in (ROOT / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}


def test_module_list_names_every_module_of_the_package() -> None:
    assert names_in(BLOCKS[1]) == modules_in("src/selfcontrast") - {"__init__.py"}


def test_study_list_names_every_study() -> None:
    assert names_in(BLOCKS[2]) == modules_in("studies") - {"__init__.py"}


def test_module_list_has_the_order_of_the_checked_layers() -> None:
    """Check the order of `make lint`: a module imports only from the lines below its own."""
    layers = re.findall(r'^    "([a-z_ |]+)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    layer = {name: number for number, line in enumerate(layers) for name in line.split(" | ")}
    order = [layer[line.split()[0].removesuffix("/").removesuffix(".py")] for line in BLOCKS[1].splitlines()]
    assert order == sorted(order)


def stages() -> Iterator[str]:
    for folder in (PACKAGE, ROOT / "studies"):
        for file in folder.rglob("*.py"):
            yield from re.findall(r'\bStage\(\s*"(\w+)"', file.read_text())


def test_stage_table_has_every_stage_and_existing_files() -> None:
    table = dict(re.findall(r"\| `(\w+)`(?: \([^)]*\))? \| `([\w/]+\.py)` ", TEXT))
    assert set(table) == {*stages(), "data"}
    for file in table.values():
        assert (PACKAGE / file).is_file() or (ROOT / file).is_file(), file


def test_call_chain_fits_into_25_lines() -> None:
    assert 15 <= len(CHAIN) <= 25


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, file, _ in CHAIN])
def test_call_chain_names_a_function_of_the_file(name: str, file: str) -> None:
    text = (PACKAGE / file).read_text()
    for part in name.split("."):
        assert re.search(rf"^ *(def|class) {part}\b", text, re.MULTILINE), f"{part} is not in {file}"


def test_paths_in_contributing_exist() -> None:
    # The pattern skips placeholders, which are in capitals.
    for path in re.findall(r"`((?:[a-z_]+/)*[a-z_]+(?:\.py|\.md|\.toml|/))`", TEXT):
        assert any((root / path).exists() for root in (ROOT, PACKAGE)) or path == "site/", path
