"""Docstrings for the site: Sphinx's roles become code, descriptions of options their docstrings."""

from __future__ import annotations

import ast
import re
from typing import Any

from griffe import Attribute, Docstring, ExprCall, ExprKeyword, Extension, Object

_ROLE = re.compile(r":\w+:`(~?)([^`]+)`")


def plain(text: str) -> str:
    """Return a docstring with roles as code.

    Parameters
    ----------
    text : str
        The docstring.

    Examples
    --------
    >>> plain("See :func:`~actlas.store.store.open_store`.")
    'See `open_store`.'
    """
    return _ROLE.sub(lambda m: f"`{m[2].rsplit('.', 1)[-1] if m[1] else m[2]}`", text)


def show_field(attribute: Attribute) -> None:
    """Show a field of an option model, ``x: int = Field(3, description=...)``, as it is meant.

    Its default becomes its value, its description its docstring.

    Parameters
    ----------
    attribute : Attribute
        An attribute of a class.
    """
    call = attribute.value
    if not isinstance(call, ExprCall) or str(call.function) != "Field":
        return
    named = {a.name: a.value for a in call.arguments if isinstance(a, ExprKeyword)}
    given = [a for a in call.arguments if not isinstance(a, ExprKeyword)]
    if "description" in named and attribute.docstring is None:
        text = ast.literal_eval(str(named["description"]))
        attribute.docstring = Docstring(str(text), parent=attribute)
        attribute.value = given[0] if given else named.get("default")


class Roles(Extension):
    """Rewrite every docstring that is loaded."""

    def on_attribute(self, *, attr: Attribute, **_: Any) -> None:
        """Show one field."""
        show_field(attr)

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)
