"""What the lab withstands: bad input, accidents to files, kills; and the memory of a conversion.

The corpus, the accidents and the strikes are those of the tests (tests/bad_files.py, mutations.py,
faults.py), in larger numbers. Seconds are this machine's. Linux only; needs Qualcomm's wheel.

    python benchmarks/robustness.py              # minutes; 50 kills
    python benchmarks/robustness.py --kills 0    # input only
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from labutils import paths, recorded

if TYPE_CHECKING:
    from faults import Ground, Strike

sys.path.insert(0, str(paths.ROOT / "tests"))

CONVERT = ["mobilenet_v3_large", "--target", "snpe-2.7", "--repair"]
JOURNEYS = 2 / 5  # of the strikes; a conversion is shorter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=500, help="damaged twice, two calls each")
    parser.add_argument("--files", type=int, default=500, help="damaged files of each other kind")
    parser.add_argument("--kills", type=int, default=50, help="points of journey and convert")
    parser.add_argument("--at-once", type=int, default=2, help="folders in which that happens")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    command = " ".join(["python benchmarks/robustness.py", *sys.argv[1:]])
    print(f"Recorded {time.strftime('%Y-%m-%d')} with: {command}, on")
    print(f"{recorded.machine()}, {psutil.virtual_memory().total / 2**30:.0f} GB of memory")
    with tempfile.TemporaryDirectory(prefix="labutils-robustness-") as folder:
        places = [paths.folder(Path(folder, name)) for name in "abcde"]
        failed = corpus(places[0])
        failed += models(places[1], chosen.models, chosen.seed)
        failed += files(places[2], chosen.files, chosen.seed)
        if chosen.kills:
            failed += kills(places[3], chosen.kills, chosen.at_once, chosen.seed)
        memory(places[4])
    sys.exit(1 if failed else 0)


def title(words: str) -> None:
    print(f"\n{words}\n{'-' * len(words)}", flush=True)


def corpus(folder: Path) -> int:
    """Make every call of the corpus of bad input."""
    import bad_files

    title("Bad input: files that are cut, foreign, hostile or impossible")
    calls = bad_files.build(folder)
    files = len([path for path in folder.iterdir() if path.is_file()])
    return told(bad_files.run(folder, calls), f"{files} files, {len(calls)} calls")


def models(folder: Path, count: int, seed: int) -> int:
    """Diagnose and run damaged models."""
    import bad_files
    import mutations

    title("Accidents to an ONNX model, in its bytes or in its fields")
    calls = mutations.build(folder, count, seed)
    return told(bad_files.run(folder, calls), f"{2 * count} files, {len(calls)} calls")


def told(found: dict, tried: str) -> int:
    """Print what calls ended in; return how many did not end as they should."""
    import bad_files

    wrong = {name: o for name, o in found.items() if not bad_files.well_told(o)}
    ends = Counter(
        bad_files.typed(o) or ENDS[o["code"]] for n, o in found.items() if n not in wrong
    )
    seconds = max(outcome.get("seconds", 0) for outcome in found.values())
    peak = max(outcome.get("peak_mib", 0) for outcome in found.values())
    print(f"{tried}; the slowest took {seconds:.1f} s, the process grew to {peak} MiB")
    for name, times in ends.most_common():
        print(f"  {times:>6}  {name}")
    print(f"  {len(wrong):>6}  crashes, tracebacks, and errors without a type")
    for name, outcome in wrong.items():
        print(f"          {name}: {outcome['code']} {outcome['said'][-200:]}")
    return len(wrong)


ENDS = {0: "done", 1: "judged: something blocks the model"}


def files(folder: Path, count: int, seed: int) -> int:
    """Read damaged files of the other kinds."""
    import mutations
    import onnx

    from labutils.targets import dlc

    title("Accidents to other files: tables, lists, weights, programs, DLCs, manifests, pictures")
    onnx.save(mutations.good_model(), folder / "good.onnx")
    dlc.write(folder / "good.onnx", folder / "good.dlc")
    readers = mutations.readers()
    readers[".dlc"] = ((folder / "good.dlc").read_bytes(), dlc.info)
    failed = 0
    for suffix, (content, read) in readers.items():
        chance, wrong, refused = random.Random(seed), [], 0
        for number in range(count):
            end = ".dlc.manifest.json" if suffix == ".json" else suffix
            path = folder / f"{number}{end}"
            path.write_bytes(mutations.damaged(content, chance))
            outcome = mutations.outcome(read, path)
            refused += outcome == "refused"
            wrong += [outcome] if outcome not in ("read", "refused") else []
        read_well = count - refused - len(wrong)
        print(f"{suffix:<13} {read_well:>5} read, {refused:>5} refused, {len(wrong)} untyped")
        print("".join(f"    {words}\n" for words in wrong), end="")
        failed += len(wrong)
    return failed


def kills(folder: Path, points: int, at_once: int, seed: int) -> int:
    """Strike at random points of journeys and conversions, in some folders at once."""
    from faults import Ground

    title(f"Kills at {points} random points of `labutils journey` and `labutils convert`")
    grounds = [Ground(paths.folder(folder / str(n)), seed + n) for n in range(at_once)]
    shares = [points // at_once + (n < points % at_once) for n in range(at_once)]
    with ThreadPoolExecutor(at_once) as threads:
        done = list(threads.map(campaign, grounds, shares))
    strikes = [struck for listed, _ in done for struck in listed]
    wrong = [words for _, listed in done for words in listed]
    print("".join(f"    {words}\n" for words in wrong), end="")
    hangs = sum(struck.code is None for struck in strikes)
    survivors = sum(len(struck.survivors) for struck in strikes)
    hows = ", ".join(f"{n} x {how}" for how, n in Counter(s.how for s in strikes).most_common())
    print(f"{len(strikes)} struck ({hows}) in {at_once} folders at once")
    print(f"losses: {len(wrong) - survivors}; hangs: {hangs}; outlived theirs: {survivors}")
    return len(wrong) + hangs


def campaign(ground: Ground, points: int) -> tuple[list[Strike], list[str]]:
    """Strike in one folder, then let a run complete; return the strikes and what was lost."""
    from faults import everything_is_described

    ground.complete("journey", "journey")  # two at once
    ground.complete("convert")
    strikes, wrong = [], ground.lost() + ground.unfinished()
    while len(strikes) < points:
        struck = ground.strike("journey" if ground.chance.random() < JOURNEYS else "convert")
        print(struck, flush=True)
        if struck.how != "too late":  # it had ended before
            strikes.append(struck)
            wrong += [*struck.lost, *struck.survivors]
    ground.complete("journey", "convert")
    wrong += ground.lost() + ground.unfinished() + ground.survivors()
    wrong += [] if everything_is_described(ground.artifacts) else ["an artifact is not described"]
    print("left alone: journey and convert completed", flush=True)
    return strikes, wrong


def memory(folder: Path) -> None:
    """Print the most memory that a conversion and its workers held, sampled."""
    title(f"Memory of `labutils convert {' '.join(CONVERT)}`")
    for more in ([], ["--quantize", "int8"]):
        command = [sys.executable, "-m", "labutils", "convert", *CONVERT, *more]
        command += ["-o", str(folder / "m.dlc")]
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        most, together = {"process": 0.0, "workers": 0.0}, 0.0
        while process.poll() is None:
            held = resident(process.pid)
            most = {who: max(most[who], held[who]) for who in most}
            together = max(together, sum(held.values()))
            time.sleep(0.05)
        if process.returncode:
            sys.exit(f"convert ended with {process.returncode}")
        print(
            f"{' '.join(more) or 'float':<16} process {most['process']:.0f} MiB, its workers "
            f"{most['workers']:.0f} MiB, together {together:.0f} MiB; "
            f"{time.monotonic() - begun:.0f} s"
        )


def resident(pid: int) -> dict[str, float]:
    """MiB of a process, and of its children together, at this moment."""
    held = {"process": 0.0, "workers": 0.0}
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        held["process"] = process.memory_info().rss / 2**20
        for child in process.children(recursive=True):
            held["workers"] += child.memory_info().rss / 2**20
    return held


if __name__ == "__main__":
    main()
