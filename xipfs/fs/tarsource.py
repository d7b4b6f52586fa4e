"""What mkfs builds an image from: here, a tar archive, read once from front to back.

    for entry in read_tar(open("system.tar", "rb"), "system.tar"): ...      see fs.source

Plain, gzip, bzip2 or xz; v7, ustar, GNU and pax archives. Of pax headers beyond POSIX: sparse
files, attributes (SCHILY.xattr.*) and ACLs (SCHILY.acl.*). Paths must stay inside: absolute ones
and ".." are refused, where they came from is left to the one who makes the archive.

An archive that was cut short is refused even where it was cut between two members.
"""

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal

from xipfs.errors import SourceError
from xipfs.fs.posix_acl import acl_from_text
from xipfs.fs.source import NO_XATTRS, PIECE_SIZE_BYTES, XATTR_PREFIXES, Entry, Piece, shown
from xipfs.units import PAGE_MASK, PAGE_SHIFT

__all__ = ["read_tar"]

_XATTR_KEYWORD = "SCHILY.xattr."
_ACL_KEYWORDS = {
    "SCHILY.acl.access": b"system.posix_acl_access",
    "SCHILY.acl.default": b"system.posix_acl_default",
}
_GNU_VOLUME_HEADER = b"V"
_BUFFER_SIZE_BYTES = 1 << 15  # tarfile copies what is left of it for each header that it takes out
_ID_MAX = (1 << 32) - 2  # the highest id is "no id" to Linux

# All that the readers of damaged archives have been seen to raise.
_DAMAGES = (
    tarfile.TarError,
    OSError,
    EOFError,
    ArithmeticError,
    LookupError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
)


class _Member(tarfile.TarInfo):
    """A header. tarfile takes a bad one behind the first for the end of the archive: we do not."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        """Read one header; only blocks of zeros end an archive."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as exc:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError("cut short" if not buf else str(exc)) from exc


def read_tar(stream: io.BufferedReader, where: str) -> Iterator[Entry]:
    """Yield the members of the archive in *stream*, in its order; read the stream to its end.

    where: what the stream is, for messages.
    Raises: SourceError when it is damaged, no archive, or holds what an image cannot.
    """
    plain = _decompress(stream, where)
    with _open_archive(plain, where) as archive:
        while (member := _next_member(archive, where)) is not None:
            if member.type != _GNU_VOLUME_HEADER:
                yield _entry(archive, member, where)
        try:
            # Padding, and the checksum of what was compressed. Also, who writes to a pipe wants to
            # be read.
            while plain.read(PIECE_SIZE_BYTES):
                pass
        except _DAMAGES as exc:
            raise SourceError(f"{where}: damaged: {exc}") from exc


def _decompress(stream: io.BufferedReader, where: str) -> io.BufferedIOBase:
    """Return *stream* as it was before it was compressed; tarfile would not check gzip's CRC."""
    try:
        magic = stream.peek(6)
    except OSError as exc:
        raise SourceError(f"{where}: cannot be read: {exc.strerror}") from exc
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=stream)
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(stream)
    if magic.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(stream)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        raise SourceError(f"{where}: compressed by zstd: decompress it on the way, zstd -dc")
    return stream


def _open_archive(plain: io.BufferedIOBase, where: str) -> tarfile.TarFile:
    try:
        return tarfile.open(
            fileobj=plain,
            mode="r|",
            bufsize=_BUFFER_SIZE_BYTES,
            tarinfo=_Member,
            encoding="utf-8",
            errors="surrogateescape",
        )
    except _DAMAGES as exc:
        raise SourceError(f"{where}: not a tar archive (plain, gzip, bzip2 or xz): {exc}") from exc


def _next_member(archive: tarfile.TarFile, where: str) -> tarfile.TarInfo | None:
    try:
        member = archive.next()
    except _DAMAGES as exc:
        raise SourceError(f"{where}: damaged or cut short: {exc}") from exc
    archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
    return member


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> Entry:
    path = _path(member.name, where)
    try:
        kind = _kind(member)
        entry = Entry(
            path,
            kind | member.mode & 0o7777,
            member.uid,
            member.gid,
            _mtime_ns(member),
            rdev=os.makedev(member.devmajor, member.devminor) if member.isdev() else 0,
            xattrs=_xattrs(member.pax_headers),
        )
    except (ValueError, ArithmeticError) as exc:
        raise SourceError(f"{where}: {shown(path)}: {exc}") from exc
    if not (0 <= member.uid <= _ID_MAX and 0 <= member.gid <= _ID_MAX and member.size >= 0):
        raise SourceError(
            f"{where}: {shown(path)}: impossible owner {member.uid}:{member.gid} or "
            f"size {member.size}"
        )
    if member.islnk():
        return entry._replace(hard_link=_path(member.linkname, where))
    if member.issym():
        return entry._replace(target=_encode(member.linkname))
    if stat.S_ISREG(kind):
        pieces = _read_pieces(archive, member, f"{where}: {shown(path)}")
        return entry._replace(size_bytes=member.size, pieces=pieces)
    return entry


