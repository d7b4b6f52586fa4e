"""info, fsck, ls, cat, cp and dump: what they print, and how they exit."""

import fcntl
import json
import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.image import ImageKit
from tests.kit.sample import Sample, make_sample
from xipfs.cli.imagepath import split_image_path
from xipfs.cli.main import main
from xipfs.errors import DeviceError, InvalidArgumentError
from xipfs.fs.fsck import Invariant
from xipfs.ondisk.inode import INO_ROOT
from xipfs.units import PAGE_SIZE


@pytest.fixture
def run(capfdbinary):
    """Run `xipfs ARGUMENTS`; return (exit code, stdout, stderr as lines)."""

    def run(*arguments: object) -> tuple[int, bytes, list[str]]:
        code = main(list(map(str, arguments)))
        out, err = capfdbinary.readouterr()
        return code, out, err.decode().splitlines()

    return run


@pytest.fixture
def sample() -> Sample:
    return make_sample()


@pytest.fixture
def image(sample, tmp_path) -> Path:
    return sample.image.write(tmp_path / "nvram.img")


# IMAGE:PATH


@pytest.mark.parametrize(
    ("text", "image", "path"),
    [
        ("a.img:/etc", "a.img", b"/etc"),
        ("a.img:etc/x:y", "a.img", b"etc/x:y"),
        ("a.img:", "a.img", b"/"),
        ("a.img", "a.img", b"/"),
        ("b:c.img:/x:y", "b:c.img", b"/x:y"),
        ("b:c.img", "b:c.img", b"/"),
        ("dir:/x", "dir:/x", b"/"),
        ("a.img::", "a.img", b":"),
        ("a.img:\udcff", "a.img", b"\xff"),
    ],
)
def test_an_image_and_a_path_in_it(tmp_path, monkeypatch, text, image, path):
    monkeypatch.chdir(tmp_path)
    for name in ("a.img", "b:c.img"):
        (tmp_path / name).touch()
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir:").mkdir()
    (tmp_path / "dir:" / "x").touch()
    assert split_image_path(text) == (Path(image), path)


def test_what_names_no_image(tmp_path):
    with pytest.raises(InvalidArgumentError, match="IMAGE:PATH"):
        split_image_path(str(tmp_path / "missing"))
    with pytest.raises(DeviceError, match="missing: no such image"):
        split_image_path(f"{tmp_path}/missing:/etc:x")


# info


def test_info(run, image):
    code, out, err = run("info", image)
    assert (code, err) == (0, [])
    text = out.decode()
    assert text.startswith(f"image        {image}, format version 1\n")
    assert "state        CLEAN\n" in text
    assert "features     ACL\n" in text
    assert "size         1 MiB, 256 pages of 4096 bytes" in text
    assert "would be 16 KiB\n" in text


