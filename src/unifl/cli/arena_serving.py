"""Serving an arena from the command line: what is checked before, and the links that are printed."""

from __future__ import annotations

import importlib.util
import ipaddress
import socket
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
    if url is not None and not url.startswith(("http://", "https://")):
        raise UserError(f"--url is {url!r}; it begins with http:// or https://")
    if proxy is not None:
        _require_addresses(proxy)
    wanted = list(dict.fromkeys(name.strip() for name in annotators or ()))
    if not all(wanted):
        raise UserError("an --annotator has no name; write one, as in --annotator ann")
    opened = Arena(folder)
    try:
        check_pictures(opened, progress=partial(progress_line, "checking"))

        def ready(taken: int) -> None:
            begin = (url or f"http://{_name(host)}:{taken}{root_path}").rstrip("/")
            _links(opened, wanted, begin, new_admin_link)
            if url is None and _everywhere(host):
                say("Where others reach this machine by another name, give it by --url, as http://NAME:PORT.")

        run(opened, host=host, port=port, url=url, root_path=root_path, proxy=proxy, ready=ready)
    except KeyboardInterrupt:
        pass
    finally:
        opened.close()
    say(f"stopped; every vote is in {folder}")


def _links(opened: Arena, annotators: Sequence[str], url: str, new_admin_link: bool) -> None:
    there = {row[0] for row in opened.rows("SELECT name FROM annotators")}
    wanted = annotators or ([] if there else ["annotator 1"])
    made = [name for name in wanted if name not in there]
    for name in made:
        say(f"{name}: {url}/a/{opened.add_annotator(name)}")
    admin = new_admin_link or not opened.is_admin()
    if admin:
        say(f"admin page: {url}/admin/{opened.new_admin()}")
    if made or admin:
        say("These links are shown once; keep them. Whoever has one needs no account.")
    for name in wanted:
        if name in there:
            say(f"{name} is known here already; the admin page makes another link")
    say(f"The arena is at {url}; stop it by Ctrl-C, and go on by the same command.")


def _require_addresses(proxy: str) -> None:
    for one in proxy.split(","):
        try:
            ipaddress.ip_network(one.strip())
        except ValueError as error:
            raise UserError(
                f"--proxy is {proxy!r}; give the address from which the proxy connects, as 127.0.0.1, or a network, as "
                "172.17.0.0/16"
            ) from error


def _everywhere(host: str) -> bool:
    return host in ("", "0.0.0.0", "::")


def _name(host: str) -> str:
    """What stands in links for an address to listen on; for all of a machine's, the one by which it reaches others."""
    name = host
    if _everywhere(host):
        family, other = (socket.AF_INET6, "2001:db8::1") if ":" in host else (socket.AF_INET, "192.0.2.1")
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            try:
                asked.connect((other, 9))  # which sends nothing
                name = asked.getsockname()[0]
            except OSError:
                name = socket.gethostname()
    return f"[{name}]" if ":" in name else name


def say(text: str) -> None:
    """Print a line as it is."""
    out.print(text, highlight=False, soft_wrap=True, markup=False)
