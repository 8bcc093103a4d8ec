"""Detached Ed25519 signature of a digest chain, in the file results.json.sig; needs the extra `sign`."""

import base64
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError
from robustcli.store.chain import SIGNATURE
from robustcli.store.files import write_text
from robustcli.store.results import Chain

_MAKE = "`openssl genpkey -algorithm ed25519 -out key.pem` creates one"
_EXPORT = "`openssl pkey -in key.pem -pubout -out public.pem` extracts it"


def sign(folder: Path, chain: Chain, key: Path) -> Path:
    """Sign the chain of verified results.

    Args:
        folder: of results.json.
        key: private key in PEM format, without a password.

    Returns:
        The file of the signature.

    Raises:
        RobustCliError: the key cannot be read, or is not an Ed25519 key.
    """
    private = _loaded(key, "load_pem_private_key", "Ed25519PrivateKey", f"a private Ed25519 key in PEM; {_MAKE}")
    path = folder / SIGNATURE
    write_text(path, base64.b64encode(private.sign(_message(chain))).decode() + "\n")
    return path


def signature_problem(folder: Path, chain: Chain, public_key: Path) -> str | None:
    """Problem of the signature of a chain; None if it is valid.

    Args:
        folder: of results.json.
        public_key: in PEM format.

    Raises:
        RobustCliError: the key cannot be read, or is not an Ed25519 key.
    """
    public = _loaded(public_key, "load_pem_public_key", "Ed25519PublicKey", f"a public Ed25519 key in PEM; {_EXPORT}")
    path = folder / SIGNATURE
    if not path.is_file():
        return f"signature: there is no {SIGNATURE}; `robust verify {folder} --sign KEY` writes one"
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(base64.b64decode(path.read_bytes(), validate=False), _message(chain))
    except (InvalidSignature, ValueError):
        return f"signature: {SIGNATURE} does not match these results and this key"
    return None


def _message(chain: Chain) -> bytes:
    return f"robustcli digest chain {chain.digest}".encode()


def _loaded(path: Path, reader: str, kind: str, expected: str) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise RobustCliError("signatures need the package cryptography: pip install cryptography") from error
    content = path.read_bytes()
    try:
        words = (None,) if "private" in reader else ()
        key = getattr(serialization, reader)(content, *words)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RobustCliError(f"{path}: cannot be read as a key; expected {expected}") from error
    if not isinstance(key, getattr(ed25519, kind)):
        raise RobustCliError(f"{path}: found another kind of key; expected {expected}")
    return key
