"""Policies by name and from a user's file; every mistake in one is one line that says where."""

import pytest

from xipfs.errors import PolicyError
from xipfs.policy import none, second_chance
from xipfs.policy.registry import (
    POLICY_DEFAULT,
    load_policy,
    policy_names,
    policy_parameters,
)

GOOD = """\
import numpy as np

from xipfs.policy import Batch, Plan, Tiers


class Policy:
    def decide(self, batch: Batch, tiers: Tiers) -> Plan:
        return Plan(promote=np.setdiff1d(batch.page, tiers.resident)[: tiers.nr_free_frames])
"""


@pytest.fixture
def refusal(tmp_path):
    """refusal(source) -> the message for a policy file with this in it, path and all."""

    def refusal(source: str | bytes, name="mine.py") -> str:
        path = tmp_path / name
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
        with pytest.raises(PolicyError) as caught:
            load_policy(str(path))
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return message.removeprefix(f"{path}: ")

    return refusal


def test_by_name():
    assert policy_names() == sorted(policy_names())
    assert POLICY_DEFAULT in policy_names()
    assert {"contract", "pageset", "registry", "__init__"}.isdisjoint(policy_names())
    assert isinstance(load_policy("none"), none.Policy)
    assert isinstance(load_policy("second_chance"), second_chance.Policy)


def test_every_call_makes_a_new_one():
    assert load_policy("second_chance") is not load_policy("second_chance")


def test_an_unknown_name_is_answered_with_all_there_are():
    with pytest.raises(
        PolicyError, match=r"no policy 'mru': there are 2q, .*none.*, .*second_chance.*mine"
    ):
        load_policy("mru")


@pytest.mark.parametrize("name", ["contract", "pageset", "registry", "__init__", ""])
def test_not_every_module_is_a_policy(name):
    with pytest.raises(PolicyError, match="no policy"):
        load_policy(name)


def test_from_a_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "./mine.py", str(tmp_path / "mine.py")):
        assert callable(load_policy(name).decide)


def test_the_name_of_the_file_does_not_matter(tmp_path):
    """A file called like one of ours, or like no module can be called, is as good as any."""
    for name in ("none.py", "numpy.py", "my policy-2.py", "\udcff.py", "mine"):
        (tmp_path / name).write_text(GOOD)
        assert callable(load_policy(str(tmp_path / name)).decide)


def test_a_file_is_read_anew(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD + "\nNUMBER = 1\n")
    first = load_policy(str(path))
    path.write_text(GOOD.replace("class Policy", "class Policy(dict)"))
    assert isinstance(load_policy(str(path)), dict)
    assert not isinstance(first, dict)


def test_data_classes_with_postponed_annotations_work(tmp_path):
    """They look their module up in sys.modules, and found nothing: AttributeError on import."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Seen:\n"
        "    page: int\n" + GOOD
    )
    assert callable(load_policy(str(path)).decide)


def test_no_such_file(tmp_path):
    (tmp_path / "directory.py").mkdir()
    for name in ("missing.py", "missing/mine.py", "directory.py"):
        path = tmp_path / name
        with pytest.raises(PolicyError) as caught:
            load_policy(str(path))
        assert str(caught.value) == (f"{path}: no such policy file: give a Python file, ./mine.py")


def test_a_syntax_error(refusal):
    assert refusal(GOOD + "\ndef broken(:\n") == "line 10: invalid syntax"


def test_bytes_that_are_no_python(refusal):
    assert refusal(b"x = 1\ny = '\xff\xfe'\n").startswith("line 2: (unicode error) ")
    assert "null bytes" in refusal(b"\0\0\0\0")


def test_an_exception_on_import(refusal):
    assert refusal("x = 1\ny = x / 0\n") == "line 2: ZeroDivisionError: division by zero"


def test_a_missing_library(refusal):
    assert refusal("import no_such_library\n") == (
        "line 1: ModuleNotFoundError: No module named 'no_such_library'"
    )


def test_the_line_is_one_of_the_users_file(refusal):
    """What fails inside of a library is reported where the user's file called it."""
    message = refusal("import json\n\njson.loads('{')\n")
    assert message.startswith("line 3: JSONDecodeError: ")


def test_a_message_of_several_lines_becomes_one(refusal):
    message = refusal("raise ValueError('one\\n  two\\n\\nthree')\n")
    assert message == "line 1: ValueError: one two three"


def test_a_file_that_wants_to_exit(refusal):
    assert refusal("import sys\nsys.exit('enough')\n") == "line 2: SystemExit: enough"


