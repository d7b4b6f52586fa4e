"""What holds for every test: the order, the markers, and no warning that nobody announced.

- Tests run in the order of `FOLDERS`, so that what fails first is the lowest layer that is broken;
  where several processes share them, about so.
- `@pytest.mark.fuse` is for tests that really mount. Where that is impossible they are skipped, or,
  with `XIPFS_REQUIRE_FUSE=1` (CI), failed: a mount that was not tested is then no success.
- `@pytest.mark.root` is for owners, device nodes and chroot: skipped for anybody but root.
- `@pytest.mark.kernel` is for scenes on a live kernel, which `tools/oracle-kernel scenes` builds:
  deselected unless `--nr-scenes` says how many.
- A WARNING or worse from a `xipfs` logger fails the test, unless the test said so beforehand:
  `expected_logs("budget of 0 pages")`. What was announced must then come.
"""

import functools
import importlib.util
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

FOLDERS = [
    "tidy",
    "unit",
    "conformance",
    "model",
    "fs",
    "crash",
    "fuzz",
    "cli",
    "mount",
    "posix",
    "programs",
]
TESTS = Path(__file__).parent

# Nothing that depends on the clock or on luck: `--long` tries more, and again the same each time.
hypothesis.settings.register_profile(
    "short",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "long", hypothesis.settings.get_profile("short"), max_examples=2000
)
hypothesis.settings.load_profile("short")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what tests of a live kernel go by."""
    group = parser.getgroup("xipfs")
    group.addoption("--nr-scenes", type=int, default=0, help="scenes to play on each live kernel")
    group.addoption("--scenes-seed", type=int, default=0, help="another seed, other scenes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort by layer, lowest first, in which the order stays; leave out what needs a live kernel."""
    if not config.getoption("nr_scenes"):
        left_out = [item for item in items if item.get_closest_marker("kernel")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]

    def layer(item: pytest.Item) -> int:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder not in FOLDERS:
            raise pytest.UsageError(f"tests/{folder} has no place in FOLDERS of tests/conftest.py")
        return FOLDERS.index(folder)

    items.sort(key=layer)


@functools.cache
def why_no_fuse() -> str | None:
    """Return what keeps us from mounting, None if nothing does."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as exc:
        return f"/dev/fuse cannot be opened: {exc.strerror}"
    if shutil.which("fusermount3") is None:
        return "fusermount3 is not installed (Debian package fuse3)"
    if importlib.util.find_spec("pyfuse3") is None:
        return "pyfuse3 is not installed (pip install xipfs[fuse])"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what only root can do, and skip or fail a mount where one cannot mount."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("only root may do this")
    if item.get_closest_marker("fuse") and (reason := why_no_fuse()):
        if os.environ.get("XIPFS_REQUIRE_FUSE") == "1":
            pytest.fail(f"XIPFS_REQUIRE_FUSE=1, but {reason}", pytrace=False)
        pytest.skip(reason)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Of several processes each tells the first what its random tests played."""
    kit = sys.modules.get("tests.kit.operations")
    if kit is not None and hasattr(session.config, "workeroutput"):
        session.config.workeroutput["operations"] = dict(kit.OPERATIONS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what a process of pytest-xdist has told."""
    from tests.kit.operations import OPERATIONS

    OPERATIONS.update(getattr(node, "workeroutput", {}).get("operations", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many operations the random tests played."""
    kit = sys.modules.get("tests.kit.operations")
    if kit is not None and kit.OPERATIONS:
        counts = sorted(kit.OPERATIONS.items())
        players = ", ".join(f"{name} {count:,}" for name, count in counts)
        terminalreporter.write_line(f"{kit.OPERATIONS.total():,} random operations: {players}")


class LogWatch(logging.Handler):
    """Collects warnings, and the patterns that were announced for them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self.expected: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.levelname} {record.name}: {record.getMessage()}")

    def complaints(self) -> list[str]:
        """Return one line for each message not announced and each announcement not kept."""

        def found(pattern: str, message: str) -> bool:
            return re.search(pattern, message) is not None

        return [
            f"not announced: {message}"
            for message in self.messages
            if not any(found(pattern, message) for pattern in self.expected)
        ] + [
            f"announced, but not logged: {pattern!r}"
            for pattern in self.expected
            if not any(found(pattern, message) for message in self.messages)
        ]


@pytest.fixture(autouse=True)
def log_watch() -> Iterator[LogWatch]:
    """Fail the test for a warning of xipfs that it did not announce by `expected_logs`."""
    watch = LogWatch()
    logger = logging.getLogger("xipfs")
    logger.addHandler(watch)
    yield watch
    logger.removeHandler(watch)
    if complaints := watch.complaints():
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.fixture
def expected_logs(log_watch: LogWatch) -> Callable[[str], None]:
    """Announce a warning by a regular expression found in `LEVEL logger: message`."""
    return log_watch.expected.append
