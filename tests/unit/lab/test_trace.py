"""Traces: what is written is read again; other files are refused; the document says the schema."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from xipfs.errors import FormatError
from xipfs.lab import trace as lab_trace
from xipfs.lab.trace import SCHEMA, TraceWriter, count_pages, open_trace, trace_facts
from xipfs.policy.contract import AccessKind, Tier, page_id

DOCUMENT = Path(__file__).parents[3] / "docs" / "TRACE.md"


def columns(start: int, count: int) -> dict:
    numbers = np.arange(start, start + count)
    return {
        "time_ns": numbers * 10,
        "client": numbers.astype(np.int32),
        "file": numbers % 7,
        "page": numbers % 13,
        "nr_pages": numbers % 3 + 1,
        "kind": (numbers % 2).astype(np.uint8),
        "tier": (numbers // 2 % 2).astype(np.uint8),
    }


def test_what_is_written_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(lab_trace, "NR_GROUP_ROWS", 100)
    path = tmp_path / "trace.parquet"
    with TraceWriter(path, {"image": "x.img"}) as writer:
        for start in range(0, 250, 50):
            writer.append(**columns(start, 50))
        writer.facts["lost"] = 3
    assert writer.nr_rows == 250
    with open_trace(path) as trace:
        assert trace.schema_arrow.equals(SCHEMA)
        assert trace.num_row_groups == 3
        assert trace_facts(trace) == {"version": 1, "image": "x.img", "lost": 3}
        table = trace.read()
    expected = columns(0, 250)
    for name in ("time_ns", "client", "file", "page", "nr_pages"):
        assert table[name].to_pylist() == expected[name].tolist()
    assert table["kind"].to_pylist() == ["read", "write"] * 125
    assert table["tier"].to_pylist()[:4] == ["ram", "ram", "nvram", "nvram"]


def test_pages_are_counted(tmp_path):
    path = tmp_path / "trace.parquet"
    numbers = np.array([0, 0, 0])
    with TraceWriter(path, {}) as writer:
        writer.append(
            time_ns=numbers,
            client=numbers.astype(np.int32),
            file=np.array([7, 7, 2]),
            page=np.array([3, 4, 0]),
            nr_pages=np.array([2, 1, 3]),
            kind=numbers.astype(np.uint8),
            tier=numbers.astype(np.uint8),
        )
    with open_trace(path) as trace:
        pages, counts = count_pages(trace)
    assert pages.tolist() == [page_id(2, i) for i in range(3)] + [page_id(7, 3), page_id(7, 4)]
    assert counts.tolist() == [1, 1, 1, 1, 2]


def test_an_empty_trace(tmp_path):
    with TraceWriter(tmp_path / "trace.parquet", {}) as writer:
        pass
    assert writer.nr_rows == 0
    with open_trace(tmp_path / "trace.parquet") as trace:
        assert trace.metadata.num_rows == 0
        assert len(count_pages(trace)[0]) == 0


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "trace.parquet"
    path.write_bytes(b"no parquet" * 100)
    with pytest.raises(FormatError, match=r"trace\.parquet: no trace: "):
        open_trace(path)
    pq.write_table(SCHEMA.empty_table(), path)
    with pytest.raises(FormatError, match="no trace of xipfs"):
        open_trace(path)
    with pytest.raises(FileNotFoundError):
        open_trace(tmp_path / "missing")


def test_names_are_those_of_the_contract():
    assert [name.upper() for name in lab_trace.KINDS] == [kind.name for kind in AccessKind]
    assert [name.upper() for name in lab_trace.TIERS] == [tier.name for tier in Tier]


def test_the_document_has_every_column():
    rows = re.findall(r"^\| `(\w+)` \| (\S+)", DOCUMENT.read_text(), re.MULTILINE)
    kinds = {"int64": "int64", "int32": "int32"}
    expected = [(field.name, kinds.get(str(field.type), "text")) for field in SCHEMA]
    assert rows[: len(expected)] == expected
