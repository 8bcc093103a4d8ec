"""Parameters of functions and classes, read from their source files without importing them."""

import ast
import re
import typing
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Doc

from robustcli.errors import RobustCliError
from robustcli.registry import types as fields


class _Required:
    """Marks a parameter without a default."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()


@dataclass(frozen=True)
class Parameter:
    """One parameter in the signature of a member, described in its docstring or by its shared type."""

    name: str
    annotation: Any
    default: Any = REQUIRED
    doc: str = ""


def served(node: ast.FunctionDef | ast.ClassDef) -> dict[str, frozenset[str]]:
    """Return, by keyword of the call that a function returns, the names that are used only there."""
    last = node.body[-1]
    if not isinstance(last, ast.Return) or not isinstance(last.value, ast.Call):
        return {}
    everywhere = Counter(_names(node.body))
    inside = {keyword.arg: Counter(_names([keyword.value])) for keyword in last.value.keywords if keyword.arg}
    return {
        key: frozenset(name for name, count in found.items() if count == everywhere[name])
        for key, found in inside.items()
    }


def _names(nodes: Sequence[ast.AST]) -> list[str]:
    return [part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)]


def function_parameters(node: ast.FunctionDef, doc: str, where: str) -> dict[str, Parameter]:
    docs = argument_docs(doc)
    return {
        argument.arg: _parameter(argument.arg, argument.annotation, default, docs, where)
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    }


def class_parameters(node: ast.ClassDef, doc: str, where: str, *, strict: bool = True) -> dict[str, Parameter]:
    """Return the fields of a dataclass, except for parts whose default the class makes, such as its attack.

    With strict=False, return these parts too, with the default None, and skip fields that specs cannot set.
    """
    docs = argument_docs(doc)
    parameters = {}
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        name, kind = line.target.id, line.annotation
        is_part = isinstance(kind, ast.Name) and kind.id in fields.PROTOCOLS and isinstance(line.value, ast.Call)
        if is_part and strict:
            continue
        try:
            default = ast.Constant(None) if is_part else line.value
            parameters[name] = _parameter(name, kind, default, docs, where)
        except (RobustCliError, ValueError):
            if strict:
                raise
    return parameters


def _parameter(
    name: str, annotation: ast.expr | None, default: ast.expr | None, docs: dict[str, str], where: str
) -> Parameter:
    kind, shared = without_doc(_annotation(annotation, f"{where}: {name}"))
    return Parameter(name, kind, REQUIRED if default is None else literal(default), docs.get(name, shared))


def without_doc(annotation: Any) -> tuple[Any, str]:
    """Return a type without its shared description, and the description; "" if it has none."""
    metadata = getattr(annotation, "__metadata__", ())
    doc = next((part.documentation for part in metadata if isinstance(part, Doc)), "")
    if not doc:
        return annotation, ""
    kept = [part for part in metadata if not isinstance(part, Doc)]
    return Annotated[(annotation.__origin__, *kept)] if kept else annotation.__origin__, doc


_NAMES = {
    **{name: getattr(typing, name) for name in ("Literal", "Annotated", "Any")},
    **{name: value for name, value in vars(fields).items() if not name.startswith("_")},
    **{kind.__name__: kind for kind in (bool, dict, float, int, list, str, tuple)},
    "Fraction": Fraction,
    **fields.PROTOCOLS,
}


def _annotation(node: ast.expr | None, where: str) -> Any:
    if node is None:
        raise RobustCliError(f"{where}: has no annotation; the signature is the schema")
    try:
        return eval(compile(ast.Expression(node), where, "eval"), {"__builtins__": {}}, _NAMES)
    except NameError as error:
        raise RobustCliError(
            f"{where}: annotation '{ast.unparse(node)}' uses a name that robustcli/registry/types.py does not have"
        ) from error


def literal(node: ast.expr) -> Any:
    """Return the value of a literal, of a quotient such as 2 / 255, or of a dictionary of them.

    Raises:
        ValueError: it has another form.
    """
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return literal(node.left) / literal(node.right)
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError("a dictionary is unpacked into another one")
        pairs = zip(node.keys, node.values, strict=True)
        return {literal(key): literal(value) for key, value in pairs if key is not None}
    return ast.literal_eval(node)


@cache
def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a source file; many members return the same class."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def class_named(name: str, tree: ast.Module, path: Path) -> ast.ClassDef | None:
    """Return the class that a function returns, from the same file or the one it is imported from."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
            return node if is_dataclass else None
        if isinstance(node, ast.ImportFrom) and node.module and any(a.name == name for a in node.names):
            source = _source_of(node.module)
            if source is not None and source != path:
                return class_named(name, parse(source), source)
    return None


def _source_of(module: str) -> Path | None:
    """Return the file of a module, without importing its parents."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return None
    if not rest:
        return Path(spec.origin)
    base = Path(spec.origin).parent.joinpath(*rest)
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.exists()), None)


def section(doc: str, title: str) -> str:
    """Return a paragraph that begins with a title and a colon as one line; empty if there is none."""
    found = re.search(rf"^{re.escape(title)}: (.+(?:\n.+)*)", doc, re.MULTILINE)
    return " ".join(line.strip() for line in found.group(1).splitlines()) if found else ""


def argument_docs(doc: str) -> dict[str, str]:
    """Return the parameters in an `Args:` section, each as one line of text."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", doc, re.MULTILINE)
    if section is None:
        return {}
    entries: dict[str, str] = {}
    name = ""
    for line in section.group(1).splitlines():
        start = re.match(r"^ {4}(\w+): (.*)", line)
        if start:
            name = start.group(1)
            entries[name] = start.group(2).strip()
        elif name:
            entries[name] = f"{entries[name]} {line.strip()}".strip()
    return entries
