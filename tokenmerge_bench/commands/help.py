"""The help of a command: prose, flags under headings, and examples that can be pasted from a terminal of any width."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from tokenmerge_bench.commands.examples import EXAMPLES, Example
from tokenmerge_bench.commands.listing import Listing
from tokenmerge_bench.flags import OUTPUT, PANELS
from tokenmerge_bench.terminal import decorated, stdout

if TYPE_CHECKING:
    from collections.abc import Iterator

LISTED = {listing.value for listing in Listing}
COMMAND = "cyan"
"""The style of what is to be typed, which no terminal may break."""


class _Helpful:
    """What commands and the program have in common; stands before typer's class."""

    if TYPE_CHECKING:
        name: str | None
        help: str | None
        rich_markup_mode: Any

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        paragraphs = (self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)  # a terminal breaks the lines

    def get_params(self, ctx: Any) -> list[Any]:
        """The flags in the order of their headings, `--help` under the last one, and types only where they help."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
            if param.param_type_name == "argument":
                param.display_type_rich = lambda ctx: ""
            if param.name == "help" and any(map(_heading, params)):
                param.rich_help_panel = OUTPUT
        return sorted(params, key=lambda param: PANELS.index(_heading(param)) if _heading(param) in PANELS else -1)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help: straight to the terminal, or as plain text into the formatter."""
        console = stdout()
        self.rich_markup_mode = "rich" if decorated(console) else None
        super().format_help(ctx, formatter)  # type: ignore[misc]
        for line in _lines(EXAMPLES.get(self.name or "", [])):
            if decorated(console):
                console.print(line, highlight=False, soft_wrap=line.style == COMMAND)
            else:
                formatter.write(f"{line.plain}\n")


def _heading(param: Any) -> str:
    return getattr(param, "rich_help_panel", None) or ""


class Command(_Helpful, TyperCommand):
    """A command whose help ends with its examples."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The flags in plain text, under the headings that they have in a terminal."""
        for panel, records in self.panels(ctx).items():
            with formatter.section(panel):
                formatter.write_dl(records)

    def panels(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """The flags as they are written, each with what it does, under their headings."""
        panels = defaultdict(list)
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                panels[_heading(param) or "Arguments"].append(record)
        return panels


class Program(_Helpful, TyperGroup):
    """The program, whose help ends with examples."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Also says where what can be listed is, to who takes it for a command."""
        if args and args[0] in LISTED:
            ctx.fail(f"No such command '{args[0]}'; did you mean `tmbench list {args[0]}`?")
        return super().resolve_command(ctx, args)


def _lines(examples: list[Example]) -> Iterator[Text]:
    """What is shown of examples, line by line, so that a command can be taken as it stands."""
    if examples:
        yield Text()
        yield Text(" Examples", style="bold")
    for example in examples:
        needs = f" (needs {example.needs})" if example.needs else ""
        yield Text()
        yield from (Text(f"  {line}") for line in textwrap.wrap(f"{example.what}{needs}", 76, break_on_hyphens=False))
        yield from (Text(f"    {line}", style=COMMAND) for line in example.command.split("\n"))
    if examples:
        yield Text()
