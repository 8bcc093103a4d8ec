"""Checks of a member's documentation and declarations."""

import importlib
import inspect
import re

from robustcli.registry.catalog import Member
from robustcli.registry.signatures import REQUIRED, argument_docs, section

# Docstring sections that help users to choose, and the families that have them.
ADVICE = ("When to use", "First setting")
ADVISED = ("attacks", "defenses", "evaluators")


def has_reference_and_describes_every_parameter(member: Member) -> None:
    """The docstring has a summary, a reference and a description of every parameter."""
    assert member.summary.rstrip().endswith("."), "the first line of the docstring is not a sentence"
    assert "\nReference: " in member.doc, "no line that begins with Reference:"
    described = argument_docs(member.doc)
    assert set(member.fixed) <= set(described), "Args: does not describe what is fixed"
    settable = [name for name in described if name not in member.fixed and name not in member.replaceable]
    own = [name for name in member.parameters if name in described]
    assert settable == own, "Args: describes others than the parameters, or in another order"
    assert not re.search(r"\{\w+\}", member.doc), "a name in braces without a value"
    for name, parameter in member.parameters.items():
        assert len(parameter.doc) > 10, f"Args: {name} is not described"
    assert not re.search(r"\bTODO\b", member.doc), "the docstring holds a TODO"


def says_when_to_use_it(member: Member) -> None:
    """The docstring states when to use the member, and a first setting."""
    missing = [title for title in ADVICE if not section(member.doc, title)]
    assert not missing, f"no paragraph that begins with {' or '.join(f'{title}:' for title in missing)}"


def smoke_gives_what_has_no_default(member: Member) -> None:
    """`smoke` has every parameter without a default, and no unknown parameters."""
    lacking = sorted(set(member.required) - set(member.smoke))
    assert not lacking, f"smoke does not have {', '.join(lacking)}"
    unknown = set(member.smoke) - set(member.parameters)
    assert not unknown, f"smoke names {', '.join(sorted(unknown))}, which are not parameters"


def source_is_what_is_imported(member: Member) -> None:
    """The parameters parsed from the source are those of the imported function or class."""
    target = getattr(importlib.import_module(member.module), member.attribute)
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    settable = [name for name in keywords if name not in member.fixed and name not in member.replaceable]
    assert settable == list(member.parameters)
    for name, parameter in member.parameters.items():
        default = keywords[name]
        is_missing = default is inspect.Parameter.empty
        assert parameter.default is REQUIRED if is_missing else parameter.default == default, name
