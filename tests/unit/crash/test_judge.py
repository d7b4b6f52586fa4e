"""The judge and the player on an image of the lab: sound ones pass, damaged ones do not."""

import stat

import pytest

from xipfs.crash.campaign import base_image
from xipfs.crash.judge import FilesystemJudge
from xipfs.crash.operations import parse_operations, written_bytes
from xipfs.crash.player import play
from xipfs.crash.recorder import Fence, Mark
from xipfs.errors import FormatError
from xipfs.ondisk.superblock import decode_superblock
from xipfs.phys.nvram import NvramDevice
from xipfs.units import PAGE_SHIFT, PAGE_SIZE


@pytest.fixture(scope="module")
def image():
    return base_image()


def device(image):
    nvram = NvramDevice.scratch(len(image))
    nvram.store_bytes(0, image)
    return nvram


def judged(image):
    judge = FilesystemJudge(decode_superblock(image[:PAGE_SIZE], "page 0"))
    nvram = device(image)
    outcome = judge.examine(judge.recover(nvram))
    nvram.close()
    return outcome


def tree_after(image, text):
    return play(image, parse_operations(text)).trees[-1]


def test_the_image_of_the_lab_is_always_the_same(image):
    assert base_image() == image


def test_a_sound_image(image):
    outcome = judged(image)
    assert outcome.problems == ()
    assert outcome.tree is not None
    assert outcome.tree["/B/foo"] == outcome.tree["/A/foo"]
    assert outcome.tree["/A/foo"].xattrs == ((b"user.a", b"attribute"),)


def test_what_a_crash_may_not_leave_is_told(image):
    """A byte of a page of a directory, as if a store had been lost."""
    damaged = bytearray(image)
    name = image.index(b"XDIR") + 40
    damaged[name] ^= 1
    outcome = judged(damaged)
    assert outcome.problems
    assert "damaged directory page" in " ".join(outcome.problems)


def test_an_image_that_cannot_be_recovered(image):
    torn = bytearray(image)
    torn[PAGE_SIZE + 8] ^= 1
    judge = FilesystemJudge(decode_superblock(image[:PAGE_SIZE], "page 0"))
    nvram = device(torn)
    with pytest.raises(FormatError, match="damaged state record"):
        judge.recover(nvram)
    nvram.close()


def test_pages_that_nobody_reads_are_the_journal_and_free_ones(image):
    disk = decode_superblock(image[:PAGE_SIZE], "page 0")
    judge = FilesystemJudge(disk)
    nvram = device(image)
    mounted = judge.recover(nvram)
    unread = judge.unread_pages(mounted)
    judge.abandon(mounted)
    assert {disk.journal_block, disk.journal_block + disk.nr_journal_pages - 1} <= unread
    assert not unread & {0, 1, disk.bitmap_block, disk.gdt_block, disk.nr_pages - 1}
    former = [b for b in range(disk.nr_pages) if image[b << PAGE_SHIFT :].startswith(b"formerly")]
    assert set(former) < unread
    nvram.close()


@pytest.mark.parametrize(
    ("text", "path", "fields"),
    [
        ("create /new 4755", "/new", {"mode": stat.S_IFREG | 0o4755, "nlink": 1}),
        ("mkdir /E 700", "/E", {"mode": stat.S_IFDIR | 0o700, "nlink": 2}),
        ("mknod /A/null 20666 259", "/A/null", {"mode": stat.S_IFCHR | 0o666, "rdev": 259}),
        ("symlink /s A/foo", "/s", {"content": b"A/foo"}),
        ("link /foo /l", "/l", {"nlink": 2}),
        ("rename /foo /l", "/l", {"size_bytes": 9000}),
        ("rename /foo /A exchange", "/foo", {"nlink": 3}),
        ("write /A/bar 0 20", "/A/bar", {"content": written_bytes(0, 20)}),
        ("append /A/bar 5; append /A/bar 5", "/A/bar", {"size_bytes": 10}),
        ("truncate /foo 100", "/foo", {"content": b"o" * 100}),
        ("chmod /foo 400", "/foo", {"mode": stat.S_IFREG | 0o400}),
        ("chown /foo 7 8", "/foo", {"uid": 7, "gid": 8}),
        ("utimens /foo 1 2", "/foo", {"mtime_ns": 2}),
        ("setxattr /foo user.x 9", "/foo", {"xattrs": ((b"user.x", written_bytes(0, 9)),)}),
        ("removexattr /A/foo user.a", "/A/foo", {"xattrs": ()}),
        ("promote 3; write /foo 0 8; demote 4; fsync /foo", "/foo", {"size_bytes": 9000}),
    ],
)
def test_operations_do_what_they_say(image, text, path, fields):
    node = tree_after(image, text)[path]
    assert {name: getattr(node, name) for name in fields} == fields


@pytest.mark.parametrize("text", ["unlink /foo", "rename /foo /A/foo; unlink /A/foo"])
def test_names_go(image, text):
    tree = tree_after(image, text)
    assert "/foo" not in tree


def test_what_is_held_lives_on_without_a_name(image):
    recording = play(image, parse_operations("hold /foo; unlink /foo; append /foo 5; drop /foo"))
    assert "/foo" not in recording.trees[-1]
    assert recording.complaints == ()
    stores = [event for event in recording.events if not isinstance(event, Mark | Fence)]
    assert stores


def test_an_operation_that_fails_changes_nothing(image):
    recording = play(image, parse_operations("rmdir /A; unlink /gone; rename /A /A/C/x"))
    assert all(tree == recording.trees[0] for tree in recording.trees)
    assert recording.complaints == ()
