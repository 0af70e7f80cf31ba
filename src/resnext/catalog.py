"""Names of networks, and what they mean.

The modules in `networks/` are the catalogue: each has a literal table `VARIANTS` of its listed networks and a
function `parse` for the grammar of its family. Names and the tables' literals are read from the sources, so
that listing them imports no torch.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnext.errors import UserError, did_you_mean
from resnext.variant import LARGEST_SIZE, Blueprint, Variant

if TYPE_CHECKING:
    from torch import nn

ROW_FIELDS = ("paper", "parameters", "training_parameters", "macs", "image_size", "num_classes")


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A name and what it means; `variant` is its row, or None for a name that only the grammar knows."""

    name: str
    network: Callable[..., nn.Module]
    config: Any
    paper: str
    image_size: int
    num_classes: int
    variant: Variant | None


def names(pattern: str = "*") -> list[str]:
    """Return the listed names that match a shell pattern, in natural order; without importing torch."""
    return sorted(filter(lambda name: fnmatchcase(name, pattern), _tables()), key=_natural_key)


def rows(pattern: str = "*") -> list[dict[str, object]]:
    """Return the rows of the listed networks that match a shell pattern, without importing torch.

    Keys: name, paper, parameters, training_parameters, macs, image_size, num_classes.
    """
    tables = _tables()
    return [{"name": name, **tables[name][1]} for name in names(pattern)]


def resolve(name: str) -> Resolved:
    """Return what `name` means, listed or not; raise UserError with the nearest names if it means nothing."""
    tables = _tables()
    if name in tables:
        variant = import_module(tables[name][0]).VARIANTS[name]
        return _resolved(name, variant, variant)
    for module in _modules():
        if blueprint := import_module(module).parse(name):
            return _resolved(name, blueprint, None)
    raise UserError(
        f"There is no network {name!r}.{did_you_mean(name.lower(), names())}\n`resnext networks` lists them all."
    )


def create(name: str, *, num_classes: int | None = None, in_channels: int = 3, **options: object) -> nn.Module:
    """Build the network that `name` means, with fresh weights, in training mode.

    It maps images N×in_channels×H×W to logits N×num_classes (None: the published number). `options` replace
    fields of its config, as in `shortcut="A"`. Raises UserError for a name, an option or a number that makes
    no network.
    """
    found = resolve(name)
    classes = found.num_classes if num_classes is None else num_classes
    for what, size in (("classes", classes), ("channels", in_channels)):
        if type(size) is not int or not 1 <= size <= LARGEST_SIZE:
            raise UserError(f"The number of {what} is {size!r}. Give a whole number from 1 to {LARGEST_SIZE:,}.")
    return found.network(_configured(found, options), num_classes=classes, in_channels=in_channels)


def _configured(found: Resolved, options: dict[str, object]) -> Any:
    """Return the config with some fields replaced; raise UserError for a field that it does not have."""
    fields = [field.name for field in dataclasses.fields(found.config)]
    for option in options:
        if option not in fields:
            raise UserError(
                f"{found.name} has no option {option!r}.{did_you_mean(option, fields)}\n"
                f"Its options are {', '.join(fields)}."
            )
    # Files have lists where a config, which is hashable, has tuples.
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return dataclasses.replace(found.config, **values)


def _resolved(name: str, blueprint: Blueprint, variant: Variant | None) -> Resolved:
    shared = {field.name: getattr(blueprint, field.name) for field in dataclasses.fields(Blueprint)}
    return Resolved(name=name, variant=variant, **shared)


@cache
def _modules() -> dict[str, ast.Module]:
    """Return the modules that hold networks, by their import names, as syntax trees."""
    sources = sorted(Path(__file__).with_name("networks").glob("[!_]*.py"))
    return {f"resnext.networks.{source.stem}": ast.parse(source.read_text("utf-8")) for source in sources}


@cache
def _tables() -> dict[str, tuple[str, dict[str, object]]]:
    """Return, for every listed network, its module and the literal fields of its row."""
    tables: dict[str, tuple[str, dict[str, object]]] = {}
    for module, tree in _modules().items():
        for name, row in _variant_rows(tree):
            assert name not in tables, f"{name} is listed by {tables[name][0]} and by {module}"
            tables[name] = module, row
    return tables


def _variant_rows(tree: ast.Module) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the names in a module's `VARIANTS` with the literal fields that `rows` shows."""
    defaults = {field.name: field.default for field in dataclasses.fields(Variant)}
    for statement in tree.body:
        if not (isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "VARIANTS"):
            continue
        assert isinstance(statement.value, ast.Dict)
        for key, call in zip(statement.value.keys, statement.value.values, strict=True):
            assert isinstance(key, ast.Constant)
            assert isinstance(call, ast.Call)
            given = {item.arg: item.value for item in call.keywords}
            row = {field: ast.literal_eval(given[field]) if field in given else defaults[field] for field in ROW_FIELDS}
            row["training_parameters"] = row["training_parameters"] or row["parameters"]
            yield str(key.value), row


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sorting key that orders the numbers in a name by their values."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
