import pytest

from xipfs.crash.operations import parse_operations
from xipfs.crash.oracle import History, complaints
from xipfs.crash.snapshot import Node

DIRECTORY = Node(1, 0o40755, 2, 0, 0, 4096, 0, 5, 5, (), b"", (b"f",))
INO = 16
OLD, NEW, NEWER = b"o" * 40, b"n" * 40, b"e" * 40


def file(content, **fields):
    node = Node(INO, 0o100644, 1, 0, 0, len(content), 0, 5, 5, (), content, ())
    return node._replace(**fields)


def tree(content=None, **fields):
    return {"/": DIRECTORY} | ({} if content is None else {"/f": file(content, **fields)})


def one(text):
    [operation] = parse_operations(text)
    return operation


WRITE, FSYNC, CHMOD = one("write /f 0 40"), one("fsync /f"), one("chmod /f 600")


def history(*steps, start=OLD):
    """A file, and after each operation what is in it."""
    found = History(tree(start))
    for operation, content in steps:
        found.end(operation, tree(content), INO)
    return found


def judged(content, allowed, **fields):
    return complaints(tree(content, **fields), allowed)


def test_the_tree_is_what_it_was():
    assert judged(OLD, history().allowed()) == []
    assert judged(NEW, history().allowed()) == [
        "/f: at byte 0 b'nnnnnnnn', which was never there",
    ]
    assert judged(None, history().allowed()) == ["/f: is gone"]
    assert complaints(tree(OLD) | {"/g": file(OLD)}, history().allowed()) == [
        "/g: should not be there"
    ]
    assert judged(OLD, history().allowed(), mode=0o100600) == ["/f: mode is 33152, should be 33188"]


def test_an_operation_on_attributes_is_there_wholly_or_not_at_all():
    after = {"/": DIRECTORY, "/f": file(OLD, mode=0o100600, ctime_ns=7)}
    allowed = history().allowed(CHMOD, after, INO)
    assert judged(OLD, allowed) == []
    assert judged(OLD, allowed, mode=0o100600, ctime_ns=7) == []
    assert judged(OLD, allowed, mode=0o100600) == ["/f: mode is 33152, should be 33188"]


def test_an_operation_that_returned_is_there():
    found = history()
    found.end(CHMOD, tree(OLD, mode=0o100600), INO)
    assert judged(OLD, found.allowed(), mode=0o100600) == []
    assert judged(OLD, found.allowed()) != []


MIXED = NEW[:16] + OLD[16:]


@pytest.mark.parametrize("content", [OLD, NEW, MIXED, OLD[:8] + NEW[8:]])
def test_what_was_written_over_bytes_is_any_mix_until_fsync(content):
    assert judged(content, history((WRITE, NEW)).allowed()) == []
    assert judged(content, history().allowed(WRITE, tree(NEW), INO)) == []


def test_after_fsync_it_is_there():
    allowed = history((WRITE, NEW), (FSYNC, NEW)).allowed()
    assert judged(NEW, allowed) == []
    assert judged(MIXED, allowed) != []


def test_fsync_promises_nothing_before_it_returned():
    assert judged(MIXED, history((WRITE, NEW)).allowed(FSYNC, tree(NEW), INO)) == []


def test_of_several_writes_each_word_is_of_any():
    mixed = OLD[:8] + NEW[8:16] + NEWER[16:]
    assert judged(mixed, history((WRITE, NEW), (WRITE, NEWER)).allowed()) == []


def test_a_word_is_never_torn():
    assert judged(b"nnnn" + OLD[4:], history((WRITE, NEW)).allowed()) == [
        "/f: at byte 0 b'nnnnoooo', which was never there"
    ]


def test_what_was_added_is_there_when_the_write_has_returned():
    longer = OLD + NEW
    allowed = history((one("append /f 40"), longer)).allowed()
    assert judged(longer, allowed) == []
    assert judged(OLD, allowed) != []
    assert judged(OLD + bytes(40), allowed) == [
        "/f: at byte 40 b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00', which was never there"
    ]


def test_an_append_inside_has_the_old_size_or_the_new_bytes():
    allowed = history().allowed(one("append /f 40"), tree(OLD + NEW), INO)
    assert judged(OLD, allowed) == []
    assert judged(OLD + NEW, allowed) == []
    assert judged(OLD + bytes(40), allowed) != []


def test_a_word_in_which_the_file_ended_is_two():
    """What a write puts over the old bytes is in flight, what it adds is there."""
    written = one("write /f 32 16")
    start, after = OLD[:36], OLD[:32] + NEW[:16]
    found = history((written, after), start=start)
    assert judged(after, found.allowed()) == []
    assert judged(OLD[:36] + NEW[4:16], found.allowed()) == []
    assert judged(OLD[:36] + bytes(12), found.allowed()) != []
    assert judged(b"x" * 36 + NEW[4:16], found.allowed()) != []


def test_truncation_cuts_what_is_in_flight_too():
    cut = one("truncate /f 16")
    allowed = history((WRITE, NEW), (cut, NEW[:16])).allowed()
    assert judged(OLD[:16], allowed) == []
    grown = history((WRITE, NEW), (cut, NEW[:16]), (one("truncate /f 40"), NEW[:16] + bytes(24)))
    assert judged(NEW[:16] + bytes(24), grown.allowed()) == []
    assert judged(NEW[:16] + OLD[16:], grown.allowed()) != []


def test_an_operation_that_failed_makes_nothing_durable():
    """A link that failed was taken for one, which has the file's times in its transaction."""
    found = history()
    found.end(WRITE, tree(NEW, mtime_ns=9), INO)
    found.end(one("link /f /gone/f"), tree(NEW, mtime_ns=9), INO, has_failed=True)
    assert judged(NEW, found.allowed(), mtime_ns=5) == []
    found.end(one("rename /f /f"), tree(NEW, mtime_ns=9), INO)
    assert judged(NEW, found.allowed(), mtime_ns=5) == []
    found.end(CHMOD, tree(NEW, mtime_ns=9, mode=0o100600), INO)
    assert judged(NEW, found.allowed(), mtime_ns=5, mode=0o100600) != []


def test_a_file_is_written_to_that_has_lost_the_name_it_was_opened_by():
    """The write was not noted, as nothing had that name any more, and its times were missed."""
    found = History({"/": DIRECTORY, "/f": file(OLD), "/g": file(OLD)})
    left = {"/": DIRECTORY, "/g": file(OLD)}
    found.end(one("unlink /f"), left, INO)
    written = {"/": DIRECTORY, "/g": file(NEW, mtime_ns=9)}
    found.end(WRITE, written, INO)
    assert complaints(left, found.allowed()) == []


def test_a_number_that_is_used_again_has_nothing_of_the_file_before():
    found = history((WRITE, NEW))
    found.end(one("unlink /f"), tree(None), INO)
    found.end(one("create /f 644"), tree(b""), INO)
    found.end(WRITE, tree(NEWER), INO)
    assert judged(NEWER, found.allowed()) == []
    assert judged(OLD, found.allowed()) != []
