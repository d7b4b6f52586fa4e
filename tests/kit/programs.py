"""Programs that run from any copy of one tree, and what they are to print.

    make_programs_tree(tree)                the userland of nvram_images, gcc, sources, a database
    output = PROGRAMS["gcc"].run(tree)      the same bytes from wherever *tree* is copied or mounted

Everything a program executes, maps and reads is below *tree*, but for the dynamic loader, whose
path is written in each binary.
"""

import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from nvram_images.userland import copy_libraries, make_tree

__all__ = ["PROGRAMS", "SOURCES", "Program", "make_programs_tree"]

_TIMEOUT_S = 90

_NR_ROWS = 10_000

_START_UP = """
import ast, asyncio, collections, ctypes, decimal, difflib, email, fractions, hashlib
import http.client, json, logging, lzma, random, sqlite3, statistics, sys, unittest, xml.dom.minidom
from importlib.machinery import SourceFileLoader

decimal.getcontext().prec = 300
random.seed(1)
print(decimal.Decimal(2).sqrt())
print(statistics.fmean(random.random() for _ in range(1000)))
print(sum(fractions.Fraction(1, n) for n in range(1, 60)))
for name, module in sorted(sys.modules.items()):
    loader = getattr(module, "__loader__", None)
    if isinstance(loader, SourceFileLoader) and name != "__main__":
        print(name, hashlib.sha256(loader.get_code(name).co_code).hexdigest())
        print(name, hashlib.sha256(loader.get_source(name).encode()).hexdigest())
"""

_QUERIES = """
import hashlib, sqlite3, sys

for mmap_size in (0, 1 << 30):
    db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro&immutable=1", uri=True)
    db.execute(f"PRAGMA mmap_size={mmap_size}")
    db.execute("PRAGMA cache_size=10")
    for key in range(0, 10000, 199):
        print(db.execute("SELECT value FROM pages WHERE key = ?", (f"key-{key:06d}",)).fetchone())
    print(db.execute("SELECT count(*), sum(number) FROM pages WHERE value LIKE '%a0%'").fetchone())
    print(db.execute("PRAGMA quick_check").fetchone())
    db.close()
"""

SOURCES = {
    "table.h": """
#include <stdint.h>
#include <stddef.h>
struct entry { char *word; uint64_t count; struct entry *next; };
struct table { size_t nr_buckets; struct entry **buckets; };
void table_count(struct table *table, const char *word);
""",
    "table.c": """
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "table.h"
static uint64_t hash(const char *word)
{
    uint64_t found = 14695981039346656037u;
    while (*word)
        found = (found ^ (unsigned char)*word++) * 1099511628211u;
    return found;
}
void table_count(struct table *table, const char *word)
{
    struct entry **place = &table->buckets[hash(word) % table->nr_buckets];
    for (; *place; place = &(*place)->next)
        if (!strcmp((*place)->word, word)) {
            (*place)->count++;
            return;
        }
    *place = malloc(sizeof **place);
    if (!*place) {
        fprintf(stderr, "%s\\n", strerror(errno));
        exit(1);
    }
    **place = (struct entry){ .word = strdup(word), .count = 1 };
}
""",
    "main.c": """
#include <ctype.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "table.h"
int main(void)
{
    struct table table = { 64, calloc(64, sizeof(struct entry *)) };
    char word[16];
    for (int i = 0; i < 10000; i++) {
        snprintf(word, sizeof word, "word-%d", i * 31 % 97);
        table_count(&table, word);
    }
    for (size_t i = 0; i < table.nr_buckets; i++)
        for (struct entry *entry = table.buckets[i]; entry; entry = entry->next)
            printf("%s %" PRIu64 "\\n", entry->word, entry->count);
    return 0;
}
""",
}

# What a static link takes, besides what gcc itself runs.
_LINKED = ["crt1.o", "crti.o", "crtbeginT.o", "crtend.o", "crtn.o"]
_LINKED += ["libgcc.a", "libgcc_eh.a", "libc.a", "liblto_plugin.so"]


class Program(NamedTuple):
    """run: returns all that the program makes of the tree at a path: what it prints and writes."""

    name: str
    run: Callable[[Path], bytes]


