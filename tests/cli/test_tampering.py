"""`robust verify` reports every change of a stored result: each leaf of its JSON files and each file, changed once."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from products import products
from shell import Robust

from robustcli.errors import RobustCliError
from robustcli.models.model import TrainedModel
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.chain import chain_of, folded
from robustcli.store.files import read_json
from robustcli.store.results import read_results
from robustcli.store.runs import RunFolder
from robustcli.workflows import verify
from robustcli.workflows.verify import verify_folder

Where = tuple[str | int, ...]
_EVAL = ("--attack", "pgd", "--steps", "3", "--eps", "0.1", "--examples", "30", "--save-examples", "--quiet")


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read network, images and specs once; these tests do not change them."""
    known: dict[str, Any] = {}

    def once(where: Any, name: str) -> None:
        read = getattr(where, name)

        def call(*words: Any) -> Any:
            key = repr((name, words))
            if key not in known:
                known[key] = read(*words)
            return known[key]

        monkeypatch.setattr(where, name, call)

    once(verify, "test_images")
    once(verify, "find_model")
    once(ExperimentSpec, "parse")
    once(ExperimentSpec, "read")
    load = TrainedModel.load
    monkeypatch.setattr(
        TrainedModel, "load", lambda *words: known.get("load") or known.setdefault("load", load(*words))
    )


KINDS = ["run", "eval"]


@pytest.fixture(params=KINDS)
def stored(request: pytest.FixtureRequest, tmp_path: Path, trained: RunFolder, robust: Robust) -> Path:
    """A copy of a finished run or of a stored evaluation."""
    if request.param == "run":
        return Path(shutil.copytree(trained.path, tmp_path / "stored"))
    robust("eval", trained.best, *_EVAL, "--store", tmp_path / "evals").require(0)
    (folder,) = (tmp_path / "evals").iterdir()
    return folder


def write_json(path: Path, value: Any) -> None:
    """Write JSON without waiting for the disk."""
    path.write_text(json.dumps(value), encoding="utf-8")


def leaves(value: Any, where: Where = ()) -> Iterator[Where]:
    """Places of all leaves of a JSON value; an empty list or mapping is one."""
    parts: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not parts:
        yield where
    for key, part in parts:
        yield from leaves(part, (*where, key))


def changed(value: Any, where: Where) -> Any:
    """The value with one leaf replaced."""
    if where:
        key, *rest = where
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        copy[key] = changed(value[key], tuple(rest))
        return copy
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return _other_text(value)
    return {"list": ["changed"], "dict": {"changed": "1"}}.get(type(value).__name__, "changed")


def _other_text(text: str) -> str:
    """Another text of the same type: survivors stay 0 or 1, numbers stay numbers."""
    if text and set(text) <= {"0", "1"}:
        return ("1" if text[0] == "0" else "0") + text[1:]
    return text + "1" if text[-1:].isdigit() else text + "x"


