"""The command line: all commands, and what an error prints and exits with.

Commands import torch inside, because the import takes seconds, and specs, tables and members too, so that help is
printed at once.
"""

import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import getdoc
from io import TextIOWrapper
from types import FrameType
from typing import Annotated

import typer

from robustcli import __version__
from robustcli.cli import (
    authoring,
    bench,
    cluster,
    comparisons,
    diagnosis,
    doctor,
    evaluation,
    examples,
    explain,
    export,
    inspect,
    members,
    pack,
    panels,
    plan,
    push,
    results,
    show,
    specs,
    sweep,
    training,
    verify,
)
from robustcli.cli.hints import usual
from robustcli.cli.torchrun import is_silent, refuse_torchrun, which_process
from robustcli.errors import CheckFailedError, CollapseError, Interrupted, NotFiniteError, RobustCliError, disk_message

PURPOSE = "Adversarial training and evaluation: one YAML spec in; a model, its robust accuracy and the evidence out."
EXIT_CODES = (
    "Exit codes: 0 ok, 1 a check failed, 2 bad input, 3 interrupted (can be resumed), 4 training failed, 70 internal "
    "error (please report it), 130 stopped by Ctrl-C (there is nothing to resume)."
)

# As a shell reports processes that these signals ended.
_INTERRUPTED, _CLOSED = 130, 141
# Seconds after Ctrl-C in which a command may clean up.
_PATIENCE = 10.0

app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=f"{PURPOSE}\n\n{EXIT_CODES}",
)
for commands in (
    training,
    specs,
    evaluation,
    diagnosis,
    inspect,
    results,
    verify,
    comparisons,
    examples,
    push,
    sweep,
    plan,
    pack,
    cluster,
    members,
    show,
    explain,
    doctor,
    authoring,
):
    app.add_typer(commands.app)
app.add_typer(bench.app, name="bench", rich_help_panel=panels.HELP)
app.add_typer(export.app, name="export", rich_help_panel=panels.RESULTS)


def main() -> None:
    """Run a command; errors in the input become one message and an exit code."""
    # Waiting threads that spin slow each other down on shared cores. Set here, because torch reads it at import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.formatwarning = _in_words
    if is_silent():
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Also print names that are not UTF-8.
            stream.reconfigure(errors="backslashreplace")
    try:
        _require_text(sys.argv[1:])
        _join_lines(app)
        with _interrupts():
            app(args=usual(sys.argv[1:]))
    except Interrupted as stopped:
        typer.echo(f"{which_process()}{stopped}{_how_to_resume(sys.argv[1:])}", err=True)
        sys.exit(3)
    except (CollapseError, NotFiniteError) as failure:
        typer.echo(f"{which_process()}training failed: {failure}", err=True)
        sys.exit(4)
    except CheckFailedError as failure:
        typer.echo(f"failed: {failure}", err=True)
        sys.exit(1)
    except RobustCliError as error:
        typer.echo(f"{which_process()}error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        typer.echo(f"{which_process()}error: {disk_message(error)}", err=True)
        sys.exit(2)
    except Exception as error:
        if (reason := _memory_message(error)) is not None:
            typer.echo(f"{which_process()}error: {reason}", err=True)
            sys.exit(2)
        traceback.print_exc()
        typer.echo("internal error: please report it with the lines above", err=True)
        sys.exit(70)


@contextmanager
def _interrupts() -> Iterator[None]:
    """Let Ctrl-C end the command with one line and exit code 130, except where a workflow handles it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A KeyboardInterrupt that is raised in a callback, such as one of an import, is lost.
    last = threading.Timer(_PATIENCE, _end_at_once)
    last.daemon = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not last.is_alive():
            last.start()
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    # A command in the background of a shell ignores Ctrl-C.
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        _say_interrupted()
        sys.exit(_INTERRUPTED)
    except SystemExit as end:
        # Made by typer from a KeyboardInterrupt.
        if end.code == _INTERRUPTED:
            _say_interrupted()
        # As by `head`: not 1, which says that a check failed.
        if isinstance(end.__context__, BrokenPipeError):
            raise SystemExit(_CLOSED) from None
        raise
    finally:
        last.cancel()
        signal.signal(signal.SIGINT, before)


def _end_at_once() -> None:
    _say_interrupted()
    os._exit(_INTERRUPTED)


def _say_interrupted() -> None:
    typer.echo(f"{which_process()}interrupted", err=True)


def _memory_message(error: Exception) -> str | None:
    """Return a message for a failed allocation on a GPU or the CPU; None for other errors."""
    if not isinstance(error, RuntimeError | MemoryError):
        return None
    from robustcli.runtime.out_of_memory import is_out_of_memory

    if not is_out_of_memory(error):
        return None
    reason = (str(error).splitlines() or ["no further reason given"])[0]
    return (
        f"out of memory ({reason}); use a smaller batch (train.batch_size=N, --batch-size N), a smaller network or "
        "precision bf16; `robust plan` estimates the memory of a spec. What was finished is kept"
    )


def _join_lines(group: typer.Typer) -> None:
    """Join the lines of paragraphs in help texts, which typer would print as they are in the docstring."""
    for command in group.registered_commands:
        command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", command.help or getdoc(command.callback) or "") or None
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _join_lines(inner.typer_instance)


def _require_text(words: list[str]) -> None:
    """Raise for paths that Python cannot read as text, because specs and results store paths as text."""
    for word in words:
        if word.isprintable() or not any("\ud800" <= letter <= "\udfff" for letter in word):
            continue
        name = os.fsencode(word)
        try:
            shown = name.decode()
        except UnicodeDecodeError:
            shown = name.decode(errors="backslashreplace")
            raise RobustCliError(f"'{shown}': not UTF-8; rename it, or use a link with another name") from None
        raise RobustCliError(
            f"'{shown}': Python reads names of files as {sys.getfilesystemencoding()} here; expected UTF-8; set "
            "PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8"
        )


def _how_to_resume(words: list[str]) -> str:
    """Advice for resuming an interrupted command; empty if it cannot be resumed."""
    command = words[0] if words else ""
    if command == "train":
        return "; continue with --resume"
    return "; run the same command again to resume" if command in ("reproduce", "demo", "sweep", "eval") else ""


def _in_words(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning; with its place only if it is about code."""
    if issubclass(category, DeprecationWarning | FutureWarning):
        return f"{filename}:{lineno}: {category.__name__}: {message}\n"
    return f"warning: {message}\n"


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"robust {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    else:
        refuse_torchrun(context.invoked_subcommand)
