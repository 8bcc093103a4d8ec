"""What members there are, read from their source files without importing them.

A member registers under a name that is written out in its file::

    @DEFENSES.register("trades", smoke={"steps": 2})
    def trades(*, beta: float = 6.0, ...) -> MinMax: ...

Importing a member imports torch, which takes seconds, and `robust list` and `robust validate` should answer
at once. The contract tests compare what is read here with the imported signature.
"""

import ast
import re
import typing
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from robustcli import fields
from robustcli.errors import RobustCliError, suggest

FAMILIES = (
    "architectures",
    "attacks",
    "averaging",
    "datasets",
    "defenses",
    "evaluators",
    "optimizers",
    "schedules",
    "weights",
)
PLUGIN_GROUP = "robustcli"


class _Required:
    """The default of a parameter that has none."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()


@dataclass(frozen=True)
class Parameter:
    """One parameter of a member, as its signature states it."""

    name: str
    annotation: Any
    default: Any = REQUIRED
    doc: str = ""


@dataclass(frozen=True)
class Member:
    """What a registry knows of a member before it is imported.

    Args:
        parameters: what its part of a spec may set.
        replaceable: fields of the object that it returns; a spec may replace them too.
        served: by field of that object, the parameters that serve nothing else.
        smoke: cheap settings for the tests.
    """

    family: str
    name: str
    module: str
    attribute: str
    path: Path
    line: int
    doc: str
    parameters: dict[str, Parameter]
    replaceable: dict[str, Parameter] = field(default_factory=dict)
    served: dict[str, frozenset[str]] = field(default_factory=dict)
    smoke: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.doc.splitlines()[0] if self.doc else ""


def describe(family: str, name: str) -> Member:
    """The member `name` of `family`, or an error that names the nearest one."""
    members = catalog(family)
    if name not in members:
        raise RobustCliError(f"unknown name '{name}' in {family}{suggest(name, members)}")
    return members[name]


@cache
def catalog(family: str) -> dict[str, Member]:
    """All members of a family by name, in alphabetical order, read from the source files."""
    members: dict[str, Member] = {}
    for module, path in (*_own_files(family), *_plugin_files()):
        for member in _read(module, path, family):
            if member.name in members:
                first = members[member.name]
                raise RobustCliError(
                    f"two {family} are named '{member.name}': {first.path}:{first.line} and {path}:{member.line}"
                )
            members[member.name] = member
    return dict(sorted(members.items()))


def _own_files(family: str) -> list[tuple[str, Path]]:
    folder = Path(__file__).parent / family
    return [(f"robustcli.{family}.{path.stem}", path) for path in sorted(folder.glob("*.py"))]


@cache
def _plugin_files() -> tuple[tuple[str, Path], ...]:
    """Source files of installed packages that announce themselves under the entry point group."""
    files: list[tuple[str, Path]] = []
    for entry in entry_points(group=PLUGIN_GROUP):
        try:
            spec = find_spec(entry.module)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.origin is None:
            raise RobustCliError(f"plugin '{entry.name}': there is no module '{entry.module}'")
        files.append((entry.module, Path(spec.origin)))
        for folder in spec.submodule_search_locations or ():
            files += [
                (f"{entry.module}.{path.stem}", path)
                for path in sorted(Path(folder).glob("*.py"))
                if path.name != "__init__.py"
            ]
    return tuple(dict.fromkeys(files))


def _read(module: str, path: Path, family: str) -> Iterator[Member]:
    """The members of one family that a file registers."""
    source = path.read_text(encoding="utf-8")
    if f"{family.upper()}.register(" not in source:
        return
    tree = ast.parse(source, str(path))
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            if (
                isinstance(decorator, ast.Call)
                and isinstance(decorator.func, ast.Attribute)
                and decorator.func.attr == "register"
                and isinstance(decorator.func.value, ast.Name)
                and decorator.func.value.id == family.upper()
            ):
                yield _member(node, decorator, tree, module, path, family)


def _member(
    node: ast.FunctionDef | ast.ClassDef,
    decorator: ast.Call,
    tree: ast.Module,
    module: str,
    path: Path,
    family: str,
) -> Member:
    doc = ast.get_docstring(node) or ""
    where = f"{path}:{node.lineno}"
    options = {keyword.arg: keyword.value for keyword in decorator.keywords}
    replaceable: dict[str, Parameter] = {}
    if isinstance(node, ast.ClassDef):
        parameters = _class_parameters(node, doc, where)
    else:
        parameters = _function_parameters(node, doc, where)
        form = _class_named(node.returns.id, tree, path) if isinstance(node.returns, ast.Name) else None
        if form is not None:
            form_doc = ast.get_docstring(form) or ""
            replaceable = {
                name: parameter
                for name, parameter in _class_parameters(form, form_doc, where, strict=False).items()
                if name not in parameters
            }
    return Member(
        family=family,
        name=ast.literal_eval(decorator.args[0]),
        module=module,
        attribute=node.name,
        path=path,
        line=node.lineno,
        doc=doc,
        parameters=parameters,
        replaceable=replaceable,
        served=_served(node),
        smoke=_value(options["smoke"]) if "smoke" in options else {},
    )


def _served(node: ast.FunctionDef | ast.ClassDef) -> dict[str, frozenset[str]]:
    """By keyword of the call that a function returns, the names that are used there and nowhere else in it."""
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


def _function_parameters(node: ast.FunctionDef, doc: str, where: str) -> dict[str, Parameter]:
    docs = argument_docs(doc)
    return {
        argument.arg: Parameter(
            argument.arg,
            _annotation(argument.annotation, f"{where}: {argument.arg}"),
            REQUIRED if default is None else _value(default),
            docs.get(argument.arg, ""),
        )
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    }


def _class_parameters(node: ast.ClassDef, doc: str, where: str, *, strict: bool = True) -> dict[str, Parameter]:
    """Fields of a dataclass; with strict=False those that no spec can write are passed over."""
    docs = argument_docs(doc)
    parameters = {}
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        name = line.target.id
        try:
            annotation = _annotation(line.annotation, f"{where}: {name}")
            default = REQUIRED if line.value is None else _value(line.value)
        except (RobustCliError, ValueError):
            if strict:
                raise
            if not isinstance(line.annotation, ast.Name) or line.annotation.id not in fields.PROTOCOLS:
                continue
            annotation, default = fields.PROTOCOLS[line.annotation.id], None
        parameters[name] = Parameter(name, annotation, default, docs.get(name, ""))
    return parameters


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
            f"{where}: annotation '{ast.unparse(node)}' uses a name that robustcli/fields.py does not have"
        ) from error


def _value(node: ast.expr) -> Any:
    """A default written as a literal, or as arithmetic on literals such as 2 / 255."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _value(node.left) / _value(node.right)
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_value(key): _value(value) for key, value in pairs if key is not None}
    return ast.literal_eval(node)


def _class_named(name: str, tree: ast.Module, path: Path) -> ast.ClassDef | None:
    """The class that a function returns: from the same file, or from the one it imports it from."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
            return node if is_dataclass else None
        if isinstance(node, ast.ImportFrom) and node.module and any(a.name == name for a in node.names):
            source = _source_of(node.module)
            if source is not None and source != path:
                return _class_named(name, ast.parse(source.read_text(encoding="utf-8")), source)
    return None


def _source_of(module: str) -> Path | None:
    """The file of a module, without importing its parents."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return None
    if not rest:
        return Path(spec.origin)
    base = Path(spec.origin).parent.joinpath(*rest)
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.exists()), None)


def argument_docs(doc: str) -> dict[str, str]:
    """The parameters that an `Args:` section describes, each as one line of text."""
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
