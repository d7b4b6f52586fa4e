"""`static` keeps a fixed set of pages; `random` chooses blindly. Neither learns anything."""

import numpy as np
import pytest

from tests.kit.policy import PolicyWorld, make_batch, make_tiers
from xipfs.errors import PolicyError
from xipfs.policy.contract import page_id
from xipfs.policy.registry import load_policy


def world(text, **settings):
    return PolicyWorld(load_policy(text), **settings)


def test_the_first_pages_for_good():
    tier = world("static", nr_ram_frames=3)
    tier.epoch([7, 7, 2])
    assert tier.resident == {2, 7}
    tier.epoch([9, 4, 2])
    assert tier.resident == {2, 7, 9}
    for _ in range(4):
        assert not len(tier.epoch([4] * 50).promote)


def test_the_first_pages_of_an_epoch_in_their_order():
    assert world("static", nr_ram_frames=2).epoch([9, 1, 9, 5]).promote.tolist() == [9, 1]


def test_another_size():
    """More frames take more pages; with fewer, the last that were chosen leave."""
    tier = world("static", nr_ram_frames=2)
    tier.epoch([1, 2, 3])
    tier.nr_ram_frames = 4
    tier.epoch([5, 6])
    assert tier.resident == {1, 2, 5, 6}
    tier.nr_ram_frames, tier.resident = 2, {5, 6}
    tier.epoch([])
    assert tier.resident == {1, 2}


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "hot.txt"
    path.write_text("# file  page\n2 5\n\n1 0   # twice\n2 5\n3 4294967295\n")
    return path


def test_a_profile(profile):
    """Its pages, the first that fit, once they are read; and none but these."""
    tier = world(f"static:profile={profile}", nr_ram_frames=2)
    tier.epoch([page_id(1, 0), page_id(9, 9)])
    assert tier.resident == {page_id(1, 0)}
    tier.epoch([page_id(3, (1 << 32) - 1)])
    assert tier.resident == {page_id(1, 0)}
    tier.nr_ram_frames = 3
    tier.epoch([page_id(2, 5)])
    assert tier.resident == {page_id(1, 0), page_id(2, 5), page_id(3, (1 << 32) - 1)}


def test_an_empty_profile_is_one(tmp_path):
    (tmp_path / "none.txt").write_text("# nothing\n")
    tier = world(f"static:profile={tmp_path}/none.txt")
    tier.epoch([1, 2, 3])
    assert not tier.resident


@pytest.mark.parametrize("line", ["12", "1 2 3", "a 1", "-1 0", "1 4294967296", "2147483648 0"])
def test_no_page(tmp_path, line):
    path = tmp_path / "bad.txt"
    path.write_text(f"1 1\n{line}\n")
    with pytest.raises(PolicyError) as caught:
        load_policy(f"static:profile={path}")
    assert str(caught.value) == (
        f"static: profile {path}: line 2: {line!r} is no page: "
        "give the number of a file and an offset in pages, 12 0"
    )


def test_no_profile(tmp_path):
    path = tmp_path / "absent.txt"
    with pytest.raises(PolicyError) as caught:
        load_policy(f"static:profile={path}")
    assert str(caught.value) == f"static: profile {path}: No such file or directory"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="is no text"):
        load_policy(f"static:profile={path}")


def test_random_is_by_its_seed():
    def moves(text):
        tier = world(text, nr_ram_frames=8)
        return [tier.epoch(range(40)).promote.tolist() for _ in range(5)]

    assert moves("random") == moves("random:seed=1") != moves("random:seed=2")


def test_random_chooses_any():
    """Of the pages read, each is promoted at some time; of those in RAM, each leaves."""
    policy = load_policy("random")
    tiers = make_tiers(nr_ram_frames=4, budget_pages=2, resident=[1, 2, 3, 4])
    plans = [policy.decide(make_batch([1, 5, 6, 7], [1]), tiers) for _ in range(100)]
    assert set(np.concatenate([plan.promote for plan in plans]).tolist()) == {5, 6, 7}
    assert set(np.concatenate([plan.demote for plan in plans]).tolist()) == {1, 2, 3, 4}


def test_random_refuses_no_seed():
    with pytest.raises(PolicyError, match=r"^random: seed is -1: give 0 or more$"):
        load_policy("random:seed=-1")
