"""`-o`: every option, and one line for every mistake."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xipfs.errors import MountError
from xipfs.fuse.options import OPTION_HELP, CacheMode, MountOptions, Promoted, Sync, parse_options
from xipfs.phys.cost import parse_cost
from xipfs.policy.registry import POLICY_DEFAULT
from xipfs.units import PAGE_SIZE

DEFAULTS = MountOptions(
    ro=False,
    rw=False,
    sync=Sync.DAEMON,
    allow_other=False,
    suid=False,
    dev=False,
    cache=CacheMode.SAMPLED,
    ram_bytes=64 << 20,
    policy=POLICY_DEFAULT,
    epoch_ms=1000,
    budget_pages=4096,
    promoted=Promoted.KEEP,
    arch="generic",
    cost=parse_cost("optane"),
    inject=False,
    fsname="",
)

GOOD = {
    "ro": {"ro": True},
    "rw": {"rw": True},
    "sync": {"sync": Sync.FULL},
    "sync=full": {"sync": Sync.FULL},
    "sync=daemon": {},
    "allow_other": {"allow_other": True},
    "suid": {"suid": True},
    "dev": {"dev": True},
    "nosuid": {},
    "nodev": {},
    "noexec": {"noexec": True},
    "noexec,exec": {},
    "noatime,async": {},
    "cache=none": {"cache": CacheMode.NONE},
    "cache=sampled": {},
    "cache=full": {"cache": CacheMode.FULL},
    "ram=0": {"ram_bytes": 0},
    "ram=1M": {"ram_bytes": 1 << 20},
    "ram=4095": {"ram_bytes": 0},
    "ram=10000": {"ram_bytes": 2 * PAGE_SIZE},
    "ram=1.5GiB": {"ram_bytes": 3 << 29},
    "policy=none": {"policy": "none"},
    "policy=./my=policy.py": {"policy": "./my=policy.py"},
    "epoch=10": {"epoch_ms": 10},
    "epoch=3600000": {"epoch_ms": 3_600_000},
    "budget=1": {"budget_pages": 1},
    "rate=100M": {"rate_bytes_per_s": 100 << 20},
    "prefetch=hot.txt": {"prefetch": "hot.txt"},
    "budget=16777216": {"budget_pages": 1 << 24},
    "promoted=keep": {},
    "promoted=push": {"promoted": Promoted.PUSH},
    "promoted=drop": {"promoted": Promoted.DROP},
    "arch=generic": {},
    "arch=x86": {"arch": "x86"},
    "arch=powerpc": {"arch": "powerpc"},
    "arch=s390": {"arch": "s390"},
    "cost=optane": {},
    "cost=dcss:clients=100": {"cost": parse_cost("dcss:clients=100")},
    "inject": {"inject": True},
    "noevents": {"events": False},
    "acl": {"acl": True},
    "fsname=a thing": {"fsname": "a thing"},
    # From fstab and mount(8), without meaning here.
    "defaults,auto,noauto,user,nouser,users,nofail,_netdev,exec,noatime,relatime,dirsync": {},
    "x-systemd.automount,x-anything=3": {},
    "": {},
    ",,ro,,": {"ro": True},
}


def refusal(text: str) -> str:
    with pytest.raises(MountError) as caught:
        parse_options(text)
    message = str(caught.value)
    assert message
    assert message.isprintable(), "one line, and no control characters"
    return message


@pytest.mark.parametrize("text", GOOD)
def test_good_options(text):
    assert parse_options(text) == replace(DEFAULTS, **GOOD[text])


def test_the_defaults():
    assert MountOptions() == DEFAULTS
    assert parse_options("cache=none", replace(DEFAULTS, dev=True)).dev


def test_all_together():
    options = parse_options(
        "allow_other,suid,dev,cache=full,ram=8M,policy=none,epoch=20,budget=64,arch=x86,fsname=f"
    )
    assert options == MountOptions(
        allow_other=True,
        suid=True,
        dev=True,
        cache=CacheMode.FULL,
        ram_bytes=8 << 20,
        policy="none",
        epoch_ms=20,
        budget_pages=64,
        arch="x86",
        fsname="f",
    )


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("ro,rw", {"rw": True}),
        ("rw,ro", {"ro": True}),
        ("suid,nosuid", {}),
        ("nosuid,suid", {"suid": True}),
        ("dev,nodev,dev", {"dev": True}),
        ("ram=1M,ram=2M", {"ram_bytes": 2 << 20}),
        ("cache=none,cache=full", {"cache": CacheMode.FULL}),
    ],
)
def test_later_ones_win(text, changes):
    assert parse_options(text) == replace(DEFAULTS, **changes)


def test_every_option_has_its_help():
    """And every field of the options is reached by some option."""
    reached: set[str] = set()
    for changes in GOOD.values():
        reached |= set(changes)
    assert {field.name for field in fields(MountOptions)} - reached == set()
    tried = {option.partition("=")[0] for text in GOOD for option in text.split(",")}
    assert set(OPTION_HELP) <= tried
    assert all("\n" not in text for text in OPTION_HELP.values())


@pytest.mark.parametrize(
    "name", ["cache", "ram", "policy", "epoch", "budget", "arch", "cost", "fsname"]
)
@pytest.mark.parametrize("form", ["{}", "{}="])
def test_a_missing_value(name, form):
    message = refusal(form.format(name))
    assert message == f"option {name}: needs a value, {name}=...: {OPTION_HELP[name]}"


@pytest.mark.parametrize(
    "name", ["ro", "rw", "allow_other", "suid", "nosuid", "dev", "nodev", "exec", "inject"]
)
@pytest.mark.parametrize("form", ["{}=", "{}=1"])
def test_a_value_too_many(name, form):
    assert refusal(form.format(name)) == f"option {name}: takes no value"


@pytest.mark.parametrize(
    "text", ["cash=none", "auto=1", "Ro", "ro ", "x", "allow-other", "=", "=1"]
)
def test_an_unknown_option(text):
    message = refusal(text)
    assert message.startswith(f"unknown option {text!r}: there are ro, rw, sync, allow_other, ")
    assert all(name in message for name in OPTION_HELP)


BAD_VALUES = {
    "sync=often": "sync='often': one of daemon, full",
    "cache=all": "cache='all': one of none, sampled, full",
    "cache=None": "cache='None': one of none, sampled, full",
    "ram=much": "ram: not a size: 'much' (use a number with K, M, G, T or P)",
    "ram=-1": "ram: not a whole, positive number of bytes: '-1'",
    "ram=0.3": "ram: not a whole, positive number of bytes: '0.3'",
    "ram=1e9": "ram: not a size: '1e9' (use a number with K, M, G, T or P)",
    "epoch=9": "epoch='9': a number from 10 to 3600000",
    "epoch=3600001": "epoch='3600001': a number from 10 to 3600000",
    "epoch=ten": "epoch='ten': a number from 10 to 3600000",
    "epoch=-20": "epoch='-20': a number from 10 to 3600000",
    "epoch=1.5": "epoch='1.5': a number from 10 to 3600000",
    "rate=fast": "rate: not a size: 'fast' (use a number with K, M, G, T or P)",
    "budget=0": "budget='0': a number from 1 to 16777216",
    "budget=16777217": "budget='16777217': a number from 1 to 16777216",
    "arch=vax": "arch='vax': one of generic, powerpc, s390, x86",
    "cost=flash": "cost='flash': one of optane, cxl, pcm, nor, dcss, dram, perhaps with :clients=N",
    "cost=:clients=2": "cost=':clients=2': one of optane, cxl, pcm, nor, dcss, dram, "
    "perhaps with :clients=N",
    "cost=cxl:": "cost='cxl:': cxl:clients=N, N from 1 to 1000000",
    "cost=cxl:clients=0": "cost='cxl:clients=0': cxl:clients=N, N from 1 to 1000000",
    "cost=cxl:clients=1000001": "cost='cxl:clients=1000001': cxl:clients=N, N from 1 to 1000000",
    "cost=cxl:guests=3": "cost='cxl:guests=3': cxl:clients=N, N from 1 to 1000000",
    "cost=cxl:clients=-1": "cost='cxl:clients=-1': cxl:clients=N, N from 1 to 1000000",
}


@pytest.mark.parametrize("text", BAD_VALUES)
def test_a_bad_value(text):
    assert refusal(text) == BAD_VALUES[text]


def test_a_number_longer_than_python_likes():
    """int() refuses 5000 digits by a ValueError of its own, which nobody caught."""
    assert refusal("epoch=" + "9" * 5000).endswith(": a number from 10 to 3600000")
    assert "not a size" in refusal("ram=" + "9" * 5000)
    assert refusal("cost=nor:clients=" + "9" * 5000).endswith("N from 1 to 1000000")


option_texts = st.one_of(
    st.text(max_size=8),
    st.builds(
        lambda name, value: f"{name}={value}",
        st.sampled_from([*OPTION_HELP, "x-y", "auto"]),
        st.text(max_size=6),
    ),
)


@given(st.lists(option_texts, max_size=3))
def test_any_text_is_understood_or_refused_in_one_line(texts):
    refused = ""
    options = DEFAULTS
    try:
        options = parse_options(",".join(texts))
    except MountError as exc:
        refused = str(exc)
    assert refused.isprintable()
    assert options.ram_bytes >= 0
    assert options.ram_bytes % PAGE_SIZE == 0
    assert 10 <= options.epoch_ms <= 3_600_000
    assert 1 <= options.budget_pages <= 1 << 24
