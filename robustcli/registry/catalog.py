"""The members of every family, read from their source files without importing them.

A member registers under a literal name in its file::

    @DEFENSES.register("trades", smoke={"steps": 2})
    def trades(*, beta: float = 6.0, ...) -> MinMax: ...

Importing a member imports torch, which takes seconds, but `robust list` and `robust validate` should be fast. The
contract tests compare the parsed with the imported signature.
"""

import ast
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import robustcli
from robustcli.errors import RobustCliError, suggest
from robustcli.registry.declarations import Declaration, checked_declaration
from robustcli.registry.signatures import (
    REQUIRED,
    Parameter,
    class_named,
    class_parameters,
    function_parameters,
    literal,
    served,
)

# Every family with the folder of its members.
FAMILIES = {
    "architectures": "architectures",
    "attacks": "attacks",
    "averaging": "optimization/averaging",
    "datasets": "data/datasets",
    "defenses": "defenses",
    "diagnostics": "diagnostics",
    "evaluators": "evaluators",
    "mixers": "data/mixers",
    "optimizers": "optimization/optimizers",
    "preprocessors": "preprocessors",
    "regularizers": "optimization/regularizers",
    "schedules": "optimization/schedules",
    "weights": "optimization/weights",
}
PLUGIN_GROUP = "robustcli"


@dataclass(frozen=True, kw_only=True)
class Member(Declaration):
    """A registered member: its declaration and its source.

    Args:
        path: file that registers it.
        line: line of its function or class.
        parameters: parameters in a spec.
        replaceable: fields of the object that it returns; a spec may replace them too.
        served: by field of that object, the parameters that only affect this field.
    """

    family: str
    name: str
    module: str
    attribute: str
    path: Path
    line: int
    doc: str
    parameters: dict[str, Parameter]
    replaceable: dict[str, Parameter]
    served: dict[str, frozenset[str]]

    @property
    def required(self) -> list[str]:
        """Names of the parameters without a default."""
        return [name for name, parameter in self.parameters.items() if parameter.default is REQUIRED]

    @property
    def given(self) -> dict[str, Any]:
        """The parameters without a default, with their values in `smoke`."""
        return {name: value for name, value in self.smoke.items() if name in self.required}

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.doc.splitlines()[0] if self.doc else ""


def describe(family: str, name: str) -> Member:
    """Return a member; for an unknown name the error suggests the nearest one."""
    members = catalog(family)
    if name not in members:
        raise RobustCliError(f"unknown name '{name}' in {family}{suggest(name, members)}")
    return members[name]


@cache
def catalog(family: str) -> Mapping[str, Member]:
    """Return all members of a family in alphabetical order, read from the source files."""
    files: dict[str, tuple[str, Path]] = {}
    for module, path in _own_files(family):
        for name in _names(module, path, family):
            if name in files:
                raise RobustCliError(_twice(family, name, files[name], (module, path)))
            files[name] = module, path
    for module, path in _plugin_files():
        try:
            # Parsed here, so that an unreadable file only affects its own members.
            names = [member.name for member in _read(module, path, family)]
        except (RobustCliError, SyntaxError, ValueError, OSError) as error:
            warnings.warn(f"plugin {path}: ignored, because it cannot be read: {error}", stacklevel=2)
            continue
        for name in names:
            if name in files:
                twice = _twice(family, name, files[name], (module, path))
                warnings.warn(f"plugin {module}: {twice}; the second is ignored", stacklevel=2)
            else:
                files[name] = module, path
    return Members(family, dict(sorted(files.items())))


def _twice(family: str, name: str, *files: tuple[str, Path]) -> str:
    """Describe two members with the same name."""
    first, second = (next(member for member in _read(*file, family) if member.name == name) for file in files)
    return f"two {family} are named '{name}': {first.path}:{first.line} and {second.path}:{second.line}"


