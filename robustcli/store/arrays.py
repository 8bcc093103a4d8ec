"""Errors of NumPy archives that are damaged or were not written by NumPy."""

import struct
import tokenize
import zipfile
import zlib

# Errors of reading a header that is parsed as Python, a zip archive and compressed bytes.
UNREADABLE = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
