"""Every failure has a class, every class a docstring and an errno; bug_on is always on."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xipfs import errors
from xipfs.errors import BugError, FsError, XipfsError, bug_on


def subclasses_of(cls: type) -> list[type]:
    found = [cls]
    for subclass in cls.__subclasses__():
        found += subclasses_of(subclass)
    return found


OPERATING_ERRORS = [c for c in subclasses_of(XipfsError) if c.__module__ == errors.__name__]

# What a program sees, by hand: docs and tests speak of errnos, so none changes by accident.
ERRNO_NAMES = {
    "ControlError": "ENOTCONN",
    "DeviceError": "EIO",
    "ExistsError": "EEXIST",
    "FileTooLargeError": "EFBIG",
    "FormatError": "EUCLEAN",
    "FsError": "EIO",
    "ImageBusyError": "EBUSY",
    "InvalidArgumentError": "EINVAL",
    "IsDirError": "EISDIR",
    "MountError": "EINVAL",
    "NameTooLongError": "ENAMETOOLONG",
    "NoDataError": "ENODATA",
    "NoEntryError": "ENOENT",
    "NoSpaceError": "ENOSPC",
    "NotDirError": "ENOTDIR",
    "NotEmptyError": "ENOTEMPTY",
    "NotPermittedError": "EPERM",
    "NotSupportedError": "ENOTSUP",
    "OutOfFramesError": "ENOMEM",
    "PolicyError": "EINVAL",
    "RangeError": "ERANGE",
    "ReadOnlyFsError": "EROFS",
    "SourceError": "EINVAL",
    "StaleError": "ESTALE",
    "SymlinkLoopError": "ELOOP",
    "TooBigError": "E2BIG",
    "TooManyLinksError": "EMLINK",
    "TracingError": "ENODEV",
    "XipfsError": "EIO",
}


def test_every_class_has_its_errno():
    found = {cls.__name__: errno.errorcode[cls.errno] for cls in OPERATING_ERRORS}
    assert found == ERRNO_NAMES


def test_all_is_complete():
    defined = {
        name
        for name, value in vars(errors).items()
        if getattr(value, "__module__", None) == errors.__name__ and not name.startswith("_")
    }
    assert set(errors.__all__) == defined


@pytest.mark.parametrize("cls", [*OPERATING_ERRORS, BugError], ids=lambda cls: cls.__name__)
def test_every_class_says_what_it_is_in_its_own_words(cls: type):
    docstring = cls.__dict__.get("__doc__") or ""
    assert docstring.split("\n")[0].endswith((".", "?"))


def test_no_class_takes_the_name_of_a_builtin():
    import builtins

    assert not set(errors.__all__) & set(dir(builtins))


@pytest.mark.parametrize("cls", OPERATING_ERRORS, ids=lambda cls: cls.__name__)
def test_an_error_is_its_message(cls: type[XipfsError]):
    assert str(cls("image.img: cut short")) == "image.img: cut short"
    assert os.strerror(cls.errno)


def test_the_rules_of_a_filesystem_are_one_family():
    assert {cls.__name__ for cls in subclasses_of(FsError)} >= {"NoEntryError", "NoSpaceError"}
    assert not issubclass(BugError, XipfsError)


def test_bug_on_is_silent_while_all_is_well():
    bug_on(False, "never said", pfn=1)


def test_bug_on_prints_the_values():
    with pytest.raises(BugError, match=r"^BUG: a frame twice: pfn=7 name=b'x'$"):
        bug_on(True, "a frame twice", pfn=7, name=b"x")
    with pytest.raises(BugError, match=r"^BUG: no values$"):
        bug_on(True, "no values")


def test_bug_on_survives_python_o():
    code = "from xipfs.errors import bug_on; bug_on(True, 'still here', pfn=7)"
    done = subprocess.run(
        [sys.executable, "-O", "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("xipfs.errors.BugError: BUG: still here: pfn=7\n")