class Members(Mapping[str, Member]):
    """The members of a family by name. Files are parsed on first use of their members.

    Parsing all files takes longer than everything else that `robust show` and `robust validate` do.

    Args:
        files: module and file of every member.
    """

    def __init__(self, family: str, files: dict[str, tuple[str, Path]]) -> None:
        self._family = family
        self._files = files
        self._members: dict[str, Member] = {}

    def __getitem__(self, name: str) -> Member:
        module, path = self._files[name]
        if name not in self._members:
            # A plugin's member with the name of another one is ignored, wherever else its file is needed.
            found = _read(module, path, self._family)
            self._members |= {one.name: one for one in found if self._files.get(one.name) == (module, path)}
        if name not in self._members:
            raise RobustCliError(
                f'{path}: register("{name}") must decorate a function or class at the top level of the file'
            )
        return self._members[name]

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _own_files(family: str) -> list[tuple[str, Path]]:
    folder = Path(robustcli.__file__).parent / FAMILIES[family]
    return [(f"{package_of(family)}.{path.stem}", path) for path in sorted(folder.glob("*.py"))]


def package_of(family: str) -> str:
    """The package that holds a family's registry, such as "robustcli.data.datasets"."""
    return f"robustcli.{FAMILIES[family].replace('/', '.')}"


@cache
def _plugin_files() -> tuple[tuple[str, Path], ...]:
    """Source files of installed packages with an entry point of robustcli.

    A package that cannot be found is ignored with a warning, because most commands do not need it.
    """
    from importlib.metadata import entry_points

    files: list[tuple[str, Path]] = []
    for entry in entry_points(group=PLUGIN_GROUP):
        try:
            spec = find_spec(entry.module)
        except ModuleNotFoundError:
            spec = None
        except Exception as error:  # the parent package is imported, and may raise anything
            warnings.warn(f"plugin '{entry.name}': ignored, because {entry.module} fails: {error!r}", stacklevel=2)
            continue
        if spec is None or spec.origin is None:
            warnings.warn(f"plugin '{entry.name}': ignored, there is no module '{entry.module}'", stacklevel=2)
            continue
        files.append((entry.module, Path(spec.origin)))
        for folder in spec.submodule_search_locations or ():
            files += [
                (f"{entry.module}.{path.stem}", path)
                for path in sorted(Path(folder).glob("*.py"))
                if path.name != "__init__.py"
            ]
    return tuple(dict.fromkeys(files))


def _names(module: str, path: Path, family: str) -> list[str]:
    """Return the names that a file registers in a family: by a simple search of its text if possible, else parsed."""
    source = path.read_text(encoding="utf-8")
    call = f"{family.upper()}.register("
    if call not in source:
        return []
    names = re.findall(rf'^@{re.escape(call)}\s*"([^"\\\n]+)"\s*[,)]', source, re.MULTILINE)
    return names if len(names) == source.count(call) else [member.name for member in _read(module, path, family)]


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
    name, declared = _declared(decorator, family, f"{path}:{decorator.lineno}")
    fixed = declared.get("fixed", {})
    for settled, value in fixed.items():
        doc = doc.replace(f"{{{settled}}}", str(value))
    form: ast.ClassDef | None
    if isinstance(node, ast.ClassDef):
        parameters, form = class_parameters(node, doc, where), node
    else:
        parameters = function_parameters(node, doc, where)
        # A data set returns images, so specs change only its settings.
        returned = node.returns.id if isinstance(node.returns, ast.Name) and family != "datasets" else None
        form = class_named(returned, tree, path) if returned is not None else None
    fields = {} if form is None else class_parameters(form, ast.get_docstring(form) or "", where, strict=False)
    return Member(
        family=family,
        name=name,
        module=module,
        attribute=node.name,
        path=path,
        line=node.lineno,
        doc=doc,
        parameters={name: parameter for name, parameter in parameters.items() if name not in fixed},
        replaceable={name: parameter for name, parameter in fields.items() if name not in parameters},
        served=served(node),
        **declared,
    )


def _declared(decorator: ast.Call, family: str, where: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a member and what it declares."""
    words = {"name": decorator.args[0]} if decorator.args else {}
    words |= {keyword.arg or "**": keyword.value for keyword in decorator.keywords}
    found = {}
    for word, node in words.items():
        try:
            found[word] = literal(node)
        except ValueError:
            raise RobustCliError(
                f"{where}: register({word}=...): found '{ast.unparse(node)}'; write out the value, because the source "
                "is read without running it"
            ) from None
    name = found.pop("name", None)
    if not isinstance(name, str):
        raise RobustCliError(f"{where}: register(): the first argument is the name of the member, a string")
    return name, checked_declaration(family, found, where)
