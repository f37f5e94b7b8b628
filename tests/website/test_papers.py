"""Check the paper index: each row links a file that cites the row's paper, and no paper in conf/ is missing."""

import re

import pytest

from jobs import ROOT

TEXT = (ROOT / "docs" / "papers.md").read_text()
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")
QUOTED = [(row, file) for row in TEXT.splitlines() for file in re.findall(r"\[`(conf/[\w/]+\.yaml)`\]", row)]
USED = [(row, file) for row in TEXT.splitlines() for file in re.findall(r"\]\(\.\./(src/[\w/]+\.py)\)", row)]


def test_index_has_every_paper_named_in_settings() -> None:
    named = {paper for file in (ROOT / "conf").rglob("*.yaml") for paper in ARXIV.findall(file.read_text())}
    assert named - set(ARXIV.findall(TEXT)) == set()


def test_index_row_links_a_setting_for_every_paper_of_objectives() -> None:
    files = (ROOT / "conf" / "objective").glob("*.yaml")
    for file in files:
        for paper in ARXIV.findall(file.read_text()):
            assert any(paper in row for row, _ in QUOTED), f"{file.name}: {paper}"


@pytest.mark.parametrize(("row", "file"), QUOTED, ids=[f"{row[2:20]}-{file}" for row, file in QUOTED])
def test_row_names_a_file_that_quotes_the_paper(row: str, file: str) -> None:
    text = (ROOT / file).read_text()
    for paper in ARXIV.findall(row.split("|")[1]):
        assert paper in text, f"{file} does not name {paper}"
    assert file.startswith("conf/experiment/data/paper") or ARXIV.search(row.split("|")[1])


@pytest.mark.parametrize(("row", "file"), USED, ids=[f"{row[2:20]}-{file}" for row, file in USED])
def test_row_names_a_module_that_names_the_paper(row: str, file: str) -> None:
    text = (ROOT / file).read_text()
    assert all(paper in text for paper in ARXIV.findall(row.split("|")[1]))


def test_command_of_a_row_chooses_the_file_of_the_row() -> None:
    for row, file in QUOTED:
        group, option = file.removeprefix("conf/").removesuffix(".yaml").rsplit("/", 1)
        is_default = option in ("self_contrast", "hf")
        chosen_by_method = "method=" in row and group == "filter"
        choice = f"data={option}`" if group.endswith("data/paper") else f"{group}={option}`"
        assert choice in row or is_default or chosen_by_method, row
