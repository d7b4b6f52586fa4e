"""Steering by control requests: policies are swapped, pages moved by hand, maps drawn."""

import pytest

from xipfs.errors import ControlError, PolicyError, StaleError
from xipfs.fuse.steering import Steering
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import PAGE_SIZE


@pytest.fixture
def steering(mount):
    return Steering(mount)


@pytest.fixture
def ask(steering):
    async def ask(request: str, **arguments: object):
        return await steering.requests[request](arguments)

    return ask


@pytest.fixture
def big(mount):
    """The inode of a file of 8 pages."""
    return mount.dispatch(mount.operations.lookup, INO_ROOT, b"big")


@pytest.fixture
def sparse(mount):
    """The inode of a file of 8 pages of which only 1 and 5 are written."""
    return mount.dispatch(mount.operations.lookup, INO_ROOT, b"sparse")


def read(mount, inode, pgoff, times=1):
    fh = mount.dispatch(mount.operations.open, inode.ino, 0)
    for _ in range(times):
        mount.dispatch(mount.operations.read, fh, pgoff * PAGE_SIZE, PAGE_SIZE)


async def test_another_policy_decides(ask, mount, big):
    changed = []
    mount.policy_changed = lambda: changed.append(1)
    assert await ask("policy", policy="second_chance:history_ratio=4") == {
        "policy": "second_chance:history_ratio=4"
    }
    assert changed
    for _ in range(3):
        read(mount, big, 0)
        mount.run_epoch()
    facts = mount.statistics()
    assert facts["policy"] == "second_chance:history_ratio=4"
    assert facts["policies"]["second_chance:history_ratio=4"]["nr_promoted"] == 1
    assert facts["policies"]["none"]["epochs"] == 0


async def test_an_unknown_policy_changes_nothing(ask, mount):
    with pytest.raises(PolicyError, match=r"no policy 'nonsense': there are .*none"):
        await ask("policy", policy="nonsense")
    with pytest.raises(ControlError):
        await ask("policy", policy=3)
    assert mount.statistics()["policy"] == "none"


async def test_promote_and_demote(ask, mount, big):
    done = await ask("promote", ino=big.ino, start=PAGE_SIZE, end=3 * PAGE_SIZE + 1)
    assert done == {"migrated": 3, "resident": 0, "failed": 0}
    assert sorted(big.mapping.i_pages) == [1, 2, 3]
    done = await ask("demote", ino=big.ino, start=2 * PAGE_SIZE)
    assert done == {"migrated": 2, "resident": 4, "failed": 0}
    assert sorted(big.mapping.i_pages) == [1]
    assert mount.machine.vmstat.xip_shadow_hit == 2


async def test_more_than_there_are_frames(ask, big, sparse):
    """Eight frames: the whole of one file takes them, the other's pages get the coldest."""
    await ask("promote", ino=big.ino)
    assert len(big.mapping.i_pages) == 8
    done = await ask("promote", ino=sparse.ino)
    assert (done["migrated"], done["failed"]) == (2, 6)


async def test_pinned_pages_are_not_the_policys(ask, mount, big):
    await ask("pin", ino=big.ino, end=4 * PAGE_SIZE)
    read(mount, big, 1)
    read(mount, big, 6)
    tiers = mount.tiering.sample()
    assert tiers.tiers.nr_ram_frames == 4
    assert len(tiers.tiers.resident) == 0
    assert [page & 0xFF for page in tiers.batch.page.tolist()] == [6]
    assert (await ask("demote", ino=big.ino))["failed"] == 4
    assert await ask("unpin", ino=big.ino, start=PAGE_SIZE) == {"unpinned": 3}
    assert mount.statistics()["pinned_pages"] == 1
    assert (await ask("demote", ino=big.ino))["failed"] == 1


async def test_another_size(ask, mount, big):
    await ask("promote", ino=big.ino)
    read(mount, big, 3, times=5)
    await ask("pin", ino=big.ino, start=6 * PAGE_SIZE)
    assert await ask("resize", ram_bytes=3 * PAGE_SIZE) == {"ram_bytes": 3 * PAGE_SIZE}
    assert sorted(big.mapping.i_pages) == [3, 6, 7], "the pinned, and the hottest of the others"
    assert await ask("resize", ram_bytes=PAGE_SIZE) == {"ram_bytes": 2 * PAGE_SIZE}
    assert await ask("resize", ram_bytes=600 * PAGE_SIZE) == {"ram_bytes": 600 * PAGE_SIZE}
    facts = mount.statistics()
    assert (facts["ram_frames"], facts["ram_free_frames"]) == (600, 598)
    assert facts["vmstat_complaints"] == []
    with pytest.raises(ControlError, match=r"at most .* what this machine has"):
        await ask("resize", ram_bytes=1 << 60)


async def test_the_map_of_a_file(ask, mount, big, sparse):
    read(mount, big, 2, times=3)
    await ask("pin", ino=big.ino, start=PAGE_SIZE, end=2 * PAGE_SIZE)
    await ask("promote", ino=big.ino, start=2 * PAGE_SIZE, end=3 * PAGE_SIZE)
    facts = await ask("tier_map", ino=big.ino)
    assert (facts["pages"], facts["next"]) == (8, None)
    assert facts["runs"] == [
        (0, 1, "nvram", False, 0),
        (1, 1, "ram", True, 0),
        (2, 1, "ram", False, 3),
        (3, 5, "nvram", False, 0),
    ]
    facts = await ask("tier_map", ino=sparse.ino)
    assert [run[2] for run in facts["runs"]] == ["hole", "nvram", "hole", "nvram", "hole"]


async def test_a_map_in_parts(ask, big, monkeypatch):
    monkeypatch.setattr("xipfs.fuse.steering._NR_MAP_PAGES", 3)
    starts, start = [], 0
    while start is not None:
        facts = await ask("tier_map", ino=big.ino, start=start)
        starts.append([run[:2] for run in facts["runs"]])
        start = facts["next"]
    assert starts == [[(0, 3)], [(3, 3)], [(6, 2)]]
    assert (await ask("tier_map", ino=big.ino, start=99))["runs"] == []


@pytest.mark.parametrize(
    "arguments",
    [{}, {"ino": "7"}, {"ino": -1}, {"ino": 1.5}, {"ino": True}, {"ino": 5, "start": -1}],
)
async def test_nonsense(ask, arguments):
    for request in ("promote", "demote", "pin", "unpin", "tier_map"):
        with pytest.raises((ControlError, StaleError)):
            await ask(request, **arguments)


async def test_what_is_no_file(ask, mount):
    directory = mount.dispatch(mount.operations.lookup, INO_ROOT, b"dir")
    with pytest.raises(StaleError, match="no regular file"):
        await ask("promote", ino=directory.ino)
