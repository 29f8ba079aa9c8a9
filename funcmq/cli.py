"""The `funcmq` command: noun, then verb.

Each command lives in its room and is imported when it is called; the one-line helps are kept here, so that `funcmq --help` imports
nothing else.  Exit status: 0 ok, 1 the task failed, 2 usage, 3 unreachable, 4 not allowed, 5 timed out, 6 anything else refused or in the
way (the table is in `funcmq.broker.errors`), 130 Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from funcmq.broker.errors import FuncmqError

INTERRUPTED = 130
BROKEN_PIPE = 141
USAGE = 2
UNKNOWN = re.compile(r"No such command '([^']*)'\.?")
DAEMONS = (("serve",), ("db",), ("dev",), ("endpoint", "start"))
"""Commands that say 78 of a bad configuration, as daemons do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is (`module:attribute`), and what `--help` says about it."""

    target: str
    help: str

    def load(self) -> click.Command:
        """The command itself."""
        module, _, name = self.target.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


COMMANDS = {
    "dev": Entry("funcmq.dev.command:dev", "A whole private fabric on this machine, for as long as it runs."),
    "run": Entry("funcmq.client.run_command:run", "Run a function far away and print its result."),
    "task": Entry("funcmq.client.task_commands:task", "List, show, await, cancel and retry tasks."),
    "function": Entry("funcmq.client.function_commands:function", "List, show, share and delete registered functions."),
    "endpoint": Entry("funcmq.endpoint.commands:endpoint", "Set up, start, stop and look at endpoints."),
    "dead": Entry("funcmq.client.dead_commands:dead", "List what could not be delivered, and send it once more."),
    "login": Entry("funcmq.client.account_commands:login", "Exchange a one-time code for a token and make this machine's key."),
    "whoami": Entry("funcmq.client.account_commands:whoami", "Who the front door thinks you are."),
    "user": Entry("funcmq.client.account_commands:user", "Add and list users (administrators)."),
    "token": Entry("funcmq.client.account_commands:token", "Create, list and revoke tokens."),
    "key": Entry("funcmq.client.account_commands:key", "List, add and revoke signing keys."),
    "profile": Entry("funcmq.client.profiles:profile", "List and choose profiles: the fabrics that you are logged in to."),
    "doctor": Entry("funcmq.client.doctor:doctor", "Look at everything between this machine and the fabric."),
    "serve": Entry("funcmq.forwarder.commands:serve", "Run the front door."),
    "db": Entry("funcmq.forwarder.commands:db", "Look after the front door's database."),
}


class LazyGroup(click.Group):
    """A group that imports a command only when it is called."""

    def __init__(self, entries: dict[str, Entry], help: str) -> None:  # noqa: A002  # click's word
        super().__init__(help=help, context_settings={"help_option_names": ["-h", "--help"]})
        self._entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """In the order of the table: what newcomers need first."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """Import one command; None for a name that does not exist."""
        entry = self._entries.get(cmd_name)
        return entry.load() if entry else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        """List them from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self._entries.items()])


cli = LazyGroup(
    COMMANDS,
    "Run Python functions on computers far away.\n\nTry `funcmq dev`: it starts everything on this machine, and says what to type next.",
)
click.version_option(package_name="funcmq", message="funcmq %(version)s")(cli)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command in `arguments` (those of the process by default) and exit with its status."""
    sys.exit(status(arguments))


def status(arguments: Sequence[str] | None = None, command: click.Command = cli) -> int:
    """Run a command; its exit status.  Everything that can go wrong is said here, on stderr, and nowhere else."""
    try:
        answer = command.main(arguments, prog_name="funcmq", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as wrong:
        wrong.show()
        if meant := _meant(wrong):
            click.echo(f"Did you mean {meant}?", err=True)
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at exit
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001  # what is not ours is raised again
        return _refuse(error, sys.argv[1:] if arguments is None else [*arguments])
    return answer if isinstance(answer, int) else 0


def _meant(wrong: click.ClickException) -> str:
    """The commands that may have been meant.  click says so in some of its releases, and not for commands that are loaded lazily."""
    import difflib  # noqa: PLC0415  # not needed for --help

    context, word = getattr(wrong, "ctx", None), UNKNOWN.match(wrong.message)
    if word is None or context is None or not isinstance(context.command, click.Group) or "Did you mean" in wrong.format_message():
        return ""
    return " or ".join(difflib.get_close_matches(word[1], context.command.list_commands(context), 3))


def _refuse(error: Exception, command: list[str]) -> int:
    """Say what a FuncmqError says; anything else is a bug and keeps its traceback."""
    from funcmq.broker.errors import ConfigurationError, FuncmqError  # noqa: PLC0415  # not needed for --help

    known = next((found for found in _leaves(error) if isinstance(found, FuncmqError)), None)
    if known is None:
        raise error
    click.echo(f"Error: {_named(known)}", err=True)
    if known.hint:
        click.echo(known.hint, err=True)
    if isinstance(known, ConfigurationError) and not any(tuple(command[: len(daemon)]) == daemon for daemon in DAEMONS):
        return USAGE
    return known.exit


def _named(error: FuncmqError) -> str:
    """What it says, with the type of the exception that a task raised."""
    kind = str(error.details.get("type_name", "")).removeprefix("builtins.")
    return error.message if not kind or error.message.startswith(kind) else f"{kind}: {error.message}"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
