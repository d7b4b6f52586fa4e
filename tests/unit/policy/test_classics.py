"""The classic caches against their papers, access by access.

For each an oracle stands here: the paper's algorithm as plainly as lists allow, slow, with the
paper's names. A policy has to hold the same pages after every access, in caches of one to eight
pages, where every corner is met, and across changes of size. Traces by hand say it once more.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xipfs.errors import PolicyError
from xipfs.policy.registry import load_policy


class Lru:
    """Least recently used first."""

    def __init__(self, c):
        self.c = c
        self.queue = []

    def access(self, x):
        if x in self.queue:
            self.queue.remove(x)
        elif len(self.queue) == self.c:
            self.queue.pop(0)
        self.queue.append(x)

    def resize(self, c):
        self.c = c
        del self.queue[: max(len(self.queue) - c, 0)]

    def cached(self):
        return self.queue


class Clock:
    """A ring of [page, bit], and the place of the hand in it."""

    def __init__(self, c):
        self.c = c
        self.ring = []
        self.hand = 0

    def access(self, x):
        for entry in self.ring:
            if entry[0] == x:
                entry[1] = 1
                return
        if len(self.ring) == self.c:
            self.replace()
        self.ring.insert(self.hand, [x, 0])
        self.hand = (self.hand + 1) % len(self.ring)

    def replace(self):
        while self.ring[self.hand][1]:
            self.ring[self.hand][1] = 0
            self.hand = (self.hand + 1) % len(self.ring)
        del self.ring[self.hand]
        if self.hand == len(self.ring):
            self.hand = 0

    def resize(self, c):
        self.c = c
        while len(self.ring) > c:
            self.replace()

    def cached(self):
        return [page for page, _ in self.ring]


class Sieve:
    """Algorithm 1: the head of the queue is at 0; the hand is an entry, or None."""

    def __init__(self, c):
        self.c = c
        self.queue = []
        self.hand = None

    def access(self, x):
        for entry in self.queue:
            if entry["page"] == x:
                entry["visited"] = True
                return
        if len(self.queue) == self.c:
            self.replace()
        self.queue.insert(0, {"page": x, "visited": False})

    def previous(self, o):
        """Return the entry beside o that is nearer to the head."""
        place = next(i for i, entry in enumerate(self.queue) if entry is o)
        return self.queue[place - 1] if place else None

    def replace(self):
        o = self.hand or self.queue[-1]
        while o["visited"]:
            o["visited"] = False
            o = self.previous(o) or self.queue[-1]
        self.hand = self.previous(o)
        self.queue = [entry for entry in self.queue if entry is not o]

    def resize(self, c):
        self.c = c
        while len(self.queue) > c:
            self.replace()

    def cached(self):
        return [entry["page"] for entry in self.queue]


class TwoQ:
    """The full version; the head of each queue is at 0."""

    def __init__(self, c):
        self.a1in, self.a1out, self.am = [], [], []
        self.resize(c)

    def access(self, x):
        if x in self.am:
            self.am.remove(x)
            self.am.insert(0, x)
        elif x in self.a1out:
            self.a1out.remove(x)
            self.reclaim()
            self.am.insert(0, x)
        elif x not in self.a1in:
            self.reclaim()
            self.a1in.insert(0, x)

    def reclaim(self):
        if len(self.a1in) + len(self.am) < self.c:
            return
        if len(self.a1in) > self.kin or not self.am:
            self.a1out.insert(0, self.a1in.pop())
            if len(self.a1out) > self.kout:
                self.a1out.pop()
        else:
            self.am.pop()

    def resize(self, c):
        self.kin, self.kout = c // 4, c // 2
        self.c = c + 1
        while len(self.a1in) + len(self.am) > c:
            self.reclaim()
        self.c = c
        del self.a1out[self.kout :]

    def cached(self):
        return self.a1in + self.am


class Arc:
    """Figure 4; the least recently used of each queue is at 0."""

    def __init__(self, c):
        self.c = c
        self.t1, self.t2, self.b1, self.b2 = [], [], [], []
        self.p = 0.0

    def access(self, x):
        full = len(self.t1) + len(self.t2) == self.c
        if x in self.t1 + self.t2:
            (self.t1 if x in self.t1 else self.t2).remove(x)
            self.t2.append(x)
        elif x in self.b1:
            delta = 1 if len(self.b1) >= len(self.b2) else len(self.b2) / len(self.b1)
            self.p = min(self.p + delta, self.c)
            if full:
                self.replace(x)
            self.b1.remove(x)
            self.t2.append(x)
        elif x in self.b2:
            delta = 1 if len(self.b2) >= len(self.b1) else len(self.b1) / len(self.b2)
            self.p = max(self.p - delta, 0)
            if full:
                self.replace(x)
            self.b2.remove(x)
            self.t2.append(x)
        else:
            if full and len(self.t1) + len(self.b1) == self.c:
                if len(self.t1) < self.c:
                    self.b1.pop(0)
                    self.replace(x)
                else:
                    self.t1.pop(0)
            elif full:
                if len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2) == 2 * self.c:
                    self.b2.pop(0)
                self.replace(x)
            self.t1.append(x)

    def replace(self, x):
        too_long = len(self.t1) > self.p or (x in self.b2 and len(self.t1) == self.p)
        if self.t1 and (too_long or not self.t2):
            self.b1.append(self.t1.pop(0))
        else:
            self.b2.append(self.t2.pop(0))

    def resize(self, c):
        self.c = c
        self.p = min(self.p, c)
        while len(self.t1) + len(self.t2) > c:
            self.replace(None)
        del self.b1[: max(len(self.t1) + len(self.b1) - c, 0)]
        nr_over = len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2) - 2 * c
        del self.b2[: max(nr_over, 0)]

    def cached(self):
        return self.t1 + self.t2


class S3Fifo:
    """Algorithm 1 with the warm-up of the authors' code; the tail of each queue is at 0."""

    def __init__(self, c):
        self.s, self.m, self.g = [], [], []
        self.freq = {}
        self.warm = False
        self.resize(c)

    def access(self, x):
        if x in self.s + self.m:
            self.freq[x] = min(self.freq[x] + 1, 3)
            return
        known = x in self.g
        if known:
            self.g.remove(x)
        while len(self.s) + len(self.m) == self.c:
            self.replace()
        if known or (not self.warm and len(self.s) >= self.s_size):
            self.m.append(x)
        else:
            self.s.append(x)
        self.freq[x] = 0

    def replace(self):
        self.warm = True
        if len(self.m) > self.c - self.s_size or not self.s:
            self.replace_m()
        else:
            self.replace_s()

    def replace_s(self):
        while self.s:
            t = self.s.pop(0)
            if self.freq[t] <= 1:
                self.g.append(t)
                del self.g[: max(len(self.g) - self.g_size, 0)]
                return
            self.m.append(t)
            self.freq[t] = 0

    def replace_m(self):
        while True:
            t = self.m.pop(0)
            if self.freq[t] == 0:
                return
            self.m.append(t)
            self.freq[t] -= 1

    def resize(self, c):
        self.c, self.s_size, self.g_size = c, min(max(c // 10, 1), c), c * 9 // 10
        while len(self.s) + len(self.m) > c:
            self.replace()
        del self.g[: max(len(self.g) - self.g_size, 0)]

    def cached(self):
        return self.s + self.m


class Lfu:
    """[count, page], in the order of last use; of the least count the first is replaced."""

    def __init__(self, c, halve_every=10):
        self.halve_every = halve_every
        self.entries = []
        self.resize(c)

    def access(self, x):
        count = 0
        for entry in self.entries:
            if entry[1] == x:
                count = entry[0]
                self.entries.remove(entry)
                break
        else:
            if len(self.entries) == self.c:
                self.replace()
        self.entries.append([count + 1, x])
        self.nr_accesses += 1
        if self.nr_accesses == self.halve_every * self.c:
            self.nr_accesses = 0
            self.entries.sort(key=lambda entry: entry[0])
            for entry in self.entries:
                entry[0] = -(-entry[0] // 2)

    def replace(self):
        self.entries.remove(min(self.entries, key=lambda entry: entry[0]))

    def resize(self, c):
        self.c = c
        self.nr_accesses = 0
        while len(self.entries) > c:
            self.replace()

    def cached(self):
        return [page for _, page in self.entries]


ORACLES = {
    "lru": Lru,
    "clock": Clock,
    "sieve": Sieve,
    "2q": TwoQ,
    "arc": Arc,
    "s3fifo": S3Fifo,
    "lfu": Lfu,
    "lfu:halve_every=1": lambda c: Lfu(c, halve_every=1),
    "lfu:halve_every=0": lambda c: Lfu(c, halve_every=0),
}

sizes = st.integers(1, 8)
traces = st.builds(
    lambda pages, nr_pages: [page % nr_pages for page in pages],
    st.binary(max_size=100),
    st.integers(2, 16),
)


def run(name, capacity, trace):
    """Return the policy after *trace*, and for each access "h" or "m"."""
    policy = load_policy(name)
    policy.resize(capacity)
    seen = ""
    for page in trace:
        seen += "h" if page in set(policy.pages()) else "m"
        policy.access(page)
    return policy, seen


@pytest.mark.parametrize("name", ORACLES)
@given(parts=st.lists(st.tuples(sizes, traces), max_size=3))
def test_as_in_the_paper(name, parts):
    """Parts of a trace, each with a size of its own: the same pages after every access."""
    policy, oracle = load_policy(name), ORACLES[name](parts[0][0] if parts else 1)
    for capacity, trace in parts:
        policy.resize(capacity)
        oracle.resize(capacity)
        assert sorted(policy.pages()) == sorted(oracle.cached())
        for page in trace:
            policy.access(page)
            oracle.access(page)
            assert sorted(policy.pages()) == sorted(oracle.cached())


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=8)
@given(capacity=st.integers(9, 40), seed=st.integers(0, 1000))
def test_as_in_the_paper_in_larger_caches(name, capacity, seed):
    """Loops, scans and a skewed choice of pages, in caches where every share is some pages."""
    policy, oracle = load_policy(name), ORACLES[name](capacity)
    policy.resize(capacity)
    state = seed
    for step in range(500):
        state = (state * 1103515245 + 12345) % (1 << 31)
        skewed = (state >> 8) % (1 + (state >> 16) % (3 * capacity))
        page = step % (2 * capacity) + 500 if step % 200 > 150 else skewed
        policy.access(page)
        oracle.access(page)
        assert sorted(policy.pages()) == sorted(oracle.cached())


@pytest.mark.parametrize(
    ("name", "capacity", "trace", "hits", "pages"),
    [
        ("lru", 3, "abcadab", "mmmhmhm", "bad"),
        ("clock", 3, "abcadab", "mmmhmhm", "bda"),
        ("clock", 3, "abcade", "mmmhmm", "eda"),
        ("sieve", 3, "abcade", "mmmhmm", "ade"),
        ("sieve", 3, "abcadebf", "mmmhmmmm", "abf"),
        ("2q", 4, "abcdeaf", "mmmmmmm", "afed"),
        ("2q", 4, "aaaabcde", "mhhhmmmm", "edcb"),
        ("arc", 2, "aabcb", "mhmmm", "bc"),
        ("arc", 2, "abab", "mmhh", "ba"),
        ("s3fifo", 10, "abcdefghijk", "mmmmmmmmmmm", "bcdefghijk"),
        ("s3fifo", 10, "aaabcdefghijk", "mhhmmmmmmmmmm", "acdefghijk"),
        ("s3fifo", 10, "abcdefghijka", "mmmmmmmmmmmm", "abcdefghij"),
        ("lfu", 3, "aabbcda", "mhmhmmh", "abd"),
        ("lfu:halve_every=2", 2, "aaabcbd", "mhhmmmm", "ad"),
    ],
)
def test_by_hand(name, capacity, trace, hits, pages):
    policy, seen = run(name, capacity, map(ord, trace))
    assert seen == hits
    assert sorted(map(chr, policy.pages())) == sorted(pages)


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=25)
@given(capacity=sizes, trace=traces)
def test_each_page_once_and_one_fewer(name, capacity, trace):
    policy, _ = run(name, capacity, trace)
    before = list(policy.pages())
    assert len(set(before)) == len(before) == min(len(set(trace)), capacity)
    if before:
        policy.evict()
        after = list(policy.pages())
        assert len(after) == len(before) - 1
        assert set(after) < set(before)


@pytest.mark.parametrize("name", ORACLES)
def test_memory_is_bounded_by_the_frames(name):
    """Not by the pages ever seen: what is remembered of pages that left is cut as well."""
    policy, _ = run(name, 50, [])
    for page in range(20_000):
        policy.access(page % 7 if page % 3 else page)
    nr_kept = sum(len(part) for part in vars(policy).values() if hasattr(part, "__len__"))
    assert nr_kept <= 4 * 50


@pytest.mark.parametrize("name", ORACLES)
def test_no_frames_and_back(name):
    policy, _ = run(name, 4, range(10))
    policy.resize(0)
    assert not list(policy.pages())
    policy.resize(4)
    for page in range(4):
        policy.access(page)
    assert set(policy.pages()) == set(range(4))


def test_lfu_forgets():
    """A page used often, long ago, leaves; without halving it would stay."""
    trace = [1] * 40 + [2, 3, 4, 2, 3, 4] * 40
    assert 1 not in run("lfu", 3, trace)[0].pages()
    assert 1 in run("lfu:halve_every=0", 3, trace)[0].pages()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2q:kin=1.5", "kin is 1.5: give a share of the RAM tier, 0 to 1"),
        ("2q:kout=-1", "kout is -1.0: give a share of the RAM tier, 0 to 1"),
        ("s3fifo:small_share=nan", "small_share is nan: give a share of the RAM tier, 0 to 1"),
        ("s3fifo:ghost_share=2", "ghost_share is 2.0: give a share of the RAM tier, 0 to 1"),
        ("lfu:halve_every=-1", "halve_every is -1: give a number of accesses, or 0"),
    ],
)
def test_bad_parameters(text, message):
    with pytest.raises(PolicyError) as caught:
        load_policy(text)
    assert str(caught.value) == f"{text.partition(':')[0]}: {message}"


@pytest.mark.parametrize("name", ["2q:kin=1:kout=0", "2q:kin=0", "s3fifo:small_share=1"])
def test_parameters_at_their_ends(name):
    policy, _ = run(name, 3, [1, 2, 3, 4, 1, 2, 5, 6, 1, 1, 1, 7, 8, 9])
    assert len(set(policy.pages())) == 3
