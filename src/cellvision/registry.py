"""Names that must survive in a file: models, backbones and compression steps are found again by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cellvision.errors import ConfigError, unknown_name


class Registry:
    """Named builders of one kind of part.

    Example:
        >>> SHAPES = Registry("shape")
        >>> @SHAPES.register("disc")
        ... def build_disc(radius): return ("disc", radius)
        >>> SHAPES.build("disc", radius=3)
        ('disc', 3)
    """

    def __init__(self, kind: str) -> None:
        """Start empty; ``kind`` is the word used in error texts, e.g. "model"."""
        self.kind = kind
        self._builders: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """A decorator that records a class or function under ``name``; a name can be given once."""

        def record(builder: Callable[..., Any]) -> Callable[..., Any]:
            assert name not in self._builders, f"{self.kind} {name!r} is registered twice"
            self._builders[name] = builder
            return builder

        return record

    def build(self, name: str, /, **arguments: Any) -> Any:
        """The part registered as ``name``, made with ``arguments``.

        Raises:
            ConfigError: the name is unknown, or the arguments do not fit the builder.
        """
        if name not in self._builders:
            raise ConfigError(unknown_name(self.kind, name, self._builders))
        return self._builders[name](**arguments)

    def get(self, name: str) -> Callable[..., Any]:
        """The builder registered as ``name`` itself; ConfigError lists the known names."""
        if name not in self._builders:
            raise ConfigError(unknown_name(self.kind, name, self._builders))
        return self._builders[name]

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._builders)

    def __contains__(self, name: str) -> bool:
        return name in self._builders