def _kind(member: tarfile.TarInfo) -> int:
    if member.isreg() or member.islnk():
        return stat.S_IFREG
    if member.isdir():
        return stat.S_IFDIR
    if member.issym():
        return stat.S_IFLNK
    if member.ischr():
        return stat.S_IFCHR
    if member.isblk():
        return stat.S_IFBLK
    if member.isfifo():
        return stat.S_IFIFO
    raise ValueError(f"member of unknown type {member.type!r}")


def _path(name: str, where: str) -> bytes:
    """Return *name* without "." and empty parts; b"" is the root."""
    path = _encode(name)
    if path.startswith(b"/"):
        raise SourceError(f"{where}: {shown(path)}: absolute: archive relative names")
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise SourceError(f"{where}: {shown(path)}: leads out of the tree")
    return b"/".join(parts)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _mtime_ns(member: tarfile.TarInfo) -> int:
    # member.mtime is a float, which holds no nanoseconds.
    text = member.pax_headers.get("mtime")
    return int(member.mtime) * 10**9 if text is None else int(Decimal(text) * 10**9)


def _xattrs(pax_headers: Mapping[str, str]) -> Mapping[bytes, bytes]:
    xattrs = {}
    for keyword, value in pax_headers.items():
        name = keyword.removeprefix(_XATTR_KEYWORD)
        if name != keyword and name.startswith(XATTR_PREFIXES):
            xattrs[_encode(name)] = _encode(value)
        elif keyword in _ACL_KEYWORDS:
            xattrs[_ACL_KEYWORDS[keyword]] = acl_from_text(value)
    return xattrs or NO_XATTRS


def _read_pieces(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> Iterator[Piece]:
    """Yield the contents of *member*, at which the archive stands."""
    stream = archive.fileobj
    assert stream is not None  # only after close

    def read(nr_bytes: int) -> bytes:
        data = stream.read(nr_bytes)
        if len(data) != nr_bytes:
            raise SourceError(f"{where}: the archive was cut short here")
        return data

    # For sparse members of all formats tarfile sets `sparse` to rows of (offset, nr_bytes).
    runs = [(0, member.size)]
    if member.issparse():
        runs = list(member.sparse)  # type: ignore[arg-type]  # which typeshed calls bytes
        _check_runs(runs, member.size, where)
    try:
        stream.seek(member.offset_data)
        yield from _runs_to_pieces(runs, read)
    except _DAMAGES as exc:
        raise SourceError(f"{where}: damaged or cut short: {exc}") from exc


def _check_runs(runs: Iterable[tuple[int, int]], size_bytes: int, where: str) -> None:
    end = 0
    for offset, nr_bytes in runs:
        if nr_bytes < 0 or not end <= offset <= offset + nr_bytes <= size_bytes:
            raise SourceError(f"{where}: a sparse file with an impossible map")
        end = offset + nr_bytes


def _runs_to_pieces(
    runs: Iterable[tuple[int, int]], read: Callable[[int], bytes]
) -> Iterator[Piece]:
    """Yield the bytes of all *runs* as pieces: what a page has beside its runs is zeros."""
    start = 0  # of the piece, a multiple of the page size
    piece = bytearray()
    for offset, nr_bytes in runs:
        while nr_bytes:
            page_start = offset & ~PAGE_MASK
            piece_end = start + ((len(piece) + PAGE_MASK) & ~PAGE_MASK)
            if page_start > piece_end or page_start - start >= PIECE_SIZE_BYTES:
                if piece:
                    yield start >> PAGE_SHIFT, piece
                start, piece = page_start, bytearray()
            nr_now = min(nr_bytes, start + PIECE_SIZE_BYTES - offset)
            piece += bytes(offset - start - len(piece))
            piece += read(nr_now)
            offset += nr_now
            nr_bytes -= nr_now
    if piece:
        yield start >> PAGE_SHIFT, piece
