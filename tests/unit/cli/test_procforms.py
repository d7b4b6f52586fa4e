"""smaps and pagemap as text."""

import re
from pathlib import Path

from xipfs.cli.procforms import join_runs, render_pagemap, render_smaps

AREA = {"start": 0x200000, "end": 0x205000, "pgoff": 0, "ino": 12, "path": "/bin/sort"}
SMAPS = AREA | {
    "perm": "r--s",
    "vm_flags": ["rd", "mr", "ms", "mm"],
    "size_bytes": 20480,
    "rss_bytes": 16384,
    "pss_bytes": 8192,
    "shared_clean_bytes": 0,
    "shared_dirty_bytes": 0,
    "private_clean_bytes": 8192,
    "private_dirty_bytes": 0,
    "referenced_bytes": 4096,
    "anonymous_bytes": 0,
    "locked_bytes": 0,
}


def run(pgoff: int, nr_pages: int, **facts) -> dict:
    names = {"present": True, "tier": "nvram", "pfn": (1 << 36) + 40, "kpagecount": 0}
    return {"pgoff": pgoff, "nr_pages": nr_pages} | names | {"refcount": None, "heat": 3} | facts


def test_smaps():
    head = "00200000-00205000 r--s 00000000 00:2f 12"
    assert list(render_smaps([SMAPS], "/mnt", 0x2F)) == [
        f"{head:<73}/mnt/bin/sort",
        "Size:                 20 kB",
        "KernelPageSize:        4 kB",
        "MMUPageSize:           4 kB",
        "Rss:                  16 kB",
        "Pss:                   8 kB",
        "Shared_Clean:          0 kB",
        "Shared_Dirty:          0 kB",
        "Private_Clean:         8 kB",
        "Private_Dirty:         0 kB",
        "Referenced:            4 kB",
        "Anonymous:             0 kB",
        "Locked:                0 kB",
        "VmFlags: rd mr ms mm ",
    ]


def test_every_line_has_the_form_of_the_kernel_at_hand():
    """Column for column: the same name is followed by as many blanks, and a path begins there."""
    theirs = Path("/proc/self/smaps").read_text().splitlines()
    names = {line.split(":")[0]: line for line in theirs if re.match(r"[A-Z]\w+: +\d+ kB", line)}
    for line in list(render_smaps([SMAPS], "/mnt", 0x2F))[1:-1]:
        name = line.split(":")[0]
        assert re.sub(r" +\d+", "", line) == re.sub(r" +\d+", "", names[name])
        assert line.index(" kB") == names[name].index(" kB")
    with_path = [line for line in theirs if re.match(r"[0-9a-f]+-[0-9a-f]+ .* /", line)]
    ours = next(render_smaps([SMAPS], "/mnt", 0x2F))
    assert ours.index("/") == with_path[0].index("/")


def test_a_file_whose_path_is_not_known_and_odd_names():
    (nameless, *_) = render_smaps([SMAPS | {"path": None}], "/mnt", 0)
    assert nameless.endswith(" inode 12")
    (odd, *_) = render_smaps([SMAPS | {"path": "/a\n\udcff b"}], "/", 0)
    assert odd.endswith(r" /a\n\xff b")


def test_pagemap():
    ram = {"tier": "ram", "pfn": 7, "kpagecount": 1, "refcount": 2, "heat": 250}
    untouched = {"present": False, "tier": None, "pfn": None, "heat": 0}
    area = AREA | {"runs": [run(0, 2), run(2, 1, **ram), run(3, 2, **untouched)]}
    assert list(render_pagemap([area], "/mnt")) == [
        "/mnt/bin/sort: 5 pages at 00200000",
        "   pgoff    pages present tier          pfn kpagecount refcount heat",
        "       0        2 yes     nvram 68719476776          0        -    3",
        "       2        1 yes     ram             7          1        2  250",
        "       3        2 no      -               -          0        -    0",
    ]


def test_an_area_in_parts_has_one_head():
    parts = [AREA | {"runs": [run(0, 2)]}, AREA | {"runs": [run(2, 3)]}]
    other = AREA | {"start": 0x400000, "end": 0x401000, "runs": [run(0, 1)]}
    lines = list(render_pagemap([*parts, other], "/mnt"))
    assert [line.split()[0] for line in lines[:4]] == ["/mnt/bin/sort:", "pgoff", "0", "2"]
    assert [line.split()[0] for line in lines[4:]] == ["/mnt/bin/sort:", "pgoff", "0"]
    assert [area["runs"] for area in join_runs([*parts, other])] == [
        [run(0, 2), run(2, 3)],
        [run(0, 1)],
    ]
