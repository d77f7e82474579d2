"""How files get their names, and what becomes of work that was never finished."""

import errno
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import pytest

from labutils import manifests, paths
from labutils.errors import LabError, UsageError

HOST = f"{zlib.crc32(platform.node().encode()):08x}"
NOBODY = 2**22 + 1  # above the largest process id of Linux


@pytest.fixture(autouse=True)
def _as_a_new_process():
    paths._sweep.cache_clear()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_takes_the_manifest_of_the_old_one_away(tmp_path):
    paths.write_text(tmp_path / "m.onnx", "old")
    manifests.write(tmp_path / "m.onnx", {})
    with pytest.raises(ZeroDivisionError), paths.atomic(tmp_path / "m.onnx") as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert names(tmp_path) == ["m.onnx", "m.onnx.manifest.json"]  # nothing happened
    paths.write_text(tmp_path / "m.onnx", "new")
    assert names(tmp_path) == ["m.onnx"]


def test_what_a_dead_process_left_is_taken_away_and_nothing_else(tmp_path):
    gone = [f".m.{HOST}-{NOBODY}-abcd.tmp.onnx", f".labutils.{HOST}-{NOBODY}-abcd.tmp"]
    kept = [
        f".m.{HOST}-{os.getpid()}-abcd.tmp.onnx",  # ours
        f".m.{HOST}-{os.getppid()}-abcd.tmp.onnx",  # of one that lives
        f".m.00000000-{NOBODY}-abcd.tmp.onnx",  # of another machine, in a shared folder
        ".hidden",
        "m.tmp.onnx",
    ]
    (tmp_path / gone[1]).mkdir()
    for name in (*gone[:1], *kept, f"{gone[1]}/draft.dlc"):
        (tmp_path / name).write_text("")
    paths.write_text(tmp_path / "other.txt", "")
    assert names(tmp_path) == sorted([*kept, "other.txt"])


def test_a_later_process_of_the_same_number_does_not_protect_old_work(tmp_path, monkeypatch):
    left = tmp_path / f".m.{HOST}-{os.getpid()}-abcd.tmp.onnx"
    left.write_text("")
    import psutil

    begun = time.time() + 3600
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: begun)
    paths.write_text(tmp_path / "other.txt", "")
    assert not left.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows does not delete the current folder")
def test_a_current_folder_that_is_gone_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.here() == tmp_path
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="was deleted"):
        paths.here()


@pytest.mark.parametrize("name", ["LABUTILS_CACHE", "LABUTILS_GENERATED"])
def test_the_home_of_an_unknown_user_is_said(name, monkeypatch):
    monkeypatch.setenv(name, "~nouser/x")
    place = paths.cache_place if name == "LABUTILS_CACHE" else paths.generated_place
    for makes in (place, lambda: paths.folder("~nouser/x")):
        with pytest.raises(UsageError, match="~nouser/x: the home folder"):
            makes()


