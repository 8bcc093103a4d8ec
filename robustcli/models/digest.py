"""Digests of a network's weights and code."""

import hashlib
import io
import site
import sys
import sysconfig
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import robustcli


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of names, types, shapes and bytes of all parameters and buffers.

    Frozen TorchScript stores weights as constants of its code; these count too, as does extra state of modules.
    """
    digest = hashlib.sha256()
    for name, value in (*sorted(model.state_dict().items()), *_constants(model)):
        for tensor in _tensors(value):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor_bytes(tensor))
        if not isinstance(value, Tensor):
            digest.update(f"{name} {_plain_part(value)}\n".encode())
    return digest.hexdigest()


def _tensors(value: object) -> Iterator[Tensor]:
    """Tensors in a value, such as the packed weights of a quantized layer."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for item in value.values() for tensor in _tensors(item))
    elif isinstance(value, tuple | list):
        yield from (tensor for item in value for tensor in _tensors(item))


def _plain_part(value: object) -> str:
    if isinstance(value, Mapping):
        return str({str(key): _plain_part(item) for key, item in value.items()})
    if isinstance(value, tuple | list):
        return str([_plain_part(item) for item in value])
    return repr(value) if _is_plain(value) else ""


def _constants(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for place, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and hasattr(module, "forward"):
            constants = module.code_with_constants[1].const_mapping
            for name, value in sorted(constants.items()):
                if isinstance(value, Tensor):
                    yield f"{place}:{name}", value


def network_digest(model: nn.Module) -> str:
    """SHA-256 of a network without its weights: modules, their plain attributes and the code of their classes.

    Modules of torch count by name, TorchScript by its code. Functions attached to a module, as hooks or as `forward`,
    count by their bytecode. Comments and docstrings do not count.
    """
    digest = hashlib.sha256(str(model).encode())
    files = set()
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            digest.update(str(getattr(module, "code", "")).encode())
            continue
        digest.update(f"{name} {_attributes(module)}\n".encode())
        if type(module).__module__.partition(".")[0] != "torch":
            files.add(_file_of(type(module)))
    for path in sorted(path for path in files if path is not None):
        digest.update(path.name.encode() + code_of(path))
    return digest.hexdigest()


def code_of(path: Path) -> bytes:
    """Return a Python file without comments, docstrings and blank lines; any other file as it is."""
    if path.suffix != ".py":
        return path.read_bytes()
    with tokenize.open(path) as file:
        text = file.read()
    rows = text.split("\n")
    kept: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            rows[row - 1] = rows[row - 1][:column].rstrip()
        elif token.type == tokenize.NEWLINE:
            is_docstring = all(part.type == tokenize.STRING for part in statement)
            kept.update(row for part in statement if not is_docstring for row in range(part.start[0], part.end[0] + 1))
            statement = []
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            statement.append(token)
    return "\n".join(rows[row - 1] for row in sorted(kept)).encode()


def imported_code_digest() -> str:
    """SHA-256 of the files of all imported modules that are neither Python's, nor installed, nor of this package."""
    installed = [Path(path).resolve() for path in (*sysconfig.get_paths().values(), *site.getsitepackages())]
    own = Path(robustcli.__file__).resolve().parent
    files = set()
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path is None or name in ("__main__", "__mp_main__"):
            continue
        file = Path(path).resolve()
        if file.is_file() and not any(file.is_relative_to(folder) for folder in (own, *installed)):
            files.add(file)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _attributes(module: nn.Module) -> list[str]:
    """Plain values and functions of a module as text; without `training`, which evaluations set."""
    hooks = {key: list(vars(module).get(key, {}).values()) for key in ("_forward_pre_hooks", "_forward_hooks")}
    held = {key: [value] for key, value in vars(module).items() if not key.startswith("_") and key != "training"}
    texts = []
    for key, values in {**held, **hooks}.items():
        for value in values:
            code = getattr(getattr(value, "__func__", value), "__code__", None)
            if code is not None:
                texts.append(
                    f"{key} {code.co_code.hex()} {code.co_names} {[c for c in code.co_consts if _is_plain(c)]}"
                )
            elif _is_plain(value):
                texts.append(f"{key} {value!r}")
    return sorted(texts)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _file_of(kind: type) -> Path | None:
    """File that defines a class; None if it is not in a file."""
    name = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return Path(name) if name is not None and Path(name).is_file() else None


def tensor_bytes(tensor: Tensor) -> bytes:
    """Bytes of a tensor of any layout, without its type and shape."""
    plain = tensor.detach().cpu()
    if plain.is_quantized:
        return f"{plain.q_scale() if plain.qscheme() == torch.per_tensor_affine else ''}".encode() + tensor_bytes(
            plain.int_repr()
        )
    if plain.layout != torch.strided:
        return tensor_bytes(plain.to_dense())
    return plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
