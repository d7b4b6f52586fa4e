"""One mount from INIT to unmount: pyfuse3's loop, the epochs, signals and the control socket.

    main task        pyfuse3.main: requests, one after the other
    epoch task       every epoch_ms: sample; let the policy decide, in a thread, while requests are
                     served; migrate in slices with a checkpoint between; have the kernel drop
                     ranges, and take in or drop what was promoted
    write-back task  every few seconds: dirty frames of the RAM tier, file by file
    signal task      SIGTERM, SIGINT, SIGHUP: end as if unmounted
    control task     xipfs stat and others
    notifier thread  see `notifier`

Everything that touches the core goes through `Mount.dispatch`. What may happen at each await is
that requests are served; no task keeps anything of the core across one.
"""

import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyfuse3
import trio

from xipfs.errors import MountError, TracingError
from xipfs.fuse.adapter import Adapter
from xipfs.fuse.control import ControlServer
from xipfs.fuse.inject import InjectAdapter
from xipfs.fuse.mount import Mount
from xipfs.fuse.mountpoint import find_mount
from xipfs.fuse.notifier import Notifier, find_session_fd
from xipfs.fuse.options import CacheMode
from xipfs.tiering.daemon import decide
from xipfs.tiering.filemap_events import NOTHING_TOLD, FilemapEvents

__all__ = ["raise_read_ahead", "serve"]

_log = logging.getLogger(__name__)

READ_AHEAD_KIB = 1024
"""The kernel's default of 128 KiB caps requests at that; pyfuse3 takes up to 1 MiB."""

_NOTIFIER_TIMEOUT_S = 5.0

WATCH_RATIO = 0.04
"""The part of the time in which the kernel tells of reads, which are a third slower then."""

_WATCH_S_MIN = 0.01
_WRITE_BACK_S = 5.0
"""Linux's dirty_writeback_centisecs."""

_SYNCFS_TIMEOUT_S = 20.0

_SWITCH_INTERVAL_S = 0.0002
"""How long a request waits for a policy that computes: Python's own 5 ms are a hundred requests."""

_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(mount: Mount, mountpoint: Path, mounted: Callable[[], None]) -> None:
    """Serve *mount* at *mountpoint* until it is unmounted or a signal ends it.

    mounted: called once when the kernel has the mount; requests are answered from then on.
    Raises: MountError when the kernel or fusermount3 refuses.
    """
    adapter = InjectAdapter(mount) if mount.options.inject else Adapter(mount)
    # From here to the end of the process a signal waits until somebody can act on it: what it does
    # by default, to kill us, would leave a dead mount behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, _END_SIGNALS)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    _init(adapter, mount, mountpoint)
    try:
        mounted()
        gc.collect()
        gc.freeze()  # what lives as long as the mount need not be looked at again
        trio.run(_serve, mount, adapter, mountpoint)
    finally:
        pyfuse3.close(unmount=True)


