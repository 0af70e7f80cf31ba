"""The same function in another form: forms of a block, merged groups, folded batch norms, and the proof of equality."""

from __future__ import annotations

import importlib
from types import ModuleType

_MODULES = ("certificate", "folding", "forms", "fusing", "merging", "sharing")


def __getattr__(name: str) -> ModuleType:
    """Import a module of this package when it is first used: most of them need torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'resnext.equivalence' has no attribute {name!r}")
    return importlib.import_module(f"resnext.equivalence.{name}")
