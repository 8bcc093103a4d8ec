"""Arrays that are larger than memory, written row by row into an .npz file."""

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


class GrowingArray:
    """An array whose rows are collected in a temporary file without a name, within a `with` block.

    Args:
        folder: folder on whose disk the rows are kept.
        row: shape of one row.
        dtype: type of the array if no row is ever added.
    """

    def __init__(self, folder: Path, row: tuple[int, ...], dtype: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115
        self._row, self._dtype, self._rows = row, np.dtype(dtype), 0

    def __enter__(self) -> "GrowingArray":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows (n, ...), which all have one type."""
        assert rows.shape[1:] == self._row
        self._dtype = rows.dtype
        self._file.write(np.ascontiguousarray(rows).data)
        self._rows += len(rows)

    def write(self, file: Any) -> None:
        """Write the array in the format of numpy.save."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._row),
        }
        np.lib.format.write_array_header_1_0(file, header)
        self._file.seek(0)
        shutil.copyfileobj(self._file, file, 1 << 20)


def write_npz(file: BinaryIO, arrays: Mapping[str, NDArray[Any] | GrowingArray]) -> None:
    """Write arrays as numpy.savez_compressed does."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if isinstance(array, GrowingArray):
                    array.write(member)
                else:
                    np.lib.format.write_array(member, array, allow_pickle=False)
