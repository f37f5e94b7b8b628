"""Check that the page of all settings has every file, key, default and comment under conf/."""

import html
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import ROOT
from website.settings import Setting, read_option, read_options, settings_page

CONF = ROOT / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
PAGE = settings_page(CONF)


def keys(node: Any, prefix: str = "") -> set[str]:
    """Return the dotted keys of a parsed YAML file, independently of the parser under test."""
    if isinstance(node, dict) and node:
        return {key for name, value in node.items() for key in keys(value, f"{prefix}{name}.")}
    if isinstance(node, list) and prefix != "defaults.":
        return {prefix[:-1]}
    return {prefix[:-1]} if prefix else set()


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(CONF)) for file in FILES])
def test_option_has_every_key_of_its_file(file: Path) -> None:
    documented = {setting.key for setting in read_option(CONF, file).settings}
    for key in keys(yaml.safe_load(file.read_text())):
        # The page shows a mapping in braces as one value.
        assert any(key == other or key.startswith(f"{other}.") for other in documented), key


def test_page_has_every_file_and_as_many_rows_as_keys() -> None:
    options = read_options(CONF)
    assert len(options) == len(FILES)
    assert PAGE.count("\n### ") == len(FILES) - 1  # the heading of config.yaml has another level
    rows = sum(setting.key != "_target_" for option in options for setting in option.settings)
    assert PAGE.count("<tr><td>") == rows


def test_page_has_every_comment() -> None:
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", PAGE)).split())
    for file in FILES:
        for line in file.read_text().splitlines():
            comment = re.search(r"(?:^| )# (?!@)(.*[a-z].*)$", line)
            if comment and '"' not in line.split("#")[0]:
                for part in comment[1].split(" # "):
                    part = " ".join(re.sub(r"docs/(\w+)\.md", r"\1", part).split())
                    # A commented choice is a row: see test_option_choice_in_a_comment_is_a_setting.
                    assert part in text or part.startswith("- "), f"{file}: {part}"


def test_read_option_of_example_file_returns_all_settings(tmp_path: Path) -> None:
    file = tmp_path / "group" / "option.yaml"
    file.parent.mkdir()
    file.write_text(
        "# What it is,\n# in two lines.\n"
        "defaults:\n  - other   # why\n  - _self_\n"
        "_target_: package.Class\n"
        "plain: 1.0e-3   # units; the comment goes on\n"
        "                # in a second line\n"
        "nested:         # of a part\n"
        '  text: "a # b"  # not in the quotes\n'
        "  several: [1, 2]\n"
        "  # Above the next key.\n"
        "  last: 3     # and beside it\n"
        "items:\n  - {name: x, n: 1}   # first\n"
        "nothing: ${a.long.value}   # begins here\n"
        "           # and goes on further left\n"
        "last: null\n"
    )
    option = read_option(tmp_path, file)
    assert (option.group, option.name, option.is_global) == ("group", "option", False)
    assert option.comment == "What it is,\nin two lines."
    assert option.settings == (
        Setting("defaults", "other", "why"),
        Setting("defaults", "_self_", ""),
        Setting("_target_", "package.Class", ""),
        Setting("plain", "1.0e-3", "units; the comment goes on\nin a second line"),
        Setting("nested", "", "of a part"),
        Setting("nested.text", '"a # b"', "not in the quotes"),
        Setting("nested.several", "[1, 2]", ""),
        Setting("nested.last", "3", "Above the next key.\nand beside it"),
        Setting("items", "", ""),
        Setting("items.0", "{name: x, n: 1}", "first"),
        Setting("nothing", "${a.long.value}", "begins here\nand goes on further left"),
        Setting("last", "null", ""),
    )


def test_option_choice_in_a_comment_is_a_setting(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "defaults:\n  - data: mine        # mine | yours\n"
        "  # - grader: THE DATA'S   # exact | none   grades. The data's file\n"
        "                         # chooses it\n"
        "  - model: tiny         # the model\n"
    )
    assert read_option(tmp_path, file).settings == (
        Setting("defaults", "data: mine", "mine | yours"),
        Setting("defaults", "grader: THE DATA'S", "exact | none   grades. The data's file\nchooses it"),
        Setting("defaults", "model: tiny", "the model"),
    )


def test_page_shows_verifier_and_model_in_separate_rows() -> None:
    rows = {row.split("</code>")[0]: row for row in PAGE.split("<tr><td><code>")}
    assert "builtin | none | final_number" in rows["verifier"]
    assert "verifier" not in rows["model"]


def test_page_comment_keeps_line_breaks_and_has_links(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "# First line, which\n# goes on: arXiv 2404.00604, docs/data.md, a < b.\n#   python train.py\n"
        "key: 1   # one | two   what it is\n"
    )
    page = settings_page(tmp_path)
    assert "First line, which\ngoes on" in page
    assert '<a href="papers.html">arXiv 2404.00604</a>, <a href="data.html">data</a>, a &lt; b.' in page
    assert "<br>python train.py" in page
    assert "<td><code>key</code></td><td><code>1</code></td><td>one | two&emsp;what it is</td>" in page


def test_read_option_of_file_without_mapping_raises_with_file_name(tmp_path: Path) -> None:
    file = tmp_path / "list.yaml"
    file.write_text("- 1\n")
    with pytest.raises(ValueError, match=r"list\.yaml"):
        read_option(tmp_path, file)
