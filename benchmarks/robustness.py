"""What the lab withstands: bad input, accidents to files, strikes; and the memory of a conversion.

The corpus, the accidents and the strikes are those of the tests (tests/bad_files.py, mutations.py,
faults.py), in larger numbers. Seconds are this machine's. Linux only; needs Qualcomm's wheel.

    python benchmarks/robustness.py                # an hour; 10 strikes in each stage
    python benchmarks/robustness.py --only input   # all but the strikes
    python benchmarks/robustness.py --only strikes # resumes where it was stopped
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

from labutils import paths
from labutils.lab import recorded

if TYPE_CHECKING:
    from staged_strikes import Struck

sys.path.insert(0, str(paths.ROOT / "tests"))

CONVERT = ["mobilenet_v3_large", "--target", "snpe-2.7", "--repair"]
STRIKES = paths.ROOT / "benchmarks" / "results" / "strikes.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=500, help="damaged twice, two calls each")
    parser.add_argument("--files", type=int, default=500, help="damaged files of each other kind")
    parser.add_argument("--strikes", type=int, default=10, help="in each stage (10)")
    parser.add_argument("--only", choices=("input", "strikes"), help="one half")
    parser.add_argument("--kept", type=Path, default=STRIKES, help="strikes made so far")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    command = " ".join(["python benchmarks/robustness.py", *sys.argv[1:]])
    print(f"Recorded {time.strftime('%Y-%m-%d')} with: {command}, on")
    print(f"{recorded.machine()}, {psutil.virtual_memory().total / 2**30:.0f} GB of memory")
    with tempfile.TemporaryDirectory(prefix="labutils-robustness-") as folder:
        places = [paths.folder(Path(folder, name)) for name in "abcde"]
        failed = 0
        if chosen.only != "strikes":
            failed += corpus(places[0])
            failed += models(places[1], chosen.models, chosen.seed)
            failed += files(places[2], chosen.files, chosen.seed)
            memory(places[4])
        if chosen.only != "input":
            failed += strikes(places[3], chosen.strikes, chosen.seed, chosen.kept)
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
    tried = f"{2 * count} files, {len(calls)} calls, seed {seed}"
    return told(bad_files.run(folder, calls), tried)


def told(found: dict, tried: str) -> int:
    """Print what calls ended in; return how many did not end as they should."""
    import bad_files

    wrong = {name: o for name, o in found.items() if not bad_files.well_told(o)}
    ends = Counter(
        bad_files.typed(o) or ENDS[o["code"]] for n, o in found.items() if n not in wrong
    )
    seconds = max(outcome.get("seconds", 0) for outcome in found.values())
    peak = max(outcome.get("peak_mib", 0) for outcome in found.values())
    print(f"{tried}; the slowest took {seconds:.1f} s of a core, the process grew to {peak} MiB")
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

    from labutils import dlc

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
        print(
            f"{suffix:<13} {count:>5} files, seed {seed}: {read_well:>5} read, "
            f"{refused:>5} refused, {len(wrong)} untyped"
        )
        print("".join(f"    {words}\n" for words in wrong), end="")
        failed += len(wrong)
    return failed


def strikes(folder: Path, each: int, seed: int, kept: Path) -> int:
    """Strike every stage of journeys and of conversions, in two folders at once.

    Each strike is written down in `kept` at once, and not made again by a later call.
    """
    import staged_strikes
    from faults import Ground

    title("Strikes in every stage of `labutils journey` and `labutils convert`")
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else []
    done = [staged_strikes.loaded(line) for line in lines]
    paths.folder(kept.parent)

    def note(struck: Struck) -> None:
        with kept.open("a", encoding="utf-8") as file:
            file.write(staged_strikes.saved(struck) + "\n")

    def campaign(number: int) -> tuple[list[Struck], list[str]]:
        command = list(staged_strikes.STAGES)[number]
        ground = Ground(paths.folder(folder / command), f"{seed} {command} {len(done)}")
        made = [struck for struck in done if struck.command == command]
        run = staged_strikes.Campaign(ground, each, made, note)
        short = [f"{command}, {stage}: too few strikes" for stage in run.strike_stages(command)]
        return run.done, short + run.left_alone(command)

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(campaign, range(2)))
    struck = [one for listed, _ in found for one in listed]
    afterwards = [words for _, listed in found for words in listed]
    print(staged_strikes.table(struck))
    wrong = [one for one in struck if one.wrong or one.survivors or one.code is None]
    for words in (*wrong, *afterwards):
        print(f"    {words}")
    print(f"{len(struck)} strikes, seed {seed}: {len(wrong)} with a loss, a survivor or a hang")
    print(f"left alone afterwards, journey and convert completed; wrong then: {len(afterwards)}")
    return len(wrong) + len(afterwards)


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