def test_a_folder_in_the_place_of_a_file_is_said_and_a_link_is_replaced(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        paths.write_text(tmp_path / "folder.txt", "new")
    (tmp_path / "outside").write_text("theirs")
    (tmp_path / "link").symlink_to("outside")
    paths.write_text(tmp_path / "link", "new")
    assert (tmp_path / "outside").read_text() == "theirs"
    assert names(tmp_path) == ["folder.txt", "link", "outside"]


def test_scratch_is_hidden_and_goes(tmp_path):
    with paths.scratch(tmp_path) as folder:
        (folder / "draft.dlc").write_text("")
        assert folder.parent == tmp_path and folder.name.startswith(".")
        paths._sweep.cache_clear()
        paths.write_text(tmp_path / "m.txt", "")  # does not take it for a dead one's
        assert (folder / "draft.dlc").exists()
    assert names(tmp_path) == ["m.txt"]


def test_a_lock_is_waited_for_and_ends_with_its_process(tmp_path):
    program = (
        "import sys, time; from labutils import paths\n"
        "with paths.locked(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with paths.locked(tmp_path, waiting=holder.kill):  # as the system may
            pass
    assert holder.returncode != 0


def occupied(path, how):
    """Take a name as another user: `nobody`, in a process that has become that user."""
    child = os.fork()
    if not child:
        try:
            os.setgid(65534)
            os.setuid(65534)
            if how == "link":
                path.symlink_to("/tmp")
            elif how == "file":
                path.write_text("")
            else:
                path.mkdir(mode=0o777)
                path.chmod(0o777)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert path.is_symlink() or path.exists()


@pytest.fixture
def places(monkeypatch):
    """A cache and a folder of temporary files that all users can write, the latter as /tmp is."""
    with tempfile.TemporaryDirectory() as made:  # pytest's own lets no other user pass
        here = Path(made).resolve()
        here.chmod(0o711)
        for name, mode in (("cache", 0o777), ("temporary", 0o1777)):
            (here / name).mkdir()
            (here / name).chmod(mode)
        monkeypatch.setenv("LABUTILS_CACHE", str(here / "cache"))
        monkeypatch.setattr(tempfile, "tempdir", str(here / "temporary"))
        yield here


posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes of POSIX")


@posix
def test_locks_lie_where_only_the_user_can_write(places):
    (places / "cache").chmod(0o700)
    with paths.locked(places / "x"):
        (lock,) = (places / "cache" / ".locks").iterdir()
    assert lock.parent.stat().st_mode & 0o777 == 0o700
    assert not list((places / "temporary").iterdir())
    lock.parent.chmod(0o755)  # as earlier versions made theirs
    with paths.locked(places / "x"):
        assert lock.parent.stat().st_mode & 0o777 == 0o700


@posix
def test_a_cache_that_all_can_write_holds_no_locks(places):
    with paths.locked(places / "x"):
        (folder,) = (places / "temporary").iterdir()
    assert folder.name == f"labutils-{os.getuid()}" and folder.stat().st_mode & 0o777 == 0o700
    assert not (places / "cache" / paths.LOCKS).exists()


@posix
@pytest.mark.skipif(os.name == "posix" and os.getuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("how", ["folder", "link", "file"])
def test_another_user_cannot_take_the_lock_folder(how, places):
    (places / "cache").chmod(0o1777)
    occupied(places / "cache" / ".locks", how)
    with paths.locked(places / "x"):  # the next place serves
        assert (places / "temporary" / f"labutils-{os.getuid()}").stat().st_uid == os.getuid()
    (places / "temporary" / f"labutils-{os.getuid()}").rename(places / "aside")
    occupied(places / "temporary" / f"labutils-{os.getuid()}", how)
    with pytest.raises(UsageError, match=r"only you can write.*LABUTILS_CACHE"):  # noqa: SIM117
        with paths.locked(places / "x"):
            pass


def test_a_process_that_died_and_was_not_buried_leaves_no_work(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    left = tmp_path / f".m.{HOST}-{dead.pid}-abcd.tmp.onnx"
    left.write_text("")
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT) if hasattr(os, "waitid") else dead.wait()
    paths.write_text(tmp_path / "other.txt", "")
    assert not left.exists()
    dead.wait()


@pytest.mark.skipif(os.name != "posix", reason="pictures are drawn by forks on POSIX only")
def test_helpers_that_draw_end_with_their_parent(tmp_path):
    from labutils.images import data

    context = multiprocessing.get_context("fork")
    parent = context.Process(target=_with_helper, args=(data, tmp_path / "pid"))
    parent.start()
    deadline = time.monotonic() + 300
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    helper = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.join()
    while _alive(helper) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(helper)


def _with_helper(data, file):
    pool = multiprocessing.get_context("fork").Pool(1, data._end_with, (os.getpid(),))
    paths.write_text(file, str(pool.apply(os.getpid)))
    time.sleep(600)


def _alive(pid):
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"


@pytest.mark.parametrize("suffix", ["", ".onnx", ".dlc", "/x.onnx"])
def test_a_name_that_no_file_can_have_is_told(suffix, lab):
    code, _, err = lab("run", "x" * 300 + suffix)
    assert code == 2 and "Error: " in err


def test_a_place_that_takes_no_file_is_refused_before_any_work(tmp_path, monkeypatch, lab):
    closed = tmp_path / "closed"
    closed.mkdir()
    allowed = os.access

    def access(path, mode):  # whoever runs the tests may write anywhere
        return allowed(path, mode) and not (Path(path) == closed and mode & os.W_OK)

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: pytest.fail("it began to work"))
    for command in (
        ("export", "mobilenet_v3_small", "-o", closed / "new" / "x.onnx"),
        ("quantize", "mobilenet_v3_small", "-o", closed / "x.onnx"),
        ("convert", "mobilenet_v3_small", "--target", "qnn", "-o", closed / "x.dlc"),
        ("repair", "mobilenet_v3_small", "--target", "snpe-2.7", "-o", closed / "x.onnx"),
    ):
        code, _, said = lab(*command)
        assert code == 2 and f"{closed} takes no files" in said, command
    assert not list(closed.iterdir())


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "a file in out: Read-only file system"),
        (errno.ENOENT, "a file in out: No such file"),
    ],
)
def test_what_is_found_out_while_a_file_is_written_is_one_sentence(number, words, lab, monkeypatch):
    unfinished = "out/.x.01234567-89-abcdef01.tmp.onnx"

    def refused(*_, **__):
        raise OSError(number, os.strerror(number), unfinished)

    monkeypatch.setattr("labutils.machine.doctor.examine", refused)
    code, _, said = lab("doctor")
    assert code == 2 and words in said and ".tmp" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("opened", [lambda place: paths.atomic(place / "x"), paths.scratch])
def test_a_disk_that_gets_full_is_told_and_nothing_stays(opened, tmp_path):
    with (
        pytest.raises(LabError, match=rf"The disk of {tmp_path} is full\. Free some room"),
        opened(tmp_path),
        open("/dev/full", "wb", buffering=0) as full,  # noqa: PTH123
    ):
        full.write(b"x")
    assert not names(tmp_path)


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="this system has no /sys")
@pytest.mark.parametrize(
    "write",
    [
        lambda place: paths.write_text(place / "labutils.txt", ""),
        lambda place: paths.write_bytes(place / "labutils.bin", b""),
        lambda place: paths.scratch(place).__enter__(),
    ],
)
def test_a_place_that_takes_no_files_is_told_in_python_too(write):
    with pytest.raises(UsageError, match=r"^Cannot write into /sys: .* Name another place"):
        write(Path("/sys"))


@pytest.mark.parametrize("name", ["/proc/x.onnx", "file/x.onnx", "folder", "n" * 300, "new/x.onnx"])
def test_where_a_result_goes_is_tried_and_nothing_is_left(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    if name.startswith("new"):
        paths.refuse_unwritable(name)
    else:
        with pytest.raises(UsageError, match=r"^Cannot write "):
            paths.refuse_unwritable(name)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_error_of_the_system_keeps_its_own_words(lab, monkeypatch, capsys):
    def refused(*_, **__):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), "somewhere")

    monkeypatch.setattr("labutils.machine.doctor.examine", refused)
    with pytest.raises(SystemExit):
        lab("doctor")
    assert capsys.readouterr().err == "OSError: [Errno 22] Invalid argument: 'somewhere'\n"
