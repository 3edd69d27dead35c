"""Hooks of mkdocs: the texts at the repository's root become pages, and links lead to these.

So README.md, CONTRIBUTING.md and CHANGELOG.md stand once, where a code host shows them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: Any) -> Files:
    """Adds the root's texts to the pages."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links as they are on a code host (`docs/devices.md`, `../CONTRIBUTING.md`), as among the pages."""

    def turn(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        name = target.removeprefix("../")
        return f"]({PAGES.get(name, name.removeprefix('docs/'))}{anchor})"

    return re.sub(r"\]\(((?:\.\./)?[\w./-]+)(#[\w-]*)?\)", turn, markdown)
