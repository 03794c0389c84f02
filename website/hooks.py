"""What the site has beyond the pages of docs/: pages of other folders, and pages made from the code.

Links are written as files lie in the repository, so that they work in any viewer; here they are turned into links of
the site. A link to a file that is no page becomes plain text.
"""

from __future__ import annotations

import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website.api import api_pages
from website.methods import anchor, method_parts, page_of_recipe
from website.repository import ROOT
from website.run_file import run_file_page

# File of the repository -> page of the site; all others of docs/ keep their place.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
}
# Recipe -> its place on the page of its method.
RECIPES = {
    f"recipes/{name}.toml": f"methods/{page}#{anchor(f'recipes/{name}.toml')}"
    for name, page in page_of_recipe().items()
}
FENCED = re.compile(r"(^```.*?^```$)", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> None:
    """Put the pages that are made from the code into the navigation."""
    (reference,) = (item["Reference"] for item in config.nav or [] if "Reference" in item)
    reference.append({"The run file": "reference/run-file.md"})
    reference.append({"Python": [{name: path} for name, path, _ in api_pages()]})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages of other folders, and pages that are made from the code."""
    for source, path in PAGES.items():
        files.append(File.generated(config, path, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "reference/run-file.md", content=run_file_page()))
    for asset in ("iframe-worker.js", "tables.css"):
        files.append(File.generated(config, f"assets/{asset}", content=(ROOT / "website" / asset).read_text()))
    for _, path, text in api_pages():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository become links of the site; a method's page gets what is made from the code."""
    sources = {path: source for source, path in PAGES.items()}
    sources["reference/run-file.md"] = "docs/usage/run-file.md"  # whose sentences it repeats
    here = page.file.src_uri
    folder = posixpath.dirname(sources.get(here, f"docs/{here}"))
    is_method = here.startswith("methods/") and not here.endswith("README.md")
    parts = FENCED.split(markdown + method_parts(markdown) if is_method else markdown)
    return "".join(
        part if place % 2 else LINK.sub(lambda found: _link(found, folder, here, files), part)
        for place, part in enumerate(parts)
    )


def _link(found: re.Match[str], folder: str, here: str, files: Files) -> str:
    mark, text, target, place = found[1], found[2], found[3], found[4] or ""
    if not target or ":" in target:
        return found[0]
    source = posixpath.normpath(posixpath.join(folder, target))
    if source in RECIPES:
        path, _, name = RECIPES[source].partition("#")
        place = f"#{name}"
    else:
        path = PAGES.get(source, source.removeprefix("docs/"))
    if files.get_file_from_path(path) is None and not source.startswith("docs/"):
        return text
    return f"{mark}[{text}]({posixpath.relpath(path, posixpath.dirname(here) or '.')}{place})"