@pytest.mark.parametrize(
    "source",
    [
        "",
        "class Policies:\n    pass\n",
        "class Policy:\n    pass\n",
        "class Policy:\n    decide = 3\n",
        "Policy = 3\n",
        "def Policy():\n    pass\n",
    ],
)
def test_no_class_policy_with_a_method_decide(refusal, source):
    assert refusal(source) == "no class Policy with a method decide(self, batch, tiers)"


def test_a_constructor_that_fails(refusal):
    source = GOOD + "\n    def __init__(self):\n        self.x = {}['x']\n"
    assert refusal(source) == "Policy(): line 11: KeyError: 'x'"


def test_the_line_is_found_whatever_the_path_looks_like(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("class Policy:\n def __init__(self): 1 / 0\n decide = print")
    monkeypatch.chdir(tmp_path)
    for name in ("./mine.py", "mine.py", ".//./mine.py", str(tmp_path / "mine.py")):
        with pytest.raises(PolicyError) as caught:
            load_policy(name)
        assert str(caught.value) == f"{name}: Policy(): line 2: ZeroDivisionError: division by zero"


def test_a_constructor_that_wants_arguments(refusal):
    message = refusal(GOOD + "\n    def __init__(self, size):\n        pass\n")
    assert message.startswith("Policy(): TypeError: ")
    assert "'size'" in message


def test_a_file_that_cannot_be_read(tmp_path):
    """A regular file whose first page does not exist, whoever asks."""
    path = tmp_path / "mine.py"
    path.symlink_to("/proc/self/mem")
    with pytest.raises(PolicyError) as caught:
        load_policy(str(path))
    assert str(caught.value).startswith(f"{path}: OSError: ")


# Parameters


WITH_PARAMETERS = GOOD.replace(
    "class Policy:\n",
    """HOT = 4
\"\"\"Reads that make a page hot. Source: a paper.\"\"\"


class Policy:
    def __init__(self, *, hot: int = HOT, ratio=0.5, eager=False, name="x", scale=None):
        self.got = (hot, ratio, eager, name, scale)

""",
)


@pytest.fixture
def parametrised(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(WITH_PARAMETERS)
    return str(path)


def test_parameters_are_listed(parametrised):
    found = policy_parameters(parametrised)
    assert [(p.name, p.default) for p in found] == [
        ("hot", 4),
        ("ratio", 0.5),
        ("eager", False),
        ("name", "x"),
        ("scale", None),
    ]
    assert [p.help for p in found] == ["Reads that make a page hot. Source: a paper.", *[""] * 4]


def test_parameters_are_set(parametrised):
    policy = load_policy(f"{parametrised}:hot=9:ratio=2:eager=yes:name=a,b:scale=0.25")
    assert policy.got == (9, 2.0, True, "a,b", 0.25)
    assert load_policy(parametrised).got == (4, 0.5, False, "x", None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (":cold=1", "no parameter 'cold': there are hot, ratio, eager, name, scale"),
        (":hot=warm", "hot='warm': no int"),
        (":hot=1.5", "hot='1.5': no int"),
        (":eager=maybe", "eager='maybe': no bool"),
        (":hot=1:nonsense", "'nonsense' is no PARAMETER=VALUE"),
    ],
)
def test_wrong_parameters(parametrised, settings, said):
    with pytest.raises(PolicyError) as caught:
        load_policy(parametrised + settings)
    assert str(caught.value).endswith(said)


def test_a_policy_without_parameters():
    with pytest.raises(PolicyError, match="policy none: no parameter 'x': there are none"):
        load_policy("none:x=1")


def test_a_colon_in_the_path(tmp_path):
    (tmp_path / "a:b").mkdir()
    path = tmp_path / "a:b" / "mine.py"
    path.write_text(WITH_PARAMETERS)
    assert load_policy(f"{path}:hot=1").got[0] == 1


# Installed by others


class Point:
    """An entry point of an installed package."""

    name = "theirs"
    value = "theirs:Policy"

    def __init__(self, load):
        self.load = load


def test_an_entry_point(monkeypatch):
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: [Point(lambda: none.Policy)]
    )
    assert "theirs" in policy_names()
    assert isinstance(load_policy("theirs"), none.Policy)


def test_an_entry_point_that_leads_nowhere(monkeypatch):
    def load():
        raise ModuleNotFoundError("No module named 'theirs'")

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Point(load)])
    with pytest.raises(PolicyError) as caught:
        load_policy("theirs")
    assert str(caught.value) == (
        "theirs: theirs:Policy: ModuleNotFoundError: No module named 'theirs'"
    )
