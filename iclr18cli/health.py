"""What is known of a plugin: where it comes from, what it offers, and why it is left out if it is."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PluginHealth:
    """What is known of one plugin: where it comes from, what it offers, and why it is left out if it is.

    `state` is active, blocked, broken, clashing or incompatible.
    """

    name: str
    distribution: str
    version: str
    state: str = "active"
    error: str = ""
    detail: str = ""
    import_ms: float = 0.0
    imports_torch: bool = False
    hooks: tuple[str, ...] = ()
    offers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Name the plugin and what installed it."""
        return f"'{self.name}' ({self.distribution} {self.version})"
