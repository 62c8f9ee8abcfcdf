"""Trees of settings: merged, overridden, read from YAML and as annotated dataclasses."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from ssdcore_torch.suggest import did_you_mean


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where it names a key twice: one of the values would silently win."""
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"{twice[0]!r:.60} is given twice in one object")
    return dict(pairs)


def read_settings(text: str) -> dict[str, Any]:
    """The settings in a YAML (or JSON, which is YAML too) file, for `Config.overlaid`. Raises ValueError for others."""
    settings = _yaml(text)
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"expected settings as in `train: {{clip: 1.0}}`, got {settings!r:.60}")
    return settings


def setting(text: str) -> dict[str, Any]:
    """`train.clip=1.0` as {"train": {"clip": 1.0}}; the value is read as YAML. Raises ValueError for other texts."""
    name, equals, value = text.partition("=")
    if not equals or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"expected NAME=VALUE as in train.clip=1.0, got {text!r}")
    settings: Any = _yaml(value)
    for part in reversed(name.split(".")):
        settings = {part: settings}
    return settings


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """All the settings, section by section, those of later trees in the place of earlier ones.

    Raises:
        ValueError: Where one tree has a value and a later one a section, or the other way round.
    """
    return _merged(trees, "")


def _merged(trees: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            before = result.get(key, value)
            if isinstance(before, Mapping) and isinstance(value, Mapping):
                below = (before, value) if key in result else (value,)
                result[key] = _merged(below, f"{where}{key}.")
            elif isinstance(before, Mapping) or isinstance(value, Mapping):
                wrong = value if isinstance(before, Mapping) else before
                raise ValueError(f"{where}{key}: expected settings by name, got {wrong!r:.60}")
            else:
                result[key] = value
    return result


def overlay(tree: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    merged = dict(tree)
    for key, value in settings.items():
        if key not in tree:
            meant = did_you_mean(str(key), (f"{where}{name}" for name in flat_settings(tree)))
            raise ValueError(f"{where}{key}: unknown setting{meant or ';'} known here: {', '.join(tree)}")
        if isinstance(tree[key], dict):
            if not isinstance(value, dict):
                raise ValueError(f"{where}{key}: expected settings by name, got {value!r}")
            merged[key] = overlay(tree[key], value, f"{where}{key}.")
        else:
            merged[key] = value
    return merged


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (to PyYAML, which keeps to 1.1, 1e-4 is a word), no name given twice, and no aliases: a few
    lines of them stand for more than fits into memory, or for something that holds itself."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases (*{self.peek_event().anchor}) are not read: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in getattr(node, "value", ()) if isinstance(key, yaml.ScalarNode)]
        if double := [name for name in names if names.count(name) > 1]:
            raise yaml.YAMLError(f"{double[0]!r:.60} is given twice: leave one out")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"not YAML: {error}") from error  # PyYAML lets through what a wrong !!tag makes of a value


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a tree by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flat_settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def read_as(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON gives it, as an object of the annotated type `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        others = [k for k in arguments if k is not type(None)]
        return None if value is None and types.NoneType in arguments else read_as(_kind_of(others, value), value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: expected one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected values by name, got {value!r:.60}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise ValueError(f"{where}: expected {len(kinds)} values, got {value!r}")
        return tuple(read_as(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value)))
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise ValueError(f"{where}: expected {kind.__name__}, got {value!r}")
    if kind is float and not abs(value) <= sys.float_info.max:
        raise ValueError(f"{where}: expected a finite number, got {value!r:.60}")
    return value


def _kind_of(kinds: Sequence[Any], value: Any) -> Any:
    """Of several dataclasses the one whose required fields are there; else the first."""

    def fits(kind: Any) -> bool:
        needed = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
        return isinstance(value, dict) and needed <= value.keys()

    return next((kind for kind in reversed(kinds) if len(kinds) > 1 and fits(kind)), kinds[0])


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'the configuration'}: expected an object of settings, got {value!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in fields:
            raise ValueError(f"{prefix}{key}: unknown setting; known here: {', '.join(fields)}")
    for name, field in fields.items():
        if name not in value and field.default is dataclasses.MISSING:
            raise ValueError(f"{prefix}{name}: this setting is missing")
    hints = typing.get_type_hints(kind)
    values = {key: read_as(hints[key], value[key], prefix + key) for key in value}
    try:
        return kind(**values)
    except ValueError as error:
        if where and re.split(r"\W", str(error), maxsplit=1)[0] in fields:
            raise ValueError(f"{prefix}{error}") from error  # of a class that knows no section that it is in
        raise
