"""Pages of the arena: templates, and the files that they need."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from unifl.errors import UserError

_HERE = Path(__file__).parent
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def htmx() -> Path:
    """The file of htmx that comes with django-htmx; Django itself is not imported.

    Raises:
        UserError: It is not installed.
    """
    found = importlib.util.find_spec("django_htmx")
    places = list(found.submodule_search_locations or []) if found is not None else []
    path = Path(places[0] if places else "missing") / "static" / "django_htmx" / "htmx-2.min.js"
    if not path.is_file():
        raise UserError("the arena needs htmx, which is not installed; run pip install 'unifl[web]'")
    return path


@lru_cache(maxsize=1)
def static_files() -> Mapping[str, tuple[bytes, str]]:
    """Content and type of everything that pages load, by name; nothing else is ever read from the disk for a name."""
    paths = {path.name: path for path in sorted((_HERE / "static").iterdir()) if path.suffix in _TYPES}
    paths["htmx.js"] = htmx()
    return {name: (path.read_bytes(), _TYPES[path.suffix]) for name, path in paths.items()}


@lru_cache(maxsize=1)
def version() -> str:
    """Changes when a static file does, so that browsers may keep them for long."""
    content = b"".join(content for content, _ in static_files().values())
    return hashlib.sha256(content).hexdigest()[:12]


def render(template: str, root: str, values: Mapping[str, Any]) -> str:
    """A page or a part of one.

    Args:
        template: File in `templates/`.
        root: Before every path, without a slash at its end.
        values: That it shows; all of it is escaped.
    """
    return _environment().get_template(template).render(**values, root=root, version=version())


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
