"""How `make docs` builds the website: MyST pages, API pages from docstrings, and a navigation from index.md."""

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # for the version; the package itself is imported as it is installed

from dcl_face_forgery import __version__  # noqa: E402

logger = logging.getLogger(__name__)

project, author = "DCL", "the DCL authors"
release = version = __version__
html_title = f"DCL {release}"
html_theme = "furo"
html_static_path: list[str] = []
html_copy_source = html_show_sourcelink = False

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["build"]
highlight_language = "none"
copybutton_prompt_text = ">>> "

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to headings, as GitHub names them

autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
napoleon_custom_sections = [("Buffers", "params_style"), ("Reference", "notes_style")]


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append to the index a hidden table of contents: its headings, and the pages that their lists link to.

    So the index needs no directive, which GitHub would show as it is.
    """
    if docname != app.config.root_doc:
        return
    for heading, text in re.findall(r"^## (.+)\n((?:(?!^## ).*\n?)*)", source[0], re.MULTILINE):
        pages = re.findall(r"^- \[(.+?)\]\((.+?)\.md\)", text, re.MULTILINE)
        entries = "\n".join(f"{title} <{page}>" for title, page in pages)
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{entries}\n```\n"


def translate_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: dict[str, Any], lines: list[str]
) -> None:
    """Make reStructuredText of the Markdown in a docstring, and warn where there is no docstring at all."""
    if not any(line.strip() for line in lines):
        if what in ("module", "class", "exception", "function", "method", "property"):
            logger.warning("%s has no docstring", name, type="autodoc", subtype="missing")
        return
    text = re.sub(r"\[(`\w+`)\](?!\()", r"\1", "\n".join(lines))  # transformers' way to link a class

    def block(match: re.Match) -> str:
        indent, language, code = match.groups()
        body = "\n".join(f"    {line}" if line.strip() else "" for line in code.rstrip().split("\n"))
        return f"\n{indent}.. code-block:: {language or 'text'}\n\n{body}\n"

    text = re.sub(r"^([ ]*)```(\w*)\n(.*?)^[ ]*```$", block, text, flags=re.MULTILINE | re.DOTALL)
    # Markdown's indented code: after a blank line, below a paragraph that is not indented.
    text = re.sub(r"^(\S.*)\n\n((?: {4}.*(?:\n|\Z))+)", r"\1\n\n.. code-block:: text\n\n\2", text, flags=re.MULTILINE)
    # On one line and in two backticks, or napoleon takes a colon in code for the end of a type.
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)", lambda match: f"``{' '.join(match[1].split())}``", text)
    lines[:] = text.split("\n")


def skip_member(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: dict[str, Any]) -> bool | None:
    """Leave out what a module imports, aliases in a class, and fields of dataclasses, which their class describes."""
    if what == "module":
        ours = str(getattr(obj, "__module__", "dcl_face_forgery")).startswith("dcl_face_forgery")
        return None if ours else True
    described = callable(obj) or isinstance(obj, (property, classmethod, staticmethod))
    return True if isinstance(obj, type) or not described else None


def setup(app: Sphinx) -> None:
    """Connect what is above."""
    app.connect("source-read", add_navigation)
    app.connect("autodoc-process-docstring", translate_docstring, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip_member)
