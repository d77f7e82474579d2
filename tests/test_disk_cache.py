"""The cache is listed as it is; what is deleted is this user's, the lab's, and inside it."""

import io
import json
import os
import shutil
import sys

import pytest

from labutils import __main__, paths
from labutils.errors import UnknownNameError, UsageError
from labutils.machine import disk_cache


def write(file, size=10):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * size)
    return file


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with one file of 10 bytes in some of its folders, and a lock."""
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for name in ("things16/0123/val-64-0000001.npy", "weights/net.pth", "progress/ann.jsonl"):
        write(paths.cache() / name)
    with paths.locked(tmp_path / "something"):
        return paths.cache()


def files(folder):
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    return sorted(name for name in names if not name.startswith(paths.LOCKS))


def locks():
    """The lock files there are, and their folders."""
    there = [folder for folder in paths.lock_places() if folder.is_dir()]
    return [*there, *(lock for folder in there for lock in folder.iterdir())]


def cleared(*names, everything=False):
    return disk_cache.clear(disk_cache.chosen(names, everything=everything), everything=everything)


def test_the_list_says_what_is_there_how_large_and_when_last_used(cache):
    os.utime(cache / "weights" / "net.pth", (86400 * 366, 86400 * 365))  # read in 1971
    write(cache / "weights" / "net.pth.json", 32)
    os.utime(cache / "weights" / "net.pth.json", (0, 86400 * 366))
    found = {entry.name: entry for entry in disk_cache.survey().entries}
    assert list(found) == ["progress", "things16", "weights"]
    assert (found["weights"].files, found["weights"].bytes) == (2, 42)
    assert found["weights"].used == 86400 * 366
    assert disk_cache.survey().bytes == 62
    assert "1971-01-02" in str(disk_cache.survey())


def test_a_list_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "none"))
    assert "holds nothing" in str(disk_cache.survey())
    assert cleared(everything=True).files == 0
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_made_again_stays_unless_it_is_named(cache):
    write(cache / "training" / "state.pt")
    write(cache / "from_tomorrow" / "x")
    assert cleared().files == 2
    assert files(cache) == [
        paths.CACHE_TAG, "from_tomorrow/x", "progress/ann.jsonl", "training/state.pt"
    ]  # fmt: skip
    assert cleared("progress").bytes == 10
    assert files(cache) == [paths.CACHE_TAG, "from_tomorrow/x", "training/state.pt"]
    with pytest.raises(UnknownNameError, match="wieghts"):
        cleared("wieghts")


def test_all_takes_the_folder_and_the_locks_as_well(cache):
    assert len(locks()) >= 2
    assert cleared(everything=True).files == 3
    assert not cache.exists()
    assert not locks()


def test_a_lock_that_is_held_stays(cache, tmp_path):
    with paths.locked(tmp_path / "mine"):
        cleared(everything=True)
        assert len(locks()) == 2  # its folder, and itself
    cleared(everything=True)
    assert not locks()


def test_a_lock_in_the_cache_goes_as_the_others_do(cache):
    write(cache / paths.LOCKS / "0123.lock", 0)
    assert paths.LOCKS not in {entry.name for entry in disk_cache.survey().entries}
    cleared(everything=True)
    assert not cache.exists()


# --- what is not the lab's ----------------------------------------------------------------------


def test_nothing_is_deleted_through_a_link(cache, tmp_path):
    outside = write(tmp_path / "pictures" / "anns.jpg")
    (cache / "things16" / "folder").symlink_to(outside.parent)
    (cache / "things16" / "file.npy").symlink_to(outside)
    (cache / "photographs").symlink_to(outside.parent)
    done = cleared(everything=True)
    assert outside.is_file()
    assert not (cache / "things16").exists()
    assert done.left == (f"{cache / 'photographs'} (not a folder that the lab made)",)
    assert (cache / "photographs").is_symlink()


@pytest.mark.parametrize("tag", [None, "Signature: 8a477f597d28d172789f06886806bc55\n# Another's"])
def test_a_folder_that_the_lab_did_not_make_is_left_alone(tag, tmp_path, monkeypatch):
    home = tmp_path / paths.PROJECT  # a clone may have that name
    photograph = write(home / "photographs" / "ann.jpg")
    if tag:
        (home / paths.CACHE_TAG).write_text(tag)
    monkeypatch.setenv("LABUTILS_CACHE", str(home))
    write(paths.cache() / "weights" / "net.pth")
    for everything in (False, True):
        with pytest.raises(UsageError, match="not made by the lab"):
            cleared(everything=everything)
    assert photograph.is_file()


def test_a_cache_of_an_earlier_version_is_known_by_its_place_and_content(tmp_path, monkeypatch):
    monkeypatch.delenv("LABUTILS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write(tmp_path / paths.PROJECT / "things16" / "x.npy")
    assert cleared().files == 1
    write(tmp_path / paths.PROJECT / "things16" / "x.npy")
    write(tmp_path / paths.PROJECT / "pyproject.toml")
    with pytest.raises(UsageError, match="not made by the lab"):
        cleared()


def test_the_mark_is_set_once_and_only_in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path))
    tag = paths.cache() / paths.CACHE_TAG
    assert tag.read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    tag.unlink()
    write(tmp_path / "mine.txt")
    paths.cache()
    assert not tag.exists()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system's files have no owner's number")
def test_files_of_others_in_a_shared_cache_stay(cache, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: (cache.stat().st_uid or 1) + 1)
    done = cleared()
    assert done.files == 0
    assert len(done.left) == 2 and all("another user's" in line for line in done.left)


@pytest.mark.parametrize("everything", [False, True])
def test_files_that_vanish_meanwhile_are_no_fault(everything, cache, monkeypatch):
    """As when two processes clear at once: each walk finds files that the other deletes."""
    walk = disk_cache._files

    def robbed(folder):
        found = list(walk(folder))
        for file in found:
            file.unlink()
        shutil.rmtree(cache / "weights", ignore_errors=True)
        return iter(found)

    part = disk_cache.chosen(everything=everything)
    monkeypatch.setattr(disk_cache, "_files", robbed)
    assert disk_cache.clear(part, everything=everything).left == ()
    assert disk_cache.survey().bytes == 0
    shutil.rmtree(cache, ignore_errors=True)
    assert disk_cache.clear(part, everything=everything).files == 0


def test_a_folder_that_is_not_the_labs_is_not_walked(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path))
    write(tmp_path / "usr" / "file")
    monkeypatch.setattr(disk_cache, "_files", lambda folder: pytest.fail(f"{folder} is walked"))
    assert "holds nothing of the lab" in str(disk_cache.survey())
    with pytest.raises(UsageError, match="not made by the lab"):
        cleared(everything=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("how", ["pipe", "device", "long"])
def test_a_mark_that_is_no_plain_small_file_is_none(how, cache):
    tag = cache / paths.CACHE_TAG
    text = tag.read_text()
    tag.unlink()
    if how == "pipe":
        os.mkfifo(tag)
    elif how == "device":
        tag.symlink_to("/dev/zero")
    else:
        tag.write_text(text + "#" * 5000)
    with pytest.raises(UsageError, match="not made by the lab"):
        cleared()


def test_a_cache_that_is_a_file_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABUTILS_CACHE", str(write(tmp_path / "file")))
    for action in (["list"], ["clear", "--yes"]):
        assert __main__.main(["cache", *action]) == 2
        assert "is not a folder" in capsys.readouterr().err


# --- the command --------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("answered", "left"), [("y\n", 1), ("n\n", 3), ("\n", 3), ("", 3)])
def test_a_terminal_is_asked(cache, monkeypatch, capsys, answered, left):
    monkeypatch.setattr(sys, "stdin", Terminal(answered))
    assert __main__.main(["cache", "clear"]) == 0
    said = capsys.readouterr()
    assert "things16" in said.out and "progress" not in said.out
    assert "[y/N]" in said.err
    assert len(files(cache)) - 1 == left  # beside the mark


def test_without_a_terminal_yes_is_needed(cache, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert __main__.main(["cache", "clear"]) == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert __main__.main(["cache", "clear"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert len(files(cache)) == 4
    assert __main__.main(["cache", "clear", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 2
    assert __main__.main(["cache", "list", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in facts["entries"]] == ["progress"]
    assert __main__.main(["cache", "list", "--all"]) == 2
    assert __main__.main(["cache", "clear", "progress", "--all", "--yes"]) == 2
    assert len(files(cache)) == 2
