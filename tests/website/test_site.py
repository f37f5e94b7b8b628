"""Check that the documentation builds without a warning and that the site loads nothing from the network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import ROOT
from website import reference
from website.reference import modules, public_names, reference_pages

PACKAGE = ROOT / "src" / "selfcontrast"
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*?\bsrc=["']?(https?:|//)|<link\b[^>]*\bhref=["']?(https?:|//)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    build = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert build.returncode == 0, build.stderr
    return folder


def test_site_has_a_page_of_every_document(site: Path) -> None:
    for document in (ROOT / "docs").glob("*.md"):
        assert (site / f"{document.stem}.html").is_file()
    for page in ("index", "contributing", "changelog", "measured", "settings", "reference/public"):
        assert (site / f"{page}.html").is_file()


def test_site_fetches_nothing_from_the_network(site: Path) -> None:
    assert FETCHED.search('<link href="https://fonts.example/css">')
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 40
    for page in pages:
        text = page.read_text()
        assert not FETCHED.search(text), page
        assert not re.search(r"@import|url\([\"']?https?:", text) or page.suffix == ".html", page


def test_every_public_name_has_its_documentation(site: Path) -> None:
    text = (site / "reference" / "public.html").read_text()
    for module, names in public_names(PACKAGE).items():
        for name in names:
            assert f'id="{module}.{name}"' in text


def test_classes_on_settings_page_link_to_the_reference(site: Path) -> None:
    text = (site / "settings.html").read_text()
    assert 'href="reference/filters.html#selfcontrast.filters.select.Filter"' in text
    assert "<autoref" not in text


def test_links_to_the_repository_become_links_within_the_site(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert 'href="default.html"' in text
    assert 'href="contributing.html"' in text
    assert 'href="reference/data.html#selfcontrast.data.builtin"' in text
    assert ".md" not in "".join(re.findall(r'href="([^"]*)"', text))


def test_reference_has_every_module_once() -> None:
    text = "\n".join(page for name, page in reference_pages(PACKAGE).items() if name != reference.PUBLIC)
    names = re.findall(r"^::: (.*)$", text, re.MULTILINE)
    assert sorted(names) == sorted(set(modules(PACKAGE)) - {"selfcontrast"})
    assert "selfcontrast.losses" in names
