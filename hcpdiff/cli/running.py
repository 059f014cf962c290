"""Run one command; and what went wrong as a line of text and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence

import typer

from hcpdiff.cli.app import app

# What click raises for wrong arguments; some versions of typer bring a click of their own, with a class of its own.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
# What the operating system says of a file that the user should look at; the rest, such as a full disk, is a failed run.
USER_ERRNOS = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
LONGEST = 500  # characters of a failure on one line


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0; 2 for a mistake of the user; 1 when a run failed; 130 when interrupted.

    A mistake is told in one line, and without a traceback. HCPDIFF_DEBUG=1 shows the traceback of everything.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[_AboveProgressBars()])
    logging.getLogger("hcpdiff").setLevel(logging.INFO)
    try:
        return _run(list(sys.argv[1:] if argv is None else argv) or ["--help"])
    except KeyboardInterrupt as interrupt:
        return _told(str(interrupt) or "interrupted", 130)
    except BrokenPipeError:  # `hcpdiff layers | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing more fails at exit
        return 1
    except Exception as error:
        if os.environ.get("HCPDIFF_DEBUG"):
            raise
        if _is_mistake(error):
            return _told(_mistake_text(error), 2)
        return _told(_failure_text(error), 1)


def _run(argv: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("hcpdiff", argv) as context:
            command.invoke(context)
    except typer.Exit as done:  # of --help
        return done.exit_code
    return 0


def _is_mistake(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno is None or error.errno in USER_ERRNOS
    return isinstance(error, (ValueError, UsageError))


def _mistake_text(error: Exception) -> str:
    if isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "hcpdiff"
        text = error.format_message().rstrip(".")  # pyright: ignore[reportAttributeAccessIssue]
        return f"{command}: {text}" + ("" if text.endswith("?") else f"; see {command} --help")
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, UnicodeDecodeError):
        return f"a text file is not UTF-8: {error}"
    return str(error)


def _failure_text(error: Exception) -> str:
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        text = text[:LONGEST] + "..."
    notes = getattr(error, "__notes__", None) or ["HCPDIFF_DEBUG=1 shows the traceback"]
    return "; ".join([f"failed: {type(error).__name__}: {text}", *notes])


def _told(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


class _AboveProgressBars(logging.Handler):
    """Writes a line to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)
