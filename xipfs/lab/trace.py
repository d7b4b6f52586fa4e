"""Traces: the accesses of a mount as a Parquet file. docs/TRACE.md tells what each column means.

with TraceWriter(path, facts) as writer:
    writer.append(time_ns=..., client=..., ...)
trace = open_trace(path)                 a pyarrow.parquet.ParquetFile, its facts checked
"""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xipfs.errors import FormatError, InvalidArgumentError
from xipfs.policy.contract import PGOFF_BITS, PageIds, no_pages

__all__ = [
    "KINDS",
    "SCHEMA",
    "TIERS",
    "TraceWriter",
    "count_pages",
    "open_trace",
    "trace_facts",
]

KINDS = ("read", "write")
"""By `policy.contract.AccessKind`."""

TIERS = ("ram", "nvram")
"""By `policy.contract.Tier`."""

_NAMES = pa.dictionary(pa.int8(), pa.string())

SCHEMA = pa.schema(
    [
        pa.field("time_ns", pa.int64(), nullable=False),
        pa.field("client", pa.int32(), nullable=False),
        pa.field("file", pa.int64(), nullable=False),
        pa.field("page", pa.int64(), nullable=False),
        pa.field("nr_pages", pa.int32(), nullable=False),
        pa.field("kind", _NAMES, nullable=False),
        pa.field("tier", _NAMES, nullable=False),
    ]
)

_FACTS_KEY = b"xipfs.trace"
_VERSION = 1

NR_GROUP_ROWS = 1 << 17
"""Rows of a row group: about a megabyte, compressed."""


class TraceWriter:
    """Writes a trace to *path*, row group by row group; complete once it is closed.

    facts: what stands in the file beside the rows; `close` may add more.
    Raises: OSError.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.nr_rows = 0
        self._pending: list[pa.RecordBatch] = []
        self._nr_pending = 0
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")

    def append(
        self,
        *,
        time_ns: NDArray[np.int64],
        client: NDArray[np.int32],
        file: NDArray[np.int64],
        page: NDArray[np.int64],
        nr_pages: NDArray[np.int64],
        kind: NDArray[np.uint8],
        tier: NDArray[np.uint8],
    ) -> None:
        """Append accesses in their order; all arrays have the same shape (nr_rows,)."""
        columns = [
            pa.array(time_ns, pa.int64()),
            pa.array(client, pa.int32()),
            pa.array(file, pa.int64()),
            pa.array(page, pa.int64()),
            pa.array(nr_pages.astype(np.int32), pa.int32()),
            pa.DictionaryArray.from_arrays(pa.array(kind.astype(np.int8)), list(KINDS)),
            pa.DictionaryArray.from_arrays(pa.array(tier.astype(np.int8)), list(TIERS)),
        ]
        self._pending.append(pa.record_batch(columns, schema=SCHEMA))
        self._nr_pending += len(time_ns)
        self.nr_rows += len(time_ns)
        if self._nr_pending >= NR_GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as a row group."""
        if self._nr_pending:
            self._writer.write_table(pa.Table.from_batches(self._pending))
        self._pending, self._nr_pending = [], 0

    def close(self) -> None:
        """Write the rest, the facts and the footer, without which the file cannot be read."""
        self.flush()
        facts = json.dumps({"version": _VERSION, **self.facts})
        self._writer.add_key_value_metadata({_FACTS_KEY.decode(): facts})
        self._writer.close()

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_trace(path: Path) -> pq.ParquetFile:
    """Open a trace for reading.

    Raises: FormatError for another kind of file, or one without an end; OSError.
    """
    try:
        trace = pq.ParquetFile(path)
    except pa.ArrowInvalid as exc:
        raise FormatError(f"{path}: no trace: {str(exc).splitlines()[0]}") from None
    facts = trace_facts(trace)
    if facts.get("version") != _VERSION:
        raise FormatError(f"{path}: no trace of xipfs, or of a version that this one does not know")
    return trace


def count_pages(trace: pq.ParquetFile) -> tuple[PageIds, NDArray[np.int64]]:
    """Return the pages of a trace, sorted, and how often each was accessed."""
    pages, counts = no_pages(), no_pages()
    for batch in trace.iter_batches(columns=["file", "page", "nr_pages"]):
        file, page, nr_pages = (column.to_numpy().astype(np.int64) for column in batch.columns)
        starts = np.cumsum(nr_pages) - nr_pages
        offsets = np.arange(int(nr_pages.sum())) - np.repeat(starts, nr_pages)
        ids = np.repeat(file << PGOFF_BITS | page, nr_pages) + offsets
        everything = np.concatenate([pages, ids])
        weights = np.concatenate([counts, np.ones(len(ids), np.int64)])
        pages, places = np.unique(everything, return_inverse=True)
        counts = np.bincount(places, weights).astype(np.int64)
    return pages, counts


def trace_facts(trace: pq.ParquetFile) -> dict[str, Any]:
    """Return what stands in a trace beside its rows; empty for a file of somebody else's."""
    try:
        facts: dict[str, Any] = json.loads((trace.metadata.metadata or {})[_FACTS_KEY])
    except (KeyError, ValueError):
        return {}
    if not isinstance(facts, dict):
        raise InvalidArgumentError("facts of a trace are no object")
    return facts
