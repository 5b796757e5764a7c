"""Recipes: typed dataclasses, written as YAML, changed by dotted overrides.

A config is an ordinary `@dataclass(kw_only=True)`, possibly nested. YAML is nothing but its serialised values,
and an override `a.b=3` replaces one of them. Values are checked and converted by pydantic; a key that the
dataclass does not have is an error that names the nearest one it has.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from unifl.errors import UserError, nearest

T = TypeVar("T")


def load(source: str | Path | Mapping[str, Any], cls: type[T], overrides: Iterable[str] = ()) -> T:
    """Read a config.

    Args:
        source: A YAML file, YAML text, or a mapping. A string is a file when it is one line without a colon
            followed by a space; everything else is text.
        cls: Dataclass to fill.
        overrides: Assignments such as `training.learning_rate=1e-4` or `critics.0.weight=0.5`, applied in
            order after reading; the right side is YAML.

    Returns:
        An instance of `cls`.

    Raises:
        UserError: A missing file, text that is not YAML, an unknown key, or a value of the wrong kind.
    """
    data = _read(source)
    for override in overrides:
        _apply(data, override)
    return typing.cast(T, _check(data, cls, ""))


def dump(config: Any) -> str:
    """The config as YAML text, all fields included; `load(dump(c), type(c)) == c`."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=100)


def save(config: Any, path: str | Path) -> None:
    """Write `dump(config)` to a file, making its folder if needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump(config), encoding="utf-8")


def plain(value: Any) -> Any:
    """Dataclasses, tuples, sets, paths and enums as the dicts, lists and scalars that YAML and JSON hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, Enum):
        return plain(value.value)
    return str(value) if isinstance(value, Path) else value


# --- reading ---------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2 where it matters: `1e-4` is a number and `no` is a word; and a key that occurs twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} occurs twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error


