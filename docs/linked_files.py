"""Hook of the site (`mkdocs.yml`): files outside of docs/ that pages link to are copied into the site.

In the repository a page links to `../configs/README.md`; in the site, where docs/ is the root, to `configs/README.md`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)")
ROOT = Path(__file__).parents[1]
DOCS = "docs/"
RENAMED = {"README.md": "overview.md"}  # the site's own first page would have the same address


def on_files(files: Any, config: Any) -> Any:
    """Add all files outside of docs/ that pages, and the pages so added, link to."""
    from mkdocs.structure.files import File

    waiting = [f"{DOCS}{file.src_uri}" for file in files if file.src_uri.endswith(".md")]
    while waiting:
        page = waiting.pop()
        for target in linked(page, (ROOT / page).read_text(encoding="utf-8")):
            name = site_path(target)
            if target.startswith(DOCS) or files.get_file_from_path(name) or not (ROOT / target).is_file():
                continue
            files.append(File.generated(config, name, abs_src_path=str(ROOT / target)))
            if name.endswith(".md"):
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links between files of the repository into links between files of the site."""
    name = page.file.src_uri
    source = str(Path(page.file.abs_src_path).relative_to(ROOT))

    def in_site(link: re.Match[str]) -> str:
        target = repository_path(source, link[1])
        return posixpath.relpath(site_path(target), posixpath.dirname(name) or ".")

    return LINK.sub(in_site, markdown)


def site_path(target: str) -> str:
    """Path in the site of a file of the repository."""
    return RENAMED.get(target, target.removeprefix(DOCS))


def linked(page: str, text: str) -> list[str]:
    """Paths in the repository that a page links to."""
    return [repository_path(page, target) for target in LINK.findall(text)]


def repository_path(page: str, target: str) -> str:
    """Path in the repository of a link's target.

    Example: `repository_path("docs/data.md", "../configs/README.md")` is `configs/README.md`.
    """
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
