"""Frozen dataclasses as JSON objects with a ``type`` field, and back."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any, Callable, Dict, Generic, Iterable, Mapping, Optional, Type, TypeVar

from nnabla_dqa._util.messages import one_line

T = TypeVar("T")


class PluginWarning(UserWarning):
    """An installed package announces a class that cannot be loaded."""


class UnknownTypeError(ValueError):
    """No class of that name is registered, nor announced by an installed package."""


def to_json(value: Any) -> Dict[str, Any]:
    """``{"type": class name, field: value, ...}`` of a dataclass instance."""
    return {"type": type(value).__name__, **dataclasses.asdict(value)}


def field_values(options: Iterable[str]) -> Dict[str, Any]:
    """``["signed=false", "init=uniform"]`` as ``{"signed": False, "init": "uniform"}``.

    A value is JSON (a number, ``true``, ``null``, ...), or else text.

    Raises:
        ValueError: An entry is not ``field=value``, or a field is there twice.
    """
    values: Dict[str, Any] = {}
    for option in options:
        name, equals, text = (part.strip() for part in option.partition("="))
        if not equals or not name:
            raise ValueError(f"{option.strip()!r} is not field=value")
        if name in values:
            raise ValueError(f"field {name!r} is there twice")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


class Registry(Generic[T]):
    """The classes of one kind by name.

    Args:
        kind: What messages call the classes.
        group: The entry-point group in which other packages announce theirs.
            It is read when a name is not known, and only once.
    """

    def __init__(self, kind: str, group: Optional[str] = None) -> None:
        self.kind = kind
        self.group = group
        self._types: Dict[str, Type[T]] = {}
        self._loaded = group is None

    @property
    def types(self) -> Dict[str, Type[T]]:
        """The classes registered so far by name."""
        return dict(self._types)

    def register(self, cls: Type[T]) -> Type[T]:
        """Make ``cls`` known by its name; usable as a class decorator.

        Raises:
            ValueError: A class of another module has that name already.
        """
        known = self._types.setdefault(cls.__name__, cls)
        if known.__module__ != cls.__module__:
            raise ValueError(
                f"a {self.kind} named {cls.__name__} exists already in {known.__module__}"
            )
        self._types[cls.__name__] = cls
        return cls

    def find(self, name: Any) -> Type[T]:
        """The class called ``name``; case, ``_`` and ``-`` do not matter.

        Raises:
            UnknownTypeError: There is none; lists those there are.
        """
        found = self._search(name)
        if found is None:
            self.load_plugins()
            found = self._search(name)
        if found is None:
            known = ", ".join(sorted(self._types))
            raise UnknownTypeError(f"unknown {self.kind} type {name!r}; known: {known}{self.hint}")
        return found

    @property
    def hint(self) -> str:
        """How a package makes its classes known, for messages; empty without a group."""
        if self.group is None:
            return ""
        return f"; a package announces its own as entry points of group {self.group!r}"

    def from_json(self, data: Any) -> T:
        """The instance that ``data`` describes; the inverse of :func:`to_json`.

        What is an instance already is handed through.

        Raises:
            ValueError: ``type`` is not known, or a field is unknown, missing
                or out of range.
        """
        if dataclasses.is_dataclass(data) and not isinstance(data, type):
            instance: Any = data
            return instance  # type: ignore[no-any-return]
        if not isinstance(data, Mapping):
            raise ValueError(f"a {self.kind} is {{type: NAME, ...}}, not {data!r}")
        fields = dict(data)
        return self.make(self.find(fields.pop("type", None)), fields)

    def make(self, cls: Type[T], fields: Mapping[str, Any]) -> T:
        """An instance with these fields; raises ValueError as :meth:`from_json` does."""
        constructor: Callable[..., T] = cls
        allowed = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
        unknown = sorted(set(fields) - set(allowed))
        if unknown:
            fit = ", ".join(allowed) or "none"
            raise ValueError(
                f"{self.kind} {cls.__name__} has no field {unknown[0]!r}; its fields: {fit}"
            )
        try:
            return constructor(**{name: frozen(value) for name, value in fields.items()})
        except TypeError as error:
            raise ValueError(f"{self.kind} {cls.__name__}: {error}") from None

    def load_plugins(self) -> None:
        """Register what installed packages announce; a broken one is a warning that names it.

        Warns:
            PluginWarning: For each entry point that is not a class that can be registered.
        """
        if self._loaded:
            return
        self._loaded = True
        for point in _entry_points(self.group):
            try:
                found: Any = point.load()
                usable = isinstance(found, type) and dataclasses.is_dataclass(found)
                if not usable:
                    raise TypeError(f"{found!r} is not a dataclass")
                self.register(found)
            # A plugin is someone else's code and may fail in any way.
            except Exception as error:
                warnings.warn(
                    f"entry point {point.name} = {point.value} of group {self.group!r} cannot be "
                    f"used: {type(error).__name__}: {one_line(error)}",
                    PluginWarning,
                    stacklevel=2,
                )

    def _search(self, name: Any) -> Optional[Type[T]]:
        if not isinstance(name, str):
            return None
        if name in self._types:
            return self._types[name]
        return next(
            (cls for known, cls in self._types.items() if _plain(known) == _plain(name)), None
        )


def frozen(value: Any) -> Any:
    """``value`` with JSON's lists as tuples, so that a dataclass which holds it can be hashed."""
    return tuple(frozen(v) for v in value) if isinstance(value, list) else value


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _entry_points(group: Optional[str]) -> Iterable[Any]:
    # Only where a name is not known: the import takes as long as a tenth of NNabla's.
    from importlib import metadata

    points: Any = metadata.entry_points()
    # Python 3.9 has a dict of groups, later versions select.
    found = points.select(group=group) if hasattr(points, "select") else points.get(group, ())
    # A distribution that is on the path twice is listed twice.
    return {(point.name, point.value): point for point in found}.values()