def test_info_for_programs(run, image):
    code, out, _ = run("info", image, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["image"] == str(image)
    assert facts["nr_pages"] == facts["nr_used_pages"] + facts["nr_free_pages"] == 256
    assert facts["struct_page_saved_bytes"] == 64 * 256


def test_info_of_no_image(run, tmp_path):
    code, out, err = run("info", tmp_path)
    assert (code, out) == (1, b"")
    assert err == [f"xipfs: {tmp_path}: not a regular file: an image is one"]


# fsck


def test_fsck_of_a_sound_image(run, image):
    code, out, err = run("fsck", image)
    assert (code, err) == (0, [])
    assert out.decode() == (
        f"{image}: clean; 42 inodes, 3 of them directories; 65 of 256 pages in use\n"
    )


def test_fsck_of_a_damaged_image(run, sample, tmp_path):
    sample.image.change_inode(sample.hard, nlink=7)
    image = sample.image.write(tmp_path / "nvram.img")
    code, out, _ = run("fsck", image)
    assert code == 4
    assert out.decode().splitlines() == [
        f"I24: inode {sample.hard}: nlink is 7, 2 were counted",
        f"{image}: 1 finding; 42 inodes, 3 of them directories; 65 of 256 pages in use",
    ]


def test_fsck_for_programs(run, sample, tmp_path):
    sample.image.data[sample.image.inode_offset(0) + 9] ^= 1
    image = sample.image.write(tmp_path / "nvram.img")
    code, out, _ = run("fsck", image, "--json")
    facts = json.loads(out)
    assert code == facts["exit_code"] == 4
    assert [(f["invariant"], f["name"]) for f in facts["findings"]] == [("I8", "inode_file")]
    assert facts["unchecked"] == ["inodes, names, pages: the inode file cannot be read"]
    assert facts["findings"][0]["text"].startswith("inode 0: damaged")


def test_fsck_says_what_it_did_not_check(run, sample, tmp_path):
    sample.image.change_superblock(version=9)
    code, out, _ = run("fsck", sample.image.write(tmp_path / "nvram.img"))
    assert code == 8
    assert "not checked: the rest: a newer xipfs must do it" in out.decode().splitlines()


def test_fsck_repairs_when_told(run, sample, tmp_path):
    sample.image.change_inode(sample.hard, nlink=7)
    image = sample.image.write(tmp_path / "nvram.img")
    before = image.read_bytes()
    assert run("fsck", "-n", image)[0] == 4
    assert image.read_bytes() == before
    code, out, err = run("fsck", "-p", image)
    assert (code, err) == (1, [])
    assert out.decode().splitlines() == [
        f"I24 repaired: inode {sample.hard}: 2 links",
        f"{image}: 1 repair, clean; 42 inodes, 3 of them directories; 65 of 256 pages in use",
    ]
    assert run("fsck", "-y", image)[0] == 0
    assert run("fsck", image)[0] == 0


def test_fsck_says_what_it_leaves(run, sample, tmp_path):
    sample.image.change_entry(sample.etc, b"hosts", ino=1 << 40)
    image = sample.image.write(tmp_path / "nvram.img")
    code, out, _ = run("fsck", "-p", image)
    assert code == 4
    assert "not checked: names: not repaired, as -p loses nothing" in out.decode().splitlines()
    code, out, _ = run("fsck", "-y", "--json", image)
    facts = json.loads(out)
    assert code == facts["exit_code"] == 1
    assert facts["findings"] == []
    assert {"invariant": "I20", "name": "dir_entries"}.items() <= facts["repairs"][1].items()


def test_fsck_repairs_nothing_that_is_in_use(run, image):
    with image.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert run("fsck", image)[0] == 0
        code, _, err = run("fsck", "-y", image)
    assert code == 8
    assert err[0].startswith(f"xipfs: {image}: in use")


def test_fsck_exits_as_fsck_does(run, tmp_path):
    assert run("fsck", tmp_path / "missing")[0] == 8
    assert run("fsck")[0] == 16
    assert run("fsck", "--unknown", tmp_path)[0] == 16
    assert run("fsck", "-p", "-y", tmp_path)[0] == 16


# ls


def test_ls(run, image):
    code, out, err = run("ls", image)
    assert (code, err) == (0, [])
    names = ["empty", "etc", "fifo", "hard", "long", "null", "short", "sparse", "tree"]
    assert out.decode().split() == names
    assert run("ls", f"{image}:/etc/sub")[1] == b""
    assert run("ls", f"{image}:etc/hosts")[1] == b"etc/hosts\n"


def test_ls_long(run, image):
    _, out, _ = run("ls", "-l", f"{image}:/")
    lines = out.decode().splitlines()
    assert lines[0].split() == ["mode", "links", "uid", "gid", "size_bytes", "mtime_utc", "name"]
    time = ["2023-11-14", "22:13:20"]
    assert lines[1].split() == ["-rw-r--r--", "1", "1000", "100", "0", *time, "empty"]
    assert "crw-rw-rw-     1 1000 100        1,3 2023-11-14 22:13:20 null" in lines
    assert "lrwxrwxrwx     1 1000 100          9 2023-11-14 22:13:20 short -> etc/hosts" in lines


def test_ls_recursive(run, image):
    _, out, _ = run("ls", "-R", image)
    text = out.decode()
    assert text.startswith("/:\nempty\netc\n")
    assert "\n\n/etc:\n0.conf\n" in text
    assert text.endswith("\n\n/etc/sub:\n")


def test_ls_follows_a_link_unless_it_is_looked_at_itself(run, tmp_path):
    kit = ImageKit()
    kit.add_file(kit.add_dir(INO_ROOT, b"dir"), b"file")
    kit.add_symlink(INO_ROOT, b"link", b"dir")
    image = kit.build().write(tmp_path / "nvram.img")
    assert run("ls", f"{image}:link")[1] == b"file\n"
    assert run("ls", "-l", f"{image}:link")[1].endswith(b" link -> dir\n")
    assert run("ls", "-l", f"{image}:link/")[1].endswith(b" file\n")


def test_ls_prints_odd_names_in_one_harmless_line(run, tmp_path):
    kit = ImageKit()
    kit.add_file(INO_ROOT, b"\x1b[31m\xff\n")
    image = kit.build().write(tmp_path / "nvram.img")
    assert run("ls", image)[1] == b"\\x1b[31m\\xff\\n\n"
    facts = json.loads(run("ls", "--json", image)[1])
    assert os.fsencode(facts[0]["path"]) == b"/\x1b[31m\xff\n"


def test_ls_for_programs(run, image, sample):
    facts = json.loads(run("ls", "-R", "--json", image)[1])
    assert len(facts) == 9 + 31
    by_path = {fact["path"]: fact for fact in facts}
    assert by_path["/etc/hosts"] == {
        "path": "/etc/hosts",
        "ino": sample.hosts,
        "type": "file",
        "mode": "0644",
        "nlink": 1,
        "uid": 1000,
        "gid": 100,
        "size_bytes": 20,
        "nr_pages": 2,
        "mtime_ns": 1_700_000_000_123_456_789,
        "rdev": 0,
    }
    assert by_path["/short"]["target"] == "etc/hosts"
    assert {fact["type"] for fact in facts} == {"file", "directory", "symlink", "char", "fifo"}
    assert json.loads(run("ls", "--json", f"{image}:etc/sub")[1]) == []


def test_ls_of_a_circle_of_directories_ends(run, sample, tmp_path):
    sample.image.change_entry(sample.etc, b"sub", ino=sample.etc)
    image = sample.image.write(tmp_path / "nvram.img")
    code, _, err = run("ls", "-R", image)
    assert code == 1
    assert err == [f"xipfs: directory {sample.etc} has two names: run xipfs fsck"]


@pytest.mark.parametrize("command", ["ls", "cat"])
def test_what_is_not_there(run, image, command):
    code, out, err = run(command, f"{image}:/etc/nope")
    assert (code, out) == (1, b"")
    assert err == ["xipfs: '/etc/nope': no such file or directory in the image"]


# cat


def test_cat(run, image):
    assert run("cat", f"{image}:etc/hosts")[1] == b"127.0.0.1 localhost\n"
    code, out, err = run("cat", f"{image}:short", f"{image}:hard", f"{image}:empty")
    assert (code, err) == (0, [])
    assert out == b"127.0.0.1 localhost\n" + b"\xaa" * PAGE_SIZE
    page, hole = b"\xbb" * PAGE_SIZE, bytes(PAGE_SIZE)
    assert run("cat", f"{image}:sparse")[1] == hole + page + hole * 5 + page


def test_cat_of_what_has_no_contents(run, image):
    assert run("cat", f"{image}:/etc") == (1, b"", [f"xipfs: {image}:/etc: is a directory"])
    code, _, err = run("cat", f"{image}:null")
    assert code == 1
    assert "is a device" in err[0]


def test_cat_into_a_closed_pipe_is_quiet(tmp_path):
    kit = ImageKit()
    kit.add_extents(INO_ROOT, b"hole", [], 1 << 40)
    image = kit.build().write(tmp_path / "nvram.img")
    process = subprocess.Popen(
        [sys.executable, "-m", "xipfs", "cat", f"{image}:hole"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(10) == bytes(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() in (0, 1)


# cp


def test_cp_of_a_file(run, image, tmp_path):
    target = tmp_path / "copy"
    assert run("cp", f"{image}:short", target) == (0, b"", [])
    assert target.read_bytes() == b"127.0.0.1 localhost\n"
    assert target.stat().st_mtime_ns == 1_700_000_000_123_456_789


def test_cp_into_a_directory_that_exists(run, image, tmp_path):
    (tmp_path / "into").mkdir()
    run("cp", f"{image}:etc/hosts", tmp_path / "into")
    assert (tmp_path / "into" / "hosts").read_bytes() == b"127.0.0.1 localhost\n"
    code, _, err = run("cp", f"{image}:etc/hosts", tmp_path / "into")
    assert code == 1
    assert err == [f"xipfs: {tmp_path}/into/hosts: exists, and nothing is replaced"]


@pytest.mark.parametrize("path", ["", "/", "/etc/..", "etc/."])
def test_cp_of_what_has_no_name_needs_one(run, image, tmp_path, path):
    code, _, err = run("cp", "-r", f"{image}:{path}", tmp_path)
    assert code == 1
    assert "has no name to go by" in err[0]


def test_cp_recursive(run, tmp_path):
    kit = ImageKit(fanout=3)
    etc = kit.add_dir(INO_ROOT, b"etc")
    for i in range(9):
        kit.add_file(etc, b"%d" % i, b"x" * i)
    kit.add_symlink(INO_ROOT, b"link", b"etc")
    kit.add_special(INO_ROOT, b"fifo", stat.S_IFIFO | 0o600)
    image = kit.build().write(tmp_path / "nvram.img")
    assert run("cp", "-r", image, tmp_path / "all") == (0, b"", [])
    assert sorted(os.listdir(tmp_path / "all")) == ["etc", "fifo", "link"]
    assert (tmp_path / "all" / "etc" / "8").read_bytes() == b"x" * 8
    assert run("cp", "-r", f"{image}:link", tmp_path / "link")[0] == 0
    assert os.readlink(tmp_path / "link") == "etc"
    code, _, err = run("cp", f"{image}:etc", tmp_path / "etc")
    assert (code, err) == (1, [f"xipfs: {image}:etc: is a directory: copy it with -r"])


def test_cp_says_what_failed_and_copies_the_rest(run, sample, tmp_path):
    sample.image.data[sample.image.inode_offset(sample.hosts) + 70] ^= 1
    image = sample.image.write(tmp_path / "nvram.img")
    code, _, err = run("cp", "-r", f"{image}:etc", tmp_path / "etc")
    assert code == 1
    assert len(err) == 1
    assert err[0].startswith(f"xipfs: {tmp_path}/etc/hosts: inode {sample.hosts}: damaged")
    assert (tmp_path / "etc" / "0.conf").exists()


# dump


def test_dump_of_the_volume(run, image):
    code, out, _ = run("dump", image)
    lines = out.decode().splitlines()
    assert code == 0
    assert lines[0] == "superblock"
    assert "  nr_pages 256" in lines
    assert "replica equal" in lines
    assert "  flags CLEAN" in lines
    facts = json.loads(run("dump", image, "--json")[1])
    assert facts["superblock"]["nr_pages"] == 256


def test_dump_of_an_inode(run, image, sample):
    by_path = run("dump", image, "/etc")[1]
    assert by_path == run("dump", image, "--inode", sample.etc)[1]
    text = by_path.decode()
    assert f"  ino {sample.etc}\n" in text
    assert f"ino={sample.hosts} d_type=8 name=hosts\n" in text
    assert "extents\n  - pgoff=0 block=" in text
    facts = json.loads(run("dump", image, "--inode", sample.tree, "--json")[1])
    assert len(facts["extents"]) == 12


def test_dump_of_a_link_is_of_the_link(run, image, sample):
    assert f"  ino {sample.short}\n" in run("dump", image, "short")[1].decode()


def test_dump_of_two_things_at_once(run, image):
    code, _, err = run("dump", image, "etc", "--inode", 1)
    assert code == 1
    assert err == ["xipfs: PATH and --inode: one of them, please"]


def test_every_invariant_has_a_name_for_programs():
    assert len({i.name for i in Invariant}) == len({i.number for i in Invariant}) == len(Invariant)


@pytest.mark.parametrize("nlink", [2, 7])
def test_fsck_on_a_terminal_shows_progress_and_takes_it_away(sample, tmp_path, nlink):
    """The bar goes to stderr; stdout is the same as without."""
    sample.image.change_inode(sample.hard, nlink=nlink)
    image = sample.image.write(tmp_path / "nvram.img")
    ours, theirs = pty.openpty()
    process = subprocess.run(
        [sys.executable, "-m", "xipfs", "fsck", str(image)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm"},
        check=False,
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16)
    os.close(ours)
    assert process.returncode == (0 if nlink == 2 else 4)
    assert process.stdout.decode().splitlines()[-1].startswith(f"{image}: ")
    assert b"Traceback" not in shown
    assert shown.endswith(b"\x1b[2K"), "the bar is still there"
