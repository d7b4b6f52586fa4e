from xipfs.crash.persistence import Persistence, tear
from xipfs.crash.recorder import Fence, Flush, Mark, MarkKind, Recorder, Store
from xipfs.phys.nvram import NvramDevice

OLD, A, B, C = (letter * 64 for letter in (b"o", b"a", b"b", b"c"))


def played(*events):
    medium = Persistence(OLD * 4)
    for event in events:
        medium.apply(event)
    return medium


def test_a_store_is_not_durable():
    medium = played(Store(64, A))
    assert medium.durable == OLD * 4
    assert medium.in_flight[1].values == [A]
    assert medium.newest() == OLD + A + OLD * 2


def test_a_flush_alone_makes_nothing_durable():
    assert played(Store(64, A), Flush(64, 64)).durable == OLD * 4


def test_a_fence_alone_makes_nothing_durable():
    medium = played(Store(64, A), Fence())
    assert medium.durable == OLD * 4
    assert medium.in_flight[1].values == [A]


def test_flushed_lines_are_durable_after_the_fence():
    medium = played(Store(0, A + B), Flush(0, 1), Fence())
    assert medium.durable == A + OLD * 3
    assert list(medium.in_flight) == [1]
    assert medium.order == [(1, 0)]


def test_what_is_stored_after_the_flush_stays_in_flight():
    """The line may have any value from the flushed one on, but not an older one."""
    medium = played(Store(0, A), Store(0, B), Flush(0, 64), Store(0, C), Fence())
    assert medium.durable[:64] == B
    assert medium.in_flight[0].values == [C]
    assert medium.order == [(0, 0)]


def test_a_flush_of_a_part_is_of_the_whole_line():
    medium = played(Store(0, b"x"), Store(63, b"y"), Flush(63, 1), Fence())
    assert medium.durable[:64] == b"x" + b"o" * 62 + b"y"


def test_a_store_over_a_border_is_two():
    medium = played(Store(60, b"12345678"))
    assert medium.in_flight[0].values == [b"o" * 60 + b"1234"]
    assert medium.in_flight[1].values == [b"5678" + b"o" * 60]
    assert medium.order == [(0, 0), (1, 0)]


def test_a_store_of_what_is_there_changes_nothing():
    assert not played(Store(0, OLD)).in_flight


def test_apply_tells_which_lines_became_durable():
    medium = played(Store(0, A * 3), Flush(64, 128))
    assert medium.apply(Fence()) == [1, 2]
    assert medium.apply(Mark(MarkKind.END, 0)) == []


def test_tear():
    assert tear(OLD, A, 0b10000001) == b"a" * 8 + b"o" * 48 + b"a" * 8


def test_the_recorder_logs_what_reaches_the_device():
    nvram = NvramDevice.scratch(4096)
    recorder = Recorder(nvram)
    recorder.mark(MarkKind.BEGIN, 0)
    nvram.store_bytes(8, b"hello")
    nvram.flush(8, 5)
    nvram.fence()
    nvram.store_bytes(8, b"world")
    recorder.mark(MarkKind.END, 0)
    assert recorder.events == [
        Mark(MarkKind.BEGIN, 0),
        Store(8, b"hello"),
        Flush(8, 5),
        Fence(),
        Store(8, b"world"),
        Mark(MarkKind.END, 0),
    ]
    nvram.observer = None
    nvram.close()
