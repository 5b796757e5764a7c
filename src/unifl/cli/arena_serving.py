"""Serving an arena from the command line: what is checked before, and the links that are printed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from unifl.cli.console import out, progress_line
from unifl.errors import UserError

if TYPE_CHECKING:
    from unifl.web.arena import Arena


def require_web() -> None:
    """Check that the packages of the page are there.

    Raises:
        UserError: They are not.
    """
    missing = [
        name
        for name in ("fastapi", "uvicorn", "multipart", "django_htmx")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise UserError(
            f"the arena's page needs {', '.join(missing)}, which is not installed; run pip install 'unifl[web]'"
        )


def open_and_serve(
    folder: Path,
    annotators: Sequence[str] | None,
    host: str,
    port: int,
    *,
    url: str | None = None,
    root_path: str = "",
    proxy: str | None = None,
    new_admin_link: bool = False,
) -> None:
    """Check pictures, print links, and serve until somebody stops it.

    Raises:
        UserError: Something that serving needs is missing; before anything is served.
    """
    from unifl.web.arena import Arena
    from unifl.web.arena.gather import check_pictures
    from unifl.web.arena.serve import serve as run

    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise UserError(f"--root-path is {root_path!r}; it begins with a slash and does not end with one")
    opened = Arena(folder)
    try:
        check_pictures(opened, progress=partial(progress_line, "checking"))

        def ready(taken: int) -> None:
            shown = f"[{host}]" if ":" in host else host
            _links(
                opened, annotators, (url or f"http://{shown}:{taken}{root_path}").rstrip("/"), new_admin_link
            )

        run(opened, host=host, port=port, root_path=root_path, proxy=proxy, ready=ready)
    except KeyboardInterrupt:
        pass
    finally:
        opened.close()
    say(f"stopped; every vote is in {folder}")


def _links(opened: Arena, annotators: Sequence[str] | None, url: str, new_admin_link: bool) -> None:
    there = {row[0] for row in opened.rows("SELECT name FROM annotators")}
    wanted = list(dict.fromkeys(name.strip() for name in annotators or ()))
    if not wanted and not there:
        wanted = ["annotator 1"]
    lines = [(name, f"{url}/a/{opened.add_annotator(name)}") for name in wanted if name not in there]
    if new_admin_link or not opened.is_admin():
        lines.append(("admin page", f"{url}/admin/{opened.new_admin()}"))
    for name, link in lines:
        say(f"{name}: {link}")
    if lines:
        say("These links are shown once; keep them. Whoever has one needs no account.")
    for name in wanted:
        if name in there:
            say(f"{name} has a link already; the admin page makes another")
    say(f"The arena is at {url}; stop it by Ctrl-C, and go on by the same command.")


def say(text: str) -> None:
    """Print a line as it is."""
    out.print(text, highlight=False, soft_wrap=True, markup=False)
