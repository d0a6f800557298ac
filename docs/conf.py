"""Sphinx builds the documentation site from the Markdown files of this folder: `make site`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import tokenmerge_bench
from tokenmerge_bench import provenance

project = "tokenmerge-bench"
author = "The tokenmerge-bench authors"
project_copyright = f"{author}, Apache-2.0"
release = provenance.version()

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "py:obj"  # docstrings name code in single backquotes; what is in the reference becomes a link
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

# The Markdown is GitHub's, so that the pages can be read there as well.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}

highlight_language = "text"

html_theme = "furo"
html_title = project
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_last_updated_fmt = None
pygments_style = "tango"
pygments_dark_style = "github-dark"


def inline_math(translator: Any, node: nodes.math) -> None:
    """A formula in a line, as MathML: browsers draw it themselves, without a script and without a network."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def block_math(translator: Any, node: nodes.math_block) -> None:
    """A formula on lines of its own."""
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def link_by_public_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Annotations name a class by the module that defines it; the reference lists it as `tokenmerge_bench.Class`."""
    name = node["reftarget"].rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in tokenmerge_bench.__all__:
        return None
    public = f"tokenmerge_bench.{name}"
    if node["reftarget"] == public:
        return None
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, contnode)


def unlink_folders(app: Any, docname: str, source: list[str]) -> None:
    """A folder of the repository, which GitHub shows, has no page here: its link becomes plain text."""
    here = Path(app.srcdir, docname).parent

    def plain(link: re.Match[str]) -> str:
        return link[1] if (here / link[2]).is_dir() else link[0]

    source[0] = re.sub(r"\[([^][]+)\]\(([^()#]+)\)", plain, source[0])


def setup(app: Any) -> None:
    """What Sphinx calls with the conf.py of a project."""
    app.connect("source-read", unlink_folders)
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("missing-reference", link_by_public_name)
