import pytest

from xipfs.crash.operations import format_operations, parse_operations, written_bytes
from xipfs.crash.workloads import ELEMENTS, fuzz, seq
from xipfs.errors import InvalidArgumentError


@pytest.mark.parametrize(
    "text",
    [
        "create /A/new 4755",
        "rename /a /b; rename /a /b exchange; write /a 4096 100; fsync /a",
        "mknod /A/null 20666 259",
        "unlink /D/n{240}03",
        "",
    ],
)
def test_operations_are_read_and_written(text):
    assert format_operations(parse_operations(text)) == text


def test_what_is_short_for_a_long_name():
    [operation] = parse_operations("unlink /D/n{240}03")
    assert operation.path() == "/D/" + "n" * 240 + "03"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sing /a", "sing /a: no operation: create, "),
        ("unlink", "unlink takes PATH"),
        ("unlink a", "a: a path starts with /"),
        ("rename /a /b sideways", "noreplace or exchange"),
        ("create /a 9", "9: not a number"),
        ("write /a 0 x", "x: not a number"),
        ("write /a 0 -1", "-1: 0 to "),
        ("write /a 0 99999999", "at most 1048576 bytes"),
    ],
)
def test_what_is_no_operation(text, message):
    with pytest.raises(InvalidArgumentError, match=message.replace("(", "[(]")):
        parse_operations(text)


def test_no_word_that_is_written_is_like_another():
    words = [written_bytes(n, 4096)[i : i + 8] for n in range(3) for i in range(0, 4096, 8)]
    assert len(set(words)) == len(words)
    assert written_bytes(5, 11) == b"0500000005000001"[:11]


def test_seq_has_every_row_of_elements():
    assert len(ELEMENTS) >= 56
    assert len({workload.operations for workload in seq(1)}) == len(ELEMENTS)
    pairs = list(seq(2))
    assert len({workload.operations for workload in pairs}) == len(ELEMENTS) ** 2
    assert all(
        workload.operations[workload.nr_known :] in ELEMENTS
        and workload.operations[: workload.nr_known] in ELEMENTS
        for workload in pairs
    )


def test_a_seed_makes_one_workload():
    assert fuzz(7, nr_operations=30) == fuzz(7, nr_operations=30)
    assert fuzz(7, nr_operations=30) != fuzz(8, nr_operations=30)
    names = {op.name for seed in range(99) for op in fuzz(seed, nr_operations=30).operations}
    assert {"create", "rename", "write", "hold", "drop", "setxattr"} <= names
    assert "promote" in {op.name for op in fuzz(1, nr_operations=9, moves_pages=True).operations}
