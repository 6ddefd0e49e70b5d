"""Frozen dataclasses as JSON objects with a ``type`` field, and back."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, Generic, Type, TypeVar

T = TypeVar("T")


def to_json(value: Any) -> Dict[str, Any]:
    """``{"type": class name, field: value, ...}`` of a dataclass instance."""
    return {"type": type(value).__name__, **dataclasses.asdict(value)}


class Registry(Generic[T]):
    """The classes of one kind by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._types: Dict[str, Type[T]] = {}

    @property
    def types(self) -> Dict[str, Type[T]]:
        """The registered classes by name."""
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

    def from_json(self, data: Dict[str, Any]) -> T:
        """The instance that ``data`` describes; the inverse of :func:`to_json`.

        Raises:
            ValueError: ``type`` is not registered, or a field is unknown,
                missing or out of range.
        """
        fields = dict(data)
        name = fields.pop("type", None)
        if name not in self._types:
            known = ", ".join(sorted(self._types))
            raise ValueError(f"unknown {self.kind} type {name!r}; known: {known}")
        constructor: Callable[..., T] = self._types[name]
        allowed = [field.name for field in dataclasses.fields(self._types[name])]  # type: ignore[arg-type]
        unknown = sorted(set(fields) - set(allowed))
        if unknown:
            fit = ", ".join(allowed) or "none"
            raise ValueError(f"{self.kind} {name} has no field {unknown[0]!r}; its fields: {fit}")
        try:
            return constructor(**fields)
        except TypeError as error:
            raise ValueError(f"{self.kind} {name}: {error}") from None
