"""A report as Markdown, and as one HTML file that holds its images. Nothing here imports torch."""

import base64
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote
from xml.etree.ElementTree import Element

import markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

from rcg_lightning.artifacts import write_text

_TYPES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif"}
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
    "img{max-width:100%;image-rendering:pixelated}table{border-collapse:collapse}"
    "td,th{padding:.2em .7em;border-bottom:1px solid #ccc;text-align:left}"
    "pre{background:#f4f4f4;padding:1em;overflow:auto;max-height:30em;font-size:13px}"
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # whatever the text holds, nothing is fetched


@dataclass(frozen=True)
class Section:
    """One section of a report.

    Attributes:
        title: heading.
        text: Markdown; raw HTML in it is shown, not interpreted.
        folder: to which the paths of images in ``text`` are relative.
    """

    title: str
    text: str
    folder: Path


def image(path: Path, caption: str, folder: Path) -> str:
    """Return Markdown that shows an image with its caption; its path is relative to ``folder``."""
    return f"![{caption}]({quote(os.path.relpath(path, folder))})\n\n{caption}\n"


def code(text: str, language: str = "") -> str:
    """Return Markdown that shows ``text`` as it is."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def code_span(value: object) -> str:
    """Return Markdown that shows a value in a line as it is, such as a path."""
    return "`" + str(value).replace("`", "'") + "`"


def write_report(folder: Path, title: str, sections: Sequence[Section]) -> None:
    """Write report.md, which refers to images, and report.html, which holds them.

    Args:
        folder: to write to.
        title: of the report.
        sections: in their order; empty ones are left out.
    """
    shown = [section for section in sections if section.text.strip()]
    text = "\n".join(
        [f"# {title}\n", *(f"## {section.title}\n\n{_moved(section, folder).strip()}\n" for section in shown)]
    )
    write_text(folder / "report.md", text)
    converter = markdown.Markdown(extensions=["tables", "fenced_code", _Inline(folder)], output_format="html")
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    write_text(
        folder / "report.html",
        f"<!doctype html><html><head>{head}</head><body>{converter.convert(text)}</body></html>\n",
    )


def _moved(section: Section, folder: Path) -> str:
    """Return the text of a section with the paths of its images relative to ``folder``."""
    if section.folder == folder:
        return section.text
    prefix = quote(os.path.relpath(section.folder, folder))
    return section.text.replace("](", f"]({prefix}/")


class _Inline(Extension):
    """Puts images into the page, and shows raw HTML as text."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def extendMarkdown(self, md: markdown.Markdown) -> None:
        md.preprocessors.deregister("html_block")
        md.inlinePatterns.deregister("html")
        md.treeprocessors.register(_InlineImages(md, self.folder), "inline_images", 0)


class _InlineImages(Treeprocessor):
    def __init__(self, md: markdown.Markdown, folder: Path) -> None:
        super().__init__(md)
        self.folder = folder

    def run(self, root: Element) -> None:
        for found in root.iter("img"):
            path = self.folder / unquote(found.get("src", ""))
            kind = _TYPES.get(path.suffix.lower())
            if kind is not None and path.is_file():
                found.set("src", f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}")
