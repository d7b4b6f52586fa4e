"""`xipfs mkfs`: options, output, and what it says when it cannot."""

import json
import os
import pty
import subprocess
import sys
import tarfile
import uuid
from pathlib import Path

import pytest

from tests.kit.image_reader import read_image
from xipfs.cli.imagepath import open_image
from xipfs.cli.main import main
from xipfs.fs.extent import iter_extents
from xipfs.fs.namei import path_lookup

EPOCH = "1700000000"


@pytest.fixture
def run(capsys, monkeypatch):
    """Run `xipfs mkfs ARGUMENTS`; return what it prints."""
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)

    def run(*arguments: object) -> str:
        code = main(["mkfs", *map(str, arguments)])
        output = capsys.readouterr()
        assert (code, output.err) == (0, "")
        return output.out

    return run


@pytest.fixture
def fail(capsys):
    """Run `xipfs mkfs ARGUMENTS`, which must fail; return its one line on stderr."""

    def fail(*arguments: object) -> str:
        code = main(["mkfs", *map(str, arguments)])
        output = capsys.readouterr()
        assert (code, output.out) == (1, "")
        assert output.err.startswith("xipfs: ")
        assert output.err.count("\n") == 1
        return output.err

    return fail


@pytest.fixture
def tree(tmp_path) -> Path:
    """A small tree, older than it is."""
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "f").write_bytes(b"x" * 5000)
    (tree / "l").symlink_to("d/f")
    for path in (tree / "d" / "f", tree / "l", tree / "d", tree):
        os.utime(path, ns=(0, 10**18), follow_symlinks=False)
    return tree


def test_empty(run, tmp_path):
    text = run(tmp_path / "a.img", "--size", "4G", "--label", "täst")
    assert text.startswith(f"{tmp_path}/a.img: 4 GiB with 0 B in 0 files, 1 directories, 3.9")
    image = read_image(tmp_path / "a.img")
    assert image.size_bytes == 4 << 30
    assert image.superblock.label == "täst".encode().ljust(64, b"\0")


def test_from_a_tree_with_all_figures(run, tmp_path, tree):
    facts = json.loads(run(tmp_path / "a.img", "--from", tree, "--json", "--label", "l"))
    image = read_image(tmp_path / "a.img")
    assert image.read(b"d/f") == b"x" * 5000
    assert str(uuid.UUID(facts.pop("uuid"))) == str(uuid.UUID(bytes=image.superblock.uuid))
    assert facts.pop("created_ns") == image.superblock.created_ns
    assert facts == {
        "image": f"{tmp_path}/a.img",
        "label": "l",
        "size_bytes": 1 << 20,
        "nr_pages": 256,
        "nr_free_pages": image.state.nr_free_pages,
        "nr_journal_pages": 16,
        "nr_inodes": 4,
        "nr_files": 1,
        "nr_directories": 2,
        "nr_symlinks": 1,
        "nr_others": 0,
        "data_bytes": 5000,
    }


def test_the_same_bytes_from_anywhere(run, tmp_path, tree, monkeypatch):
    with tarfile.open(tmp_path / "tree.tar.gz", "w:gz") as tar:
        tar.add(tree, ".")
    subprocess.run(["cp", "-a", tree, tmp_path / "copy"], check=True)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    run(tmp_path / "a.img", "--from", tree)
    run(tmp_path / "b.img", "--from", tmp_path / "copy")
    run(tmp_path / "c.img", "--from-tar", tmp_path / "tree.tar.gz")
    images = [(tmp_path / name).read_bytes() for name in ("a.img", "b.img", "c.img")]
    assert images[0] == images[1] == images[2]
    assert read_image(tmp_path / "a.img").superblock.created_ns == int(EPOCH) * 10**9


@pytest.mark.parametrize("epoch", ["now", "-1", "1e9", str(1 << 40)])
def test_a_bad_epoch(fail, tmp_path, monkeypatch, epoch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    assert f"SOURCE_DATE_EPOCH={epoch}: not" in fail(tmp_path / "a.img")
    assert os.listdir(tmp_path) == []


def test_a_mistake_in_the_options(fail, tmp_path, tree):
    image = tmp_path / "a.img"
    assert "one of them" in fail(image, "--from", tree, "--from-tar", "-")
    assert "--size: not a size: '4X'" in fail(image, "--size", "4X")
    assert "none.tar: No such file" in fail(image, "--from-tar", tmp_path / "none.tar")
    assert "none': cannot be read: No such file" in fail(image, "--from", tmp_path / "none")
    assert not image.exists()


def test_force(run, fail, tmp_path, tree):
    image = tmp_path / "a.img"
    run(image)
    assert "a.img: exists: use --force" in fail(image, "--from", tree)
    run(image, "--from", tree, "--force")
    assert b"d/f" in read_image(image).paths


XIPFS = [sys.executable, "-c", "from xipfs.cli.main import main; raise SystemExit(main())"]


def test_from_a_pipe(tmp_path, tree):
    archive = subprocess.Popen(["tar", "-C", tree, "-cf", "-", "."], stdout=subprocess.PIPE)
    command = [*XIPFS, "mkfs", tmp_path / "a.img", "--from-tar", "-"]
    done = subprocess.run(command, stdin=archive.stdout, capture_output=True, text=True, check=True)
    archive.stdout.close()
    assert archive.wait() == 0
    assert done.stderr == ""
    assert read_image(tmp_path / "a.img").read(b"d/f") == b"x" * 5000


def test_on_a_terminal_it_shows_how_far_it_is(tmp_path, tree):
    (tree / "large").write_bytes(bytes(8 << 20))
    terminal, stderr = pty.openpty()
    command = [*XIPFS, "mkfs", tmp_path / "a.img", "--from", tree]
    environment = os.environ | {"TERM": "xterm"}
    done = subprocess.run(command, stderr=stderr, capture_output=False, stdout=-1, env=environment)
    os.close(stderr)
    shown = os.read(terminal, 1 << 16)
    os.close(terminal)
    assert done.returncode == 0
    assert b" files, " in shown
    assert done.stdout.startswith(os.fsencode(tmp_path))


def test_hot_pages_are_laid_together(run, fail, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(b"a" * 40000)
    run("--from", tree, tmp_path / "plain.img")
    with open_image(tmp_path / "plain.img") as sb:
        ino = path_lookup(sb, b"/a").ino
    profile = tmp_path / "hot.txt"
    profile.write_text(f"{ino} 9\n{ino} 3\n")
    run("--from", tree, "--profile", profile, tmp_path / "hot.img")
    with open_image(tmp_path / "hot.img") as sb:
        extents = list(iter_extents(sb.nvram, sb.seed, path_lookup(sb, b"/a").disk))
    assert [(pgoff, nr_pages) for pgoff, _, nr_pages, _ in extents] == [
        (0, 3),
        (3, 1),
        (4, 5),
        (9, 1),
    ]
    assert extents[3][1] == extents[1][1] + 1
    said = fail("--from", tree, "--profile", tmp_path / "no.txt", tmp_path / "x.img")
    assert "no.txt: No such file or directory" in said
