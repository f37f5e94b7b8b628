"""The paper index: every line is true of the file that it names, and no paper of the settings is missing."""

import re

import pytest

from jobs import ROOT

TEXT = (ROOT / "docs" / "papers.md").read_text()
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")
QUOTED = [(row, file) for row in TEXT.splitlines() for file in re.findall(r"\[`(conf/[\w/]+\.yaml)`\]", row)]
USED = [(row, file) for row in TEXT.splitlines() for file in re.findall(r"\]\(\.\./(src/[\w/]+\.py)\)", row)]


def test_index_has_every_paper_of_the_settings() -> None:
    named = {paper for file in (ROOT / "conf").rglob("*.yaml") for paper in ARXIV.findall(file.read_text())}
    assert named - set(ARXIV.findall(TEXT)) == set()


def test_index_has_every_objective_of_a_paper() -> None:
    files = (ROOT / "conf" / "objective").glob("*.yaml")
    # The term that most objectives share is the paper of one line.
    shared = {"2404.19733"}
    for file in files:
        for paper in set(ARXIV.findall(file.read_text())) - shared:
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
        chosen_by_arm = "method=" in row and group == "filter"
        choice = f"data={option}`" if group.endswith("data/paper") else f"{group}={option}`"
        assert choice in row or is_default or chosen_by_arm, row
