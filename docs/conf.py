"""Sphinx builds the documentation site from the Markdown files of this folder: `make site`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import tokenmerge_bench
from tokenmerge_bench import cli, provenance
from tokenmerge_bench.commands.examples import EXAMPLES, Example

project = "tokenmerge-bench"
author = "The tokenmerge-bench authors"
project_copyright = f"{author}, Apache-2.0"
release = provenance.version()

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "py:obj"  # docstrings name code in single backquotes; what is in the reference becomes a link
smartquotes = False  # what stands between quotes is meant to be typed
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


def show_linked(app: Any, docname: str, source: list[str]) -> None:
    """A page that is one link, to a document at the top of the repository, is that document."""
    if link := re.fullmatch(r"\[[^]]+\]\((\.\./\w+\.md)\)\n", source[0]):
        source[0] = Path(app.srcdir, link[1]).read_text(encoding="utf-8")


def fill_in_commands(app: Any, docname: str, source: list[str]) -> None:
    """Every command with its flags and its examples, from the program."""
    if "<!-- commands -->" in source[0]:
        source[0] = source[0].replace("<!-- commands -->", "\n".join(all_commands()))


def all_commands() -> Iterator[str]:
    """Lines of Markdown: the commands under the headings of `tmbench --help`."""
    program: Any = typer.main.get_command(cli.app)
    for heading, functions in cli.COMMANDS.items():
        yield f"## {heading}\n"
        for function in functions:
            name = function.__name__.strip("_")
            yield from one_command(name, program.commands[name])


def one_command(name: str, command: Any) -> Iterator[str]:
    """What a command does, its usage, its flags under their headings, its examples."""
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join([f"tmbench {name}", *command.collect_usage_pieces(context)])
    yield f"### tmbench {name}\n\n{as_markdown(command.help)}\n\n```\n{usage}\n```\n"
    for panel, flags in command.panels(context).items():
        yield f"**{panel}**\n"
        yield from (f"* `{written}`: {as_markdown(said)}" for written, said in flags if "--help" not in written)
        yield ""
    yield "\n\n".join(f"{example.what}{needs(example)}:\n\n```sh\n{example.command}\n```" for example in EXAMPLES[name])
    yield ""


def as_markdown(text: str) -> str:
    """The words of a help, in which only backquotes have a meaning."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<\[\\])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def needs(example: Example) -> str:
    """What must be there before an example can be run."""
    return f" (needs {as_markdown(example.needs)})" if example.needs else ""


def setup(app: Any) -> None:
    """What Sphinx calls with the conf.py of a project."""
    app.connect("source-read", show_linked)
    app.connect("source-read", fill_in_commands)
    app.connect("source-read", unlink_folders)
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("missing-reference", link_by_public_name)