def make_programs_tree(tree: Path) -> None:
    """Make the new directory *tree*; its files are the same each time on one machine."""
    make_tree(tree, mtime_ns=0)
    (tree / "programs" / "start_up.py").write_text(_START_UP)
    (tree / "programs" / "queries.py").write_text(_QUERIES)
    _make_database(tree / "database.sqlite")
    sources = tree / "sources"
    sources.mkdir()
    for name, text in SOURCES.items():
        (sources / name).write_text(text)
    _copy_gcc(tree, sources)


def _make_database(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE pages (key TEXT, value TEXT, number INTEGER)")
        db.executemany(
            "INSERT INTO pages VALUES (?, ?, ?)",
            (
                (f"key-{i:06d}", hashlib.sha512(b"%d" % i).hexdigest(), i * i % 10007)
                for i in range(_NR_ROWS)
            ),
        )
        db.execute("CREATE INDEX by_key ON pages (key)")
    db.close()


def _copy_gcc(tree: Path, sources: Path) -> None:
    """Copy the compiler with its headers and archives to where it finds itself: TREE/toolchain."""
    gcc = shutil.which("gcc")
    assert gcc is not None, "no gcc: tools/setup brings it"

    def ask_gcc(*arguments: object) -> str:
        command = [gcc, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    binaries = [gcc, shutil.which("as"), shutil.which("ld")]
    binaries += [ask_gcc(f"-print-prog-name={name}") for name in ("cc1", "collect2")]
    headers = re.findall(r"/\S+\.h", ask_gcc("-O1", "-M", *sources.glob("*.c")))
    archives = [ask_gcc(f"-print-file-name={name}") for name in _LINKED]
    for name in {*binaries, *headers, *archives}:
        assert name is not None, "no binutils: tools/setup brings them"
        place = tree / "toolchain" / os.path.normpath(name).lstrip("/")
        if not place.is_relative_to(tree / "toolchain" / str(tree).lstrip("/")):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, place)
    copy_libraries([Path(name) for name in binaries if name], tree)


def _run(tree: Path, *command: object, path: Path | None = None) -> tuple[bytes, bytes]:
    """Run a program with libraries and tools of the tree; return what it printed."""
    done = subprocess.run(
        [os.fspath(word) if isinstance(word, Path) else str(word) for word in command],
        env={"PATH": f"{path or tree / 'bin'}", "LD_LIBRARY_PATH": f"{tree / 'lib'}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:].decode(errors="replace")
    return done.stdout, done.stderr


def _python(tree: Path) -> list[object]:
    return [tree / "python" / "bin" / "python3", "-ISB"]


def _start_up(tree: Path) -> bytes:
    program = tree / "programs" / "start_up.py"
    output, times = _run(tree, *_python(tree), "-X", "importtime", program)
    return output + re.sub(rb" *\d+ \|", b"|", times)  # not how long each import took


def _gcc(tree: Path) -> bytes:
    """Compile and link from the tree to a directory elsewhere, and run what came out."""
    toolchain = tree / "toolchain"
    gcc = [toolchain / "usr" / "bin" / "gcc", f"--sysroot={toolchain}"]
    with tempfile.TemporaryDirectory(prefix="xipfs-gcc-") as folder:
        objects = []
        for source in sorted((tree / "sources").glob("*.c")):
            objects.append(Path(folder, f"{source.stem}.o"))
            _run(tree, *gcc, "-O1", "-c", source, "-o", objects[-1], path=toolchain / "usr" / "bin")
        binary = Path(folder, "counts")
        _run(tree, *gcc, "-static", "-o", binary, *objects, path=toolchain / "usr" / "bin")
        return b"".join(
            [*(file.read_bytes() for file in (*objects, binary)), _run(tree, binary)[0]]
        )


def _sqlite(tree: Path) -> bytes:
    return _run(tree, *_python(tree), tree / "programs" / "queries.py", tree / "database.sqlite")[0]


PROGRAMS = {
    name: Program(name, run)
    for name, run in {"python": _start_up, "gcc": _gcc, "sqlite": _sqlite}.items()
}
