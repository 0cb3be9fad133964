"""A shard of features as a Parquet file: a row for each image, for DuckDB, pandas and what else reads tables."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .results import Recipe

ROW_GROUP = 64 << 20  # bytes of features after which they are written: what is held, and what is read at once
TEXTS = ("name", "path", "sha256")  # columns
SIZES = ("original", "image", "grid")  # each is two columns, height and width


def check_pyarrow() -> None:
    """Raise ImportError if pyarrow is missing."""
    try:
        import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow; pip install 'dvt-timm[parquet]'") from error


class ParquetShard:
    """A Parquet file; a map [h, w, C] is a list of its numbers, those of a patch together, row by row.

    Args:
        path: of the file.
        recipe: of the results; its metadata are the schema's.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        number = pa.float16() if recipe.metadata["dtype"] == "float16" else pa.float32()
        fields = [(name, pa.string()) for name in TEXTS]
        fields += [(f"{size}_{side}", pa.int32()) for size in SIZES for side in ("height", "width")]
        fields += [("dim", pa.int32()), *((name, pa.list_(number)) for name in recipe.names)]
        self._schema = pa.schema(fields, metadata=recipe.metadata)
        self._writer = ParquetWriter(path, self._schema, compression="none", use_dictionary=list(TEXTS))
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, row: Mapping[str, Any], maps: Mapping[str, Tensor]) -> None:
        """Write an image's maps [h, w, C], or keep them for the next group of rows."""
        sizes = {
            f"{size}_{side}": row[f"{size}_size"][i] for size in SIZES for i, side in enumerate(("height", "width"))
        }
        values = {name: fmap.flatten().numpy() for name, fmap in maps.items()}
        self._rows.append({**{name: row[name] for name in TEXTS}, **sizes, "dim": row["dim"], **values})
        self._bytes += sum(value.nbytes for value in values.values())
        if self._bytes >= ROW_GROUP:
            self._flush()

    def finish(self) -> None:
        """Write what is left, and the footer."""
        if self._rows:
            self._flush()
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = [self._column(field, [row[field.name] for row in self._rows]) for field in self._schema]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows, self._bytes = [], 0

    @staticmethod
    def _column(field: Any, values: list[Any]) -> Any:
        import pyarrow as pa

        if not pa.types.is_list(field.type):
            return pa.array(values, field.type)
        ends = np.cumsum([0] + [len(value) for value in values], dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(values)))
