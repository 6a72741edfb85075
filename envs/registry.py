"""Finding a class by its name in a table, or by an import path of the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TypeVar

from distill.checks import UserError, one_of

T = TypeVar("T")


def find(name: str, table: Mapping[str, type[T]], base: type[T], what: str) -> type[T]:
    """The class called `name` in the table, or the one at the import path `my_package.module:MyClass`.

    Raises:
        UserError: for an unknown name, a module that cannot be imported, or a class that does not extend `base`.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        one_of(name, tuple(table), what)
        return table[name]
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{what}={name} cannot be imported ({error}); give my_package.module:MyClass") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{what}={name} is not a subclass of {base.__module__}.{base.__name__}")
    return found