def _read(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return _copied(source)
    name = "the recipe"
    if isinstance(source, Path) or ("\n" not in source and ": " not in source and not source.endswith(":")):
        name = f"{source}"
        try:
            source = Path(source).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise UserError(f"no recipe at {name}; check the path") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the recipe {name}: {error}") from error
    data = _parse(source, name)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{name} must hold `key: value` lines, but it holds a {type(data).__name__}")
    return data


def _copied(value: Any) -> Any:
    """A copy of nested mappings and lists, so that overrides do not reach into what the caller holds."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


# --- overrides -------------------------------------------------------------------------------------------


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one dotted key; mappings that are missing or null on the way are made."""
    path, equals, text = override.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise UserError(f"cannot read the override {override!r}; write key=value, for example seed=1")
    value = _parse(text, f"the value of {path.strip()}") if text.strip() else ""
    place: Any = data
    for depth, name in enumerate(names[:-1]):
        step = _step(place, name, override)
        if dataclasses.is_dataclass(place[step] if _holds(place, step) else None):
            place[step] = plain(place[step])
        if not _holds(place, step) or place[step] is None:
            place[step] = {}
        place = place[step]
        if not isinstance(place, dict | list):
            raise UserError(
                f"the override {override!r} asks for a part of {'.'.join(names[: depth + 1])}, "
                f"which is the single value {place!r}"
            )
    place[_step(place, names[-1], override)] = value


def _holds(place: Any, step: str | int) -> bool:
    return isinstance(place, list) or step in place


def _step(place: Any, name: str, override: str) -> str | int:
    """`name` as an index into `place`: a number for a list, which must exist, and a key for a mapping."""
    if not isinstance(place, list):
        return name
    if not name.isdigit() or int(name) >= len(place):
        raise UserError(
            f"{name!r} in the override {override!r} must be the number of one of {len(place)} entries, from 0"
        )
    return int(name)


# --- checking --------------------------------------------------------------------------------------------


def _check(value: Any, hint: Any, path: str) -> Any:
    """`value` with every mapping that stands for a dataclass replaced by a validated instance, inside out.

    Going inside out keeps messages short: a union of dataclasses is settled by its `kind` before pydantic
    sees it, so nobody reads about the members that were not meant.
    """
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _check_dataclass(value, hint, path) if isinstance(value, Mapping) else value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _check_union(value, arguments, path)
    if origin is dict and isinstance(value, Mapping):
        return {key: _check(item, arguments[1], _join(path, key)) for key, item in value.items()}
    if origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        return [_check(item, arguments[0], _join(path, number)) for number, item in enumerate(value)]
    return value


def _check_dataclass(value: Mapping[str, Any], cls: type, path: str) -> Any:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in value:
        if name not in fields:
            raise UserError(_unknown(str(name), fields, path, cls))
    parts = {}
    for name, item in value.items():
        if isinstance(item, Mapping) and "kind" not in item:
            item = {**_default_kind(fields[name]), **item}
        parts[name] = _check(item, hints[name], _join(path, name))
    return _validate(parts, cls, path)


def _default_kind(field: dataclasses.Field[Any]) -> dict[str, Any]:
    """The `kind` of the default value, so that `model.rank=4` alone changes what is there by default."""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    kind = getattr(default, "kind", None) if dataclasses.is_dataclass(default) else None
    return {} if kind is None else {"kind": kind}


def _check_union(value: Any, members: tuple[Any, ...], path: str) -> Any:
    unwrapped = [get_args(member)[0] if get_origin(member) is Annotated else member for member in members]
    classes = [member for member in unwrapped if dataclasses.is_dataclass(member)]
    if not isinstance(value, Mapping):
        for member in unwrapped:
            if get_origin(member) in (list, tuple) and isinstance(value, list | tuple):
                return _check(value, member, path)
        return value
    if not classes:
        return next((_check(value, m, path) for m in unwrapped if get_origin(m) is dict), value)
    if len(classes) == 1:
        return _check(value, classes[0], path)
    kinds = {kind: member for member in classes for kind in _kinds(member)}
    kind = value.get("kind")
    plain = [member for member in classes if not _kinds(member)]
    if kind is None and len(plain) == 1:
        return _check(value, plain[0], path)
    if kind not in kinds:
        guess = nearest(str(kind), kinds) if kind is not None else None
        told = f"has the unknown kind {kind!r}" if kind is not None else "needs a kind"
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise UserError(f"{path or 'the recipe'} {told}; valid kinds: {', '.join(kinds)}{hint}")
    return _check(value, kinds[kind], path)


def _kinds(cls: Any) -> tuple[str, ...]:
    hint = typing.get_type_hints(cls).get("kind")
    return tuple(map(str, get_args(hint))) if get_origin(hint) is Literal else ()


def _unknown(name: str, fields: Mapping[str, Any], path: str, cls: type) -> str:
    hints = typing.get_type_hints(cls)
    inner = next((field for field, hint in hints.items() if name in _field_names(hint)), None)
    guess = _join(inner, name) if inner else nearest(name, fields)
    hint = f"did you mean {_join(path, guess)!r}?" if guess else f"valid keys: {', '.join(fields)}"
    return f"unknown key {_join(path, name)!r}; {hint}"


def _field_names(hint: Any) -> set[str]:
    """Names of the fields of the dataclasses in a hint, one level deep (through optionals and unions)."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return {field.name for m in members if dataclasses.is_dataclass(m) for field in dataclasses.fields(m)}


def _validate(parts: Any, cls: type, path: str) -> Any:
    try:
        return _adapter(cls).validate_python((parts,))[0]
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            place = path
            for name in problem["loc"][1:]:
                place = _join(place, name)
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] in ("missing", "missing_keyword_only_argument"):
                lines.append(f"{place}: required, but not given")
            elif problem["type"] == "value_error":
                lines.append(f"{place}: {message}" if place else message)
            else:
                message = message[0].lower() + message[1:]
                lines.append(f"{place or 'the recipe'}: {message}, not {problem['input']!r}")
        raise UserError("; ".join(lines)) from error


@lru_cache
def _adapter(cls: type) -> Any:  # a TypeAdapter; beartype knows no generic form of it
    # pydantic takes a config for a stdlib dataclass only from outside: hence the tuple of one
    return TypeAdapter(tuple[cls], config=ConfigDict(extra="forbid"))  # type: ignore[valid-type]


def _join(path: str, name: str | int) -> str:
    return f"{path}.{name}" if path else str(name)
