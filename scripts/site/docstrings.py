"""Griffe extension: the package's docstrings as mkdocstrings can show them.

Sphinx's roles (``:func:`name```) become links to the reference where the name is public, and code
elsewhere. The ``dqa_`` layers, which are made when the package is imported, are taken from there.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|obj|exc):`~?([\w.]+)`")
_LAYERS = "nnabla_dqa.parametric_functions"


class Docstrings(griffe.Extension):
    """What mkdocs.yml names."""

    def on_package(self, *, pkg: Any, **_: Any) -> None:
        """Once the package has been read."""
        if pkg.name != "nnabla_dqa":
            return
        public = {str(name) for name in pkg.exports}
        self._add_layers(pkg)
        self._rewrite(pkg, public, set())

    def _add_layers(self, package: Any) -> None:
        module = importlib.import_module(_LAYERS)
        there = package["parametric_functions"]
        for layer in module.DQA_LAYERS:
            there.set_member(layer.__name__, _function(layer, there))

    def _rewrite(self, node: Any, public: set[str], seen: set[int]) -> None:
        if node.is_alias or id(node) in seen:
            return
        seen.add(id(node))
        if node.docstring:
            node.docstring.value = linked(node.docstring.value, public)
        for member in node.members.values():
            self._rewrite(member, public, seen)


def linked(text: str, public: set[str]) -> str:
    """``text`` without Sphinx's roles."""

    def link(found: re.Match[str]) -> str:
        path, name = found[1], found[1].rsplit(".", 1)[-1]
        if name in public and path in (name, f"nnabla_dqa.{name}"):
            return f"[`{name}`][nnabla_dqa.{name}]"
        return f"`{name if path.startswith('nnabla_dqa') else path}`"

    # What introduces an indented block ends with two colons for Sphinx.
    return re.sub(r"::(?=\n)", ":", _ROLE.sub(link, text))


def _function(layer: Any, module: Any) -> griffe.Function:
    parameters = [
        griffe.Parameter(
            p.name,
            annotation=p.annotation if isinstance(p.annotation, str) else None,
            kind=griffe.ParameterKind.positional_or_keyword,
            default=None if p.default is inspect.Parameter.empty else repr(p.default),
        )
        for p in inspect.signature(layer).parameters.values()
    ]
    # NNabla adds a list of parameters in Sphinx's notation; what it calls them is in the text.
    text = (inspect.getdoc(layer) or "").partition("\nParameters to be registered")[0]
    text = text.replace("~nnabla.Variable: ", "").replace("*kernel", "\\*kernel")
    made = griffe.Function(
        layer.__name__,
        parameters=griffe.Parameters(*parameters),
        returns="Variable",
        docstring=griffe.Docstring(text, parser=griffe.Parser.google),
        parent=module,
    )
    made.docstring.parent = made
    return made
