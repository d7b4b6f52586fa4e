"""What `xipfs --install-completion` installs, asked as bash asks it."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("xipfs mk", ["mkfs"]),
        ("xipfs mkfs --fr", ["--from", "--from-tar"]),
        ("xipfs umount --la", ["--lazy"]),
    ],
)
def test_bash_is_told_commands_and_options(words: str, expected: list[str]):
    environment = os.environ | {
        "_XIPFS_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    # As the script `xipfs` of the wheel does it.
    code = "import sys; from xipfs.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == expected, done.stderr
