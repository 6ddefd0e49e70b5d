"""Old names that keep working for one version, with a DeprecationWarning."""

from __future__ import annotations

import functools
from typing import Any, Callable, TypeVar

from nnabla_dqa._util.warn import warn

C = TypeVar("C", bound=Callable[..., Any])


def renamed(**names: str) -> Callable[[C], C]:
    """Let a function, or a class's constructor, take an argument by its old name too.

    Args:
        **names: ``old="new"``.

    Raises:
        TypeError: When called with both names.
    """

    def decorate(target: C) -> C:
        function: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
        label = target.__name__

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old, new in names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise TypeError(f"{label}: {old}= is the old name of {new}=; give one")
                    warn_renamed(f"{label}: {old}=", f"{new}=")
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        if isinstance(target, type):
            target.__init__ = call  # type: ignore[misc]
            for old, new in names.items():
                setattr(target, old, _old_attribute(label, old, new))
            return target
        return call  # type: ignore[return-value]

    return decorate


def _old_attribute(label: str, old: str, new: str) -> property:
    def read(self: Any) -> Any:
        warn_renamed(f"{label}.{old}", f"{label}.{new}")
        return getattr(self, new)

    return property(read)


def warn_renamed(old: str, new: str) -> None:
    """Say that ``old`` is called ``new`` now."""
    warn(f"{old} is now called {new}; the old name goes in the next version", DeprecationWarning)
