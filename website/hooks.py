"""Hooks of MkDocs: add the generated pages, and point links to files of the repository at pages of the site."""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from website import reference, settings  # noqa: E402  # MkDocs loads this file by its path

# Pages whose source is not under docs/ but where readers of the repository look for it.
ELSEWHERE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "measured.md": "benchmarks/RESULTS.md",
}
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
PACKAGE = ROOT / "src" / "selfcontrast"


def generated_pages() -> dict[str, str]:
    """Return the Markdown of all pages that are not under docs/, by their path below the site's root."""
    copied = {page: (ROOT / source).read_text() for page, source in ELSEWHERE.items()}
    return {**copied, settings.PAGE: settings.settings_page(ROOT / "conf"), **reference.reference_pages(PACKAGE)}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for page, text in generated_pages().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_config(config: Any) -> Any:
    """List the reference's pages at the end of the navigation, so that a new package needs no line there."""
    pages = [page for page in reference.reference_pages(PACKAGE) if page not in (reference.INDEX, reference.PUBLIC)]
    entries: list[Any] = [reference.INDEX, {"Public API": reference.PUBLIC}]
    entries += [{"top level" if page == reference.MODULES else Path(page).stem: page} for page in pages]
    config.nav.append({"API reference": entries})
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Convert the links of a page, which are written for readers of the repository, to links within the site."""
    path = page.file.src_uri
    if path.startswith("reference/") or path == settings.PAGE:
        return markdown
    source = ELSEWHERE.get(path, f"docs/{path}")
    return LINK.sub(lambda link: site_link(link, source), markdown)


def site_link(link: re.Match[str], source: str) -> str:
    """Convert a Markdown link in the file `source` to a link within the site.

    A module links to its reference, and a file of settings to its place on the page of settings. A link to another file
    without a page becomes its text.

    Raises:
        PluginError: for a link to a file that does not exist.
    """
    target, _, anchor = link["target"].partition("#")
    if not target or "://" in target or target.startswith("mailto:"):
        return link[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / path).exists():
        raise PluginError(f"{source} links to {target}, which does not exist. Correct the link.")
    pages = {file: page for page, file in ELSEWHERE.items()}
    if path in pages:
        new = pages[path]
    elif path.startswith("docs/"):
        new = path.removeprefix("docs/")
    elif path == "conf":
        new = settings.PAGE
    elif path.startswith("conf/"):
        new, anchor = settings.PAGE, path.removeprefix("conf/").removesuffix(".yaml").replace("/", "-")
    elif path == "src/selfcontrast/__init__.py":
        new = reference.PUBLIC
    elif path.startswith("src/selfcontrast/") and path.endswith(".py"):
        module = path.removeprefix("src/").removesuffix(".py").replace("/", ".")
        new, anchor = reference.page_of(module, PACKAGE), module
    else:
        return link["text"]
    return f"{link['image']}[{link['text']}]({new}{'#' + anchor if anchor else ''})"
