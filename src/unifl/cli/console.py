"""Where the command line prints, and how it says that something went wrong."""

from __future__ import annotations

import errno
import json
import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from unifl.errors import TrainingStopped, UserError

out = Console()
err = Console(stderr=True)

STOPPED, WRONG_USE, INTERRUPTED = 1, 2, 130

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_PLACE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
)


class Commands(TyperGroup):
    """Commands whose errors are one line: what is wrong and what to change, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit codes are 2 for wrong use, 1 for a run that had to stop, 130 for Ctrl-C."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except UserError as error:
            code = _complain(f"{error}", WRONG_USE)
        except TrainingStopped as error:
            code = _complain(f"{error}", STOPPED)
        except OSError as error:
            code = _complain_of_the_disk(error)
        except KeyboardInterrupt:
            code = _complain("interrupted", INTERRUPTED)
        raise typer.Exit(code)


def interrupted(advice: str) -> typer.Exit:
    """What to raise after Ctrl-C, with a line that says how to go on."""
    return typer.Exit(_complain(f"interrupted; {advice}", INTERRUPTED))


def this_command() -> str:
    """The command line as it was typed."""
    return shlex.join(["unifl", *sys.argv[1:]])


def progress_line(text: str, done: int, total: int) -> None:
    """Show how far something is, in place on a terminal and only at its end elsewhere."""
    if err.is_terminal:
        end = "\n" if done >= total else ""
        err.print(f"\r{text}: {done}/{total}", end=end, highlight=False, markup=False)
    elif done >= total:
        err.print(f"{text}: {total} pictures", highlight=False, markup=False)


@contextmanager
def picture_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the time that is left, gone when it ends; to be called with (what, pictures done, pictures in all)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn(), TextColumn("pictures"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)
        yield lambda name, done, total: bar.update(
            task, description=name, completed=done, total=total, visible=True
        )


def write_json(found: Any, path: Path) -> None:
    """Write the figures of a dataclass into a file.

    Raises:
        UserError: It cannot be written.
    """
    from unifl.disk import require_writable, write_atomically

    require_writable(path)
    write_atomically(path, (json.dumps(asdict(found), indent=1) + "\n").encode())


def quiet_libraries() -> None:
    """Turn off progress bars and notes of other libraries; ours say what matters."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # of an argument that diffusers passes on, at every name that the hub does not have
    warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for library in (of_diffusers, of_transformers):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _complain(message: str, code: int) -> int:
    # soft wrap: one line stays one line when it is copied or searched for
    err.print(f"[bold red]error:[/] [red]{escape(message)}[/]", soft_wrap=True, highlight=False)
    return code


def _complain_of_the_disk(error: OSError) -> int:
    """Tell what a user can change; any other error keeps its traceback."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in _FULL:
        return _complain(f"{where}{error.strerror}; make room, and run the same command again", STOPPED)
    if error.errno in _NO_PLACE:
        return _complain(f"{where}{error.strerror}; name another place, or change its rights", WRONG_USE)
    raise error


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    err.print(f"[yellow]warning:[/] {escape(str(message))}", soft_wrap=True, highlight=False)
