"""What mkdocs calls while it builds docs/ (mkdocs.yml names it)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_UP = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)[^)]*\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files beside docs/, as a code host follows them, are their text here: the site has no such files.

    One to a file that is not there stays, and is told by mkdocs.
    """
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def plain(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        beside = ROOT in target.parents and ROOT / "docs" not in target.parents and target.exists()
        return link[1] if beside else link[0]

    return _UP.sub(plain, markdown)
