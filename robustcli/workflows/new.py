"""`robust new`: write a working member as a starting point for your own."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path

import robustcli
from robustcli.errors import RobustCliError, suggest
from robustcli.registry.catalog import FAMILIES, catalog

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Kind:
    """A kind of member, with a template of the same name.

    Args:
        family: registry of its members.
        use: command that uses a member, with its name as NAME.
    """

    family: str
    use: str


KINDS = {
    "defense": Kind("defenses", "robust train SPEC defense=NAME"),
    "attack": Kind("attacks", "robust eval MODEL --attack NAME"),
    "architecture": Kind("architectures", "robust train SPEC architecture.name=NAME"),
    "evaluator": Kind("evaluators", "robust eval MODEL --attack NAME"),
    "dataset": Kind("datasets", "robust train SPEC data.name=NAME"),
    "preprocessor": Kind("preprocessors", "robust train SPEC architecture.preprocess=NAME"),
    "mixer": Kind("mixers", "robust train SPEC data.mixer=NAME"),
    "optimizer": Kind("optimizers", "robust train SPEC train.optimizer=NAME"),
    "schedule": Kind("schedules", "robust train SPEC train.schedule=NAME"),
    "averaging": Kind("averaging", "robust train SPEC defense.averaging=NAME"),
    "weights": Kind("weights", "robust train SPEC defense.weights=NAME"),
    "regularizer": Kind("regularizers", "robust train SPEC defense.regularizer=NAME"),
    "diagnostic": Kind("diagnostics", "robust diagnose MODEL --with NAME"),
}


def new_member(kind: str, name: str, *, into: Path | None = None, package: Path | None = None) -> Path:
    """Write the file of a new member and return its path.

    Args:
        kind: kind of the member, such as "defense".
        into: folder for the file; None means the folder of its family in this package.
        package: folder of your own package, created if missing.

    Raises:
        RobustCliError: the kind is unknown, the name is invalid or taken, or a file already exists.
    """
    if kind not in KINDS:
        raise RobustCliError(f"'{kind}' is not a kind of member{suggest(kind, KINDS)}")
    if into is not None and package is not None:
        raise RobustCliError("--into and --package: use only one of them")
    family = KINDS[kind].family
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or iskeyword(name):
        raise RobustCliError(f"'{name}' is not a valid name; use lower-case letters, digits and _, such as margin_at")
    if name in catalog(family):
        known = catalog(family)[name]
        raise RobustCliError(f"{family} have a member '{name}' already: {known.path}:{known.line}")
    folder = into or (_own_folder(family) if package is None else package / _module_of(package))
    path = folder / f"{name}.py"
    if path.exists():
        raise RobustCliError(f"{path}: this file already exists; choose another name or folder")
    if package is not None:
        _begin_package(package, folder)
    if not folder.is_dir():
        raise RobustCliError(f"--into: there is no folder '{folder}'")
    path.write_text(_template(kind, NAME=name, CLASS=_class_name(name)), encoding="utf-8")
    return path


def next_steps(kind: str, name: str, *, into: Path | None = None, package: Path | None = None) -> Iterator[str]:
    """What comes after `new_member` with the same arguments: one line each."""
    if package is not None:
        yield f"pip install --editable {package}"
    elif into is not None:
        yield (
            "install the package of this folder, with an entry point of the group robustcli; `robust new --package "
            "FOLDER` writes one"
        )
    yield f"robust check-member {name}"
    yield KINDS[kind].use.replace("NAME", name)


def _own_folder(family: str) -> Path:
    """Return the folder of a family in the source of robustcli.

    Raises:
        RobustCliError: robustcli is installed with pip, which would remove the file in an update.
    """
    folder = Path(robustcli.__file__).parent / FAMILIES[family]
    if {"site-packages", "dist-packages"} & set(folder.parts):
        raise RobustCliError(
            f"{folder}: belongs to an installed package; write --package my_members for a package of your own"
        )
    return folder


def _template(name: str, **words: str) -> str:
    text = (_TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")
    for placeholder, word in words.items():
        text = text.replace(placeholder, word)
    return text


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _module_of(package: Path) -> str:
    """Return the module name of a package, which is that of its folder."""
    module = re.sub(r"\W", "_", package.resolve().name).lower()
    if not module.isidentifier() or iskeyword(module) or module == "robustcli":
        raise RobustCliError(f"--package: '{package}' is not a valid module name; use a folder such as my_members")
    return module


def _begin_package(package: Path, folder: Path) -> None:
    """Write the files of a package that robustcli finds, unless they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    project, module = package / "pyproject.toml", folder.name
    if not project.exists():
        text = _template("pyproject", PROJECT=module.replace("_", "-"), MODULE=module)
        project.write_text(text, encoding="utf-8")
    elif "entry-points.robustcli" not in project.read_text(encoding="utf-8"):
        raise RobustCliError(
            f"{project}: has no entry point of robustcli; add [project.entry-points.robustcli] with "
            f'{module} = "{module}"'
        )
    if not (folder / "__init__.py").exists():
        (folder / "__init__.py").write_text('"""Members for robustcli."""\n', encoding="utf-8")
