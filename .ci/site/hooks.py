"""What MkDocs calls while it builds the site: pages that are made, links, and no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dialect
import notebooks
import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for name, text in pages.generated().items():
        files.append(File.generated(config, name, content=text))
    for path in (path for path in pages.pages() if path.suffix == ".ipynb"):
        name = path.relative_to(pages.DOCS).with_suffix("")
        text, pictures = notebooks.page(path)
        files.append(File.generated(config, f"{name.as_posix()}.md", content=text))
        for picture, data in pictures.items():
            where = (name.parent / picture).as_posix()
            files.append(File.generated(config, where, content=data))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Translate a page from GitHub's Markdown, and its links."""
    name = page.file.src_uri
    if name in pages.REFERENCE:
        return markdown
    text = pages.relinked(markdown, name)
    return dialect.translated(text if name in pages.WHOLE.values() else pages.named(text))


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that loads anything from elsewhere.

    Raises:
        PluginError: If a page or a style sheet does.
    """
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css"):
            found = pages.LOADED.search(path.read_text(encoding="utf-8"))
            if found:
                raise PluginError(f"{path.name} needs the network: {found[0]}")