def _init(adapter: Adapter, mount: Mount, mountpoint: Path) -> None:
    """Have it mounted. Why it cannot be, libfuse and fusermount3 tell nobody but stderr."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            pyfuse3.init(adapter, os.fspath(mountpoint), _fuse_options(mount))
        except RuntimeError as exc:
            said.seek(0)
            lines = said.read().decode(errors="replace").splitlines()
            reason = lines[-1] if lines else exc
            raise MountError(f"{mountpoint}: cannot be mounted: {reason}") from exc
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


async def _serve(mount: Mount, adapter: Adapter, mountpoint: Path) -> None:
    session_fd = find_session_fd()
    notifier = Notifier(session_fd) if session_fd is not None else None
    if notifier is not None:
        adapter.hold = notifier.hold
    control = ControlServer(mount)
    mount.operations.control_address = control.address
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve)
        nursery.start_soon(_run_epochs, mount, notifier, mountpoint)
        nursery.start_soon(_prefetch, mount)
        nursery.start_soon(_write_back, mount)
        nursery.start_soon(_end_on_signal, notifier, mountpoint)
        nursery.start_soon(raise_read_ahead, mountpoint)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()
    if notifier is not None:
        notifier.stop()
        notifier.join(_NOTIFIER_TIMEOUT_S)


async def _prefetch(mount: Mount) -> None:
    """Bring the pages of the profile to RAM, with requests served in between."""
    nr_wanted = len(mount.to_prefetch)
    if not nr_wanted:
        return
    try:
        while mount.dispatch(mount.prefetch_some):
            await trio.lowlevel.checkpoint()
    except Exception:
        _log.exception("a bug in xipfs: prefetching ended early")
    nr_pages = mount.machine.vmstat.pgpromote_success
    _log.info("prefetch: %d pages promoted, %d were wanted", nr_pages, nr_wanted)


def _open_events(mount: Mount, mountpoint: Path) -> FilemapEvents | None:
    """Have the kernel tell what its page cache answers, if it can and that is wanted."""
    info = find_mount(mountpoint)
    if mount.options.cache is not CacheMode.SAMPLED or not mount.options.events or info is None:
        return None
    try:
        events = FilemapEvents.open(info.device)
    except TracingError as exc:
        _log.info("reads of cached pages are not told: %s", exc)
        mount.events_missing = str(exc)
        return None
    mount.dispatch(mount.tiering.see_reads)
    return events


async def _run_epochs(mount: Mount, notifier: Notifier | None, mountpoint: Path) -> None:
    """Do one epoch after the other, for as long as the mount lives."""
    events = _open_events(mount, mountpoint)
    try:
        await _run_epochs_with(mount, notifier, events)
    finally:
        if events is not None:
            events.close()


async def _run_epochs_with(
    mount: Mount, notifier: Notifier | None, events: FilemapEvents | None
) -> None:
    tiering = mount.tiering
    epoch_s = mount.options.epoch_ms / 1000
    next_s = next_watch_s = trio.current_time()
    while True:
        next_s = max(next_s + epoch_s, trio.current_time())
        await trio.sleep_until(next_s)
        try:
            told = events.take() if events is not None else NOTHING_TOLD
            epoch = mount.dispatch(tiering.sample, told)
            # A policy that never comes back is left alone in its thread when another takes over.
            with trio.CancelScope() as deciding:
                mount.policy_changed = deciding.cancel
                answer = await trio.to_thread.run_sync(decide, epoch, abandon_on_cancel=True)
                mount.dispatch(tiering.accept, answer)
            while mount.dispatch(tiering.migrate_some):
                await trio.lowlevel.checkpoint()
            # Who is behind gets no more to do.
            ready = notifier if notifier is not None and notifier.idle else None
            for pages in tiering.take_promoted():
                if ready is not None:
                    ready.send(mount.dispatch(mount.promoted_ranges, pages))
                await trio.lowlevel.checkpoint()
            if ready is not None:
                ready.send(mount.dispatch(tiering.drop_ranges))
            if events is not None and trio.current_time() >= next_watch_s:
                watch_s = max(WATCH_RATIO * epoch_s, _WATCH_S_MIN)
                # A little sooner, for epochs do not begin to the point.
                next_watch_s = trio.current_time() + watch_s / WATCH_RATIO - epoch_s / 2
                await trio.to_thread.run_sync(events.watch, watch_s)
        except Exception:
            _log.exception("a bug in xipfs: epoch %d ended early", tiering.nr_epochs)


async def _write_back(mount: Mount) -> None:
    """Write dirty frames back, for as long as the mount lives."""
    while True:
        await trio.sleep(_WRITE_BACK_S)
        try:
            files = mount.dispatch(mount.write_back)
            while mount.dispatch(next, files, files) is not files:
                await trio.lowlevel.checkpoint()
        except Exception:
            _log.exception("a bug in xipfs: write-back ended early")


async def _end_on_signal(notifier: Notifier | None, mountpoint: Path) -> None:
    with trio.open_signal_receiver(*_END_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _END_SIGNALS)
        try:
            async for number in signals:
                _log.info("%s: unmounting", signal.Signals(number).name)
                if notifier is not None:
                    # It may wait for a page that a request, answered by us, has to bring: let it
                    # end while we still answer.
                    notifier.stop()
                    await trio.to_thread.run_sync(notifier.join, _NOTIFIER_TIMEOUT_S)
                # What programs have stored to maps is in the kernel until somebody asks for it.
                with trio.move_on_after(_SYNCFS_TIMEOUT_S):
                    await trio.to_thread.run_sync(_syncfs, mountpoint, abandon_on_cancel=True)
                pyfuse3.terminate()
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, _END_SIGNALS)


def _syncfs(mountpoint: Path) -> None:
    """Have the kernel send us all that is dirty on the mount; Python has no syncfs(2)."""
    with contextlib.suppress(OSError):
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        ctypes.CDLL(None).syncfs(fd)
        os.close(fd)


def _fuse_options(mount: Mount) -> set[str]:
    options = mount.options
    fsname = options.fsname or os.fspath(mount.sb.nvram.path)
    fsname = fsname.encode("ascii", "replace").decode()  # pyfuse3 takes no other characters
    flags = {
        "default_permissions",
        "subtype=xipfs",
        f"fsname={fsname.replace(',', '_')}",
        "suid" if options.suid else "nosuid",
        "dev" if options.dev else "nodev",
    }
    if options.ro:
        flags.add("ro")
    if options.allow_other:
        flags.add("allow_other")
    if options.noexec:
        flags.add("noexec")
    return flags


async def raise_read_ahead(mountpoint: Path) -> None:
    """Let the kernel read ahead further, soon. Only root can; others keep the default."""
    with contextlib.suppress(OSError):
        # The kernel sets its default when INIT is answered. Whatever comes back comes after that.
        await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
        info = find_mount(mountpoint)
        if info is not None:
            bdi = Path(f"/sys/class/bdi/{info.device}")
            (bdi / "read_ahead_kb").write_text(f"{READ_AHEAD_KIB}\n")
