"""A module that can be called: `distill_sbs.train` is an entry point, and a function.

Enters: an entry point's module. Leaves: the same module, which passes a call on to its function of
the same name. Python makes a submodule an attribute of its package whenever anybody imports it, so
a function of that name in the package would come and go with the order of imports.
"""

from __future__ import annotations

import sys
import types


class CallableModule(types.ModuleType):
    """A module with a function of its own name, which is what a call of it calls."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Calls the module's function."""
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(name: str) -> None:
    """Lets the imported module `name` be called; nothing where it runs as a program."""
    if name != "__main__":
        sys.modules[name].__class__ = CallableModule
