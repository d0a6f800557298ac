"""The command line: `tmbench`. Each command is a function in `commands/`, listed here."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tokenmerge_bench.commands.audit import audit
from tokenmerge_bench.commands.compare import compare
from tokenmerge_bench.commands.help import Command, Program
from tokenmerge_bench.commands.listing import flops, list_
from tokenmerge_bench.commands.products import figures, tables
from tokenmerge_bench.commands.profile import profile
from tokenmerge_bench.commands.report import report
from tokenmerge_bench.commands.show import show
from tokenmerge_bench.commands.sweep import run, sweep
from tokenmerge_bench.commands.train import train
from tokenmerge_bench.completion import COMPLETE, in_bash
from tokenmerge_bench.errors import CountingError, InputError
from tokenmerge_bench.flags import with_flags
from tokenmerge_bench.terminal import say

UsageError: Any = typer.BadParameter.__base__
"""Every complaint about flags and arguments: click's class, of which newer versions of typer have a copy."""
COMMANDS: dict[str, list[Callable[..., None]]] = {
    "Evaluate": [sweep, run, profile, train],
    "Look at results": [report, show, figures, tables, compare, audit],
    "Look up": [flops, list_],
}
"""The commands by the heading they stand under in the help; each has the name of its function."""

app = typer.Typer(
    cls=Program,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        from tokenmerge_bench.provenance import version

        typer.echo(f"tokenmerge-bench {version()}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Which way of reducing Vision Transformer tokens keeps the most accuracy at the same FLOPs?

    FLOPs are multiply-accumulates per image, as fvcore counts and as the papers print.
    """


for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(command.__name__.strip("_"), cls=Command, rich_help_panel=panel)(with_flags(command))


def main() -> None:
    """Runs the command line, or answers a shell that asks how a line goes on."""
    if os.environ.get(COMPLETE) == "complete_bash":
        in_bash(_main)
    else:
        _main()


def _main() -> None:
    """Wrong input ends with one sentence on stderr and exit code 2."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="tmbench", standalone_mode=False))
    except typer.Abort:  # older versions of typer make one of a Ctrl-C
        sys.exit(130)
    except UsageError as error:
        say(_usage(error))
        sys.exit(2)
    except (InputError, CountingError) as error:
        say(str(error))
        sys.exit(2)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "the disk is full; make room and give the same command again, finished work is kept."
        elif isinstance(error, (FileExistsError, NotADirectoryError)) and error.filename:
            remedy = f"'{error.filename}' is a file, or lies in one, where a folder is needed; give another path."
        else:
            what = f"'{error.filename}'" if error.filename else "a file"
            remedy = (
                f"{what} cannot be read or written ({error.strerror or error}); check the path and its permissions."
            )
        say(remedy)
        sys.exit(2)


def _usage(error: Any) -> str:
    """What is wrong with flags or arguments, in one sentence."""
    message = " ".join(error.format_message().split()).replace("Value error, ", "").removesuffix(".")
    command = error.ctx.command_path if error.ctx else "tmbench"
    return f"{message} (`{command} --help` shows how)."