def outcome(folder: Path) -> tuple[list[str], list[str]]:
    """Problems that verify reports, and what it lists as not checked."""
    try:
        findings = verify_folder(folder, (), None, "cpu")
    except RobustCliError as error:
        return [str(error)], []
    return [text for found in findings for text in found.problems], [
        text for found in findings for text in found.unchecked
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("_quick")
def test_every_leaf_of_every_json_file_is_bound(stored: Path) -> None:
    assert outcome(stored)[0] == []
    passed, count = [], 0
    for path in sorted(stored.rglob("*.json")):
        text = path.read_text()
        for where in leaves(json.loads(text)):
            path.write_text(json.dumps(changed(json.loads(text), where)))
            count += 1
            if not outcome(stored)[0]:
                passed.append((path.name, *where))
        path.write_text(text)
    assert passed == []
    assert count > 100
    assert outcome(stored)[0] == []


@pytest.mark.usefixtures("_quick")
def test_every_key_may_not_be_removed_or_added(stored: Path) -> None:
    path = stored / "results.json"
    whole = read_json(path)
    for key in whole:
        write_json(path, {name: value for name, value in whole.items() if name != key})
        assert outcome(stored)[0], key
    write_json(path, {**whole, "claimed": 0.9})
    assert outcome(stored)[0]


@pytest.mark.slow
def test_every_file_is_bound_or_listed(stored: Path) -> None:
    paths = sorted(path for path in stored.rglob("*") if path.is_file() and path.name != "lock")
    for path in paths:
        content = path.read_bytes()
        for other in (content + b"\n ", content[:-1] + bytes([content[-1] ^ 1]), content[: len(content) // 2]):
            path.write_bytes(other)
            problems, _ = outcome(stored)
            assert problems or (path.name == "results.json" and other == content + b"\n "), path
        path.unlink()
        problems, unchecked = outcome(stored)
        assert problems or any(path.name in text for text in unchecked) or path.name == "results.json", path
        path.write_bytes(content)
    assert outcome(stored)[0] == []


def _recomputed(folder: Path) -> None:
    """Recompute the chain of tampered results, as a careful forger would."""
    raw = read_json(folder / "results.json")
    chain = read_results(folder / "results.json").chain
    assert chain is not None
    write_json(folder / "results.json", {**raw, "chain": chain_of(folder, raw, chain.links["weights"]).to_json()})


@pytest.mark.slow
@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    ("stored", "has_chain"), products(KINDS, [True, False], strength=1), indirect=["stored"], ids=str
)
def test_without_the_help_of_the_chain_a_key_is_reported_or_listed(stored: Path, has_chain: bool) -> None:
    """The evaluation, the summary and the chain are changed consistently, or the chain is removed."""
    summary = stored / "results.json"
    whole = read_json(summary)
    if not has_chain:
        del whole["chain"]
        whole["schema"] = 1
    write_json(summary, whole)
    assert outcome(stored)[0] == []
    passed = []
    for where in leaves(whole):
        if where[0] == "chain":
            continue
        other = changed(whole, where)
        write_json(summary, other)
        if where[0] == "evaluations":
            path = stored / "evaluations" / f"{where[1]}.json"
            kept = path.read_text()
            write_json(path, other["evaluations"][where[1]])
        try:
            if has_chain:
                _recomputed(stored)
            problems, unchecked = outcome(stored)
        except RobustCliError:
            problems = ["damaged"]
        if where[0] == "evaluations":
            path.write_text(kept)
        names = [str(part) for part in where if isinstance(part, str)]
        if not problems and not any(name in text for name in names for text in unchecked):
            passed.append(where)
    assert passed == []


def test_another_radius_is_caught_where_fingerprint_and_chain_were_changed_with_it(
    trained: RunFolder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained.path, tmp_path / "stored"))
    path = folder / "evaluations" / "pgd.json"
    for old, new, message in (
        ('"0.1"', '"0.05"', "threat"),
        ('"steps": 3', '"steps": 300', "settings"),
        ('"seed": 0', '"seed": 5', "seed"),
    ):
        text, summary = path.read_text(), read_json(folder / "results.json")
        raw = json.loads(text.replace(old, new))
        raw["fingerprint"]["threat"] = f"linf {raw['eps']}"
        raw["fingerprint"]["seed"] = str(raw["seed"])
        raw["fingerprint"]["evaluator"] = raw["fingerprint"]["evaluator"].replace(old, new)
        raw["eps_value"] = float(raw["eps"])
        write_json(path, raw)
        write_json(folder / "results.json", {**summary, "evaluations": {**summary["evaluations"], "pgd": raw}})
        _recomputed(folder)
        problems, _ = outcome(folder)
        assert any(message in text for text in problems), (message, problems)
        path.write_text(text)
        write_json(folder / "results.json", summary)
    assert outcome(folder)[0] == []


def test_the_digest_of_a_chain_depends_on_every_link_and_their_order() -> None:
    links = {"a": "1", "b": "2"}
    others = ({"a": "1"}, {"a": "1", "b": "3"}, {"b": "2", "a": "1"}, {"a": "1", "c": "2"})
    assert folded(links) not in {folded(other) for other in others}


def test_a_signature_reveals_changes_after_which_everything_was_recomputed(
    trained: RunFolder, tmp_path: Path, robust: Robust
) -> None:
    folder = Path(shutil.copytree(trained.path, tmp_path / "runs" / "stored"))
    key, public = write_keys(tmp_path, "mine")
    _, other = write_keys(tmp_path, "other")
    robust("verify", folder, "--public-key", public).require(1, "there is no results.json.sig")
    # The folder of all runs stands for the only one in it.
    robust("verify", folder.parent, "--sign", key).require(0, "signed: ")
    robust("verify", folder, "--public-key", public).require(0, "signature: valid")
    robust("verify", folder, "--public-key", other).require(1, "does not match these results and this key")
    path = folder / "evaluations" / "pgd.json"
    forged = {**read_json(path), "suspicions": ["none"], "verdict": "SUSPECT"}
    write_json(path, forged)
    raw = read_json(folder / "results.json")
    write_json(folder / "results.json", {**raw, "evaluations": {**raw["evaluations"], "pgd": forged}})
    _recomputed(folder)
    robust("verify", folder).require(0)
    robust("verify", folder, "--public-key", public).require(1, "does not match these results and this key")


def test_keys_of_another_kind_are_refused(trained: RunFolder, tmp_path: Path, robust: Robust) -> None:
    key, public = write_keys(tmp_path, "mine")
    robust("verify", trained.path, "--sign", public).require(2, "expected a private Ed25519 key", "openssl genpkey")
    robust("verify", trained.path, "--public-key", key).require(2, "expected a public Ed25519 key", "-pubout")
    robust("verify", trained.path, "--sign", tmp_path / "none.pem").require(2, "none.pem")


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a new private key and its public one."""
    private = Ed25519PrivateKey.generate()
    plain = serialization.NoEncryption()
    key, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    pem = serialization.Encoding.PEM
    key.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return key, public
