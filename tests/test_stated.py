"""Figures in text are those of the results that they come from: recorded anew, they must follow."""

import csv
import functools
import json
import re
from collections import Counter

import numpy as np
import pytest

from labutils import metrics, paths, quantize
from labutils.compare import gating

RESULTS = paths.ROOT / "benchmarks" / "results"


@functools.cache
def texts():
    """File -> its text on one line: pages, the notebooks' words, the source."""
    found = {"README.md": (paths.ROOT / "README.md").read_text("utf-8")}
    for file in sorted((paths.ROOT / "notebooks").glob("*.md")):
        found[f"notebooks/{file.name}"] = file.read_text("utf-8")
    for file in sorted((paths.ROOT / "notebooks").glob("0*.ipynb")):
        cells = json.loads(file.read_text("utf-8"))["cells"]
        words = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        found[file.name] = "\n".join(words)
    for file in sorted((paths.ROOT / "labutils").rglob("*.py")):
        found[str(file)] = file.read_text("utf-8")
    return {name: " ".join(text.split()) for name, text in found.items()}


def stated(pattern):
    """Return the figures of the one sentence that says this, commas taken out."""
    found = [match.groups() for text in texts().values() for match in re.finditer(pattern, text)]
    assert len(found) == 1, f"{len(found)} places say {pattern!r}"
    return tuple(value.replace(",", "") for value in found[0])


def records(name):
    lines = (RESULTS / f"{name}.csv").read_text("utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def quantized(model, what, runtime="ORT", table="quantization_things16"):
    """Return the one row of a table of quantizers."""
    short = f"mobilenet_v3_{model}"
    (row,) = (
        row for row in records(table)
        if (row["model"], row["what"], row["runtime"]) == (short, what, runtime)
    )  # fmt: skip
    return row


def ladder(name="ladder_things16"):
    return {row["stage"]: row for row in records(name)}


# --- the ladder -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "stage"),
    [("the repaired network, as ONNX", "ONNX"), ("HTP fp16 (simulated)", "HTP fp16"),
     ("HTP a16w8 (simulated)", "HTP a16w8"), ("HTP int8 (simulated)", "HTP int8"),
     ("int8 on the CPU", "int8 CPU")],
)  # fmt: skip
def test_readme_ladder(line, stage):
    row = ladder("ladder")[stage]
    told = stated(
        rf"\| {re.escape(line)} \| ([\d,]+) \| (\S+ \[[^|]*\]) \| ([\d.]+) % \| ([\d.]+) \|"
    )
    points = [float(row[f"difference_{end}"]) for end in ("points", "low", "high")]
    share = f"{100 * float(row['agreement']):.2f}".removesuffix(".00")
    size = f"{int(row['bytes']) / 1e6:.1f}"
    assert told == (row["n"], "{:+.2f} [{:+.2f} {:+.2f}]".format(*points), share, size)


def test_readme_original_of_the_ladder():
    rows = ladder("ladder")
    known = f"{100 * float(rows['PyTorch']['top1']):.2f}"
    assert stated(r"of which PyTorch knows ([\d.]+) %") == (known,)
    assert rows["patched"]["agreement"] == "1.0"


def right(stage, name):
    row = ladder(name)[stage]
    return str(round(float(row["top1"]) * int(row["n"])))


@pytest.mark.parametrize("image_set", ["", "_things16"])
def test_single_answers_are_those_of_the_ladder(image_set):
    answers = records(f"answers{image_set}")
    for stage in ("PyTorch", "int8 CPU"):
        counted = sum(row[stage] == row["truth"] for row in answers)
        assert right(stage, f"ladder{image_set}") == str(counted)


def test_numbers_of_right_answers():
    first, cpu = right("PyTorch", "ladder"), right("int8 CPU", "ladder")
    assert stated(r"([\d,]+) against ([\d,]+): PyTorch wins\?") == (first, cpu)
    assert stated(r"PyTorch has ([\d,]+) right, the int8 file ([\d,]+)\.") == (first, cpu)
    easy = {right(stage, "ladder_things16") for stage in ("PyTorch", "int8 CPU")}
    assert set(stated(r"On Things-16 both have ([\d,]+) of 1,600 right")) == easy
    apart = [(row["PyTorch"] == row["truth"], row["int8 CPU"] == row["truth"])
             for row in records("answers")]  # fmt: skip
    lost, won = apart.count((True, False)), apart.count((False, True))
    told = stated(r"(\d+), and `'a'`\. The int8 file loses (\d+) images and wins (\d+)\.")
    assert told == (str(lost + won), str(lost), str(won))
    assert metrics.paired_difference(*np.array(apart).T).interval[0] > 0  # hence 'a'


def test_rows_of_the_simulator_that_differ_by_one_image():
    stated(r"As a DLC on the HTP it gets (one) fewer, and a16w8 gets one more")
    hits = {name: int(right(name, "ladder_things16")) for name in ladder()}
    assert hits["PyTorch"] == hits["int8 CPU"]
    assert [hits[f"HTP {name}"] - hits["PyTorch"] for name in ("int8", "a16w8")] == [-1, 1]


def test_crops_of_photographs():
    rows = {(row["what"], row["runtime"]): row for row in records("imagenet")}
    row = rows["int8", "ORT"]
    shares = [row[name].split()[0] for name in ("agrees with fp32 % [95 %]", "of clear crops %")]
    told = stated(r"of ([\d,]+) the int8 file keeps the class of ([\d.]+) %, .{0,60}? ([\d.]+) %")
    assert told == (row["crops"], *(f"{float(share):.1f}" for share in shares))


def test_sizes_of_the_files():
    size = {name: int(row["bytes"] or 0) for name, row in ladder().items()}
    assert stated(r"the step to 16-bit floats (halves) the file") == ("halves",)
    assert size["HTP fp16"] / size["ONNX"] == pytest.approx(0.5, abs=0.03)
    assert stated(r"8-bit weights takes a (good third) of the rest") == ("good third",)
    assert 1 / 3 < 1 - size["HTP int8"] / size["HTP fp16"] < 0.45
    told = stated(r"Less than twice: about ([\d.]+) times\.")
    assert float(told[0]) == pytest.approx(size["HTP fp16"] / size["HTP int8"], abs=0.06)


# --- quantization ---------------------------------------------------------------------------------


OURS = {
    "int8": "PTQ int8",
    "int8, one scale per tensor": "PTQ int8, one scale per tensor",
    "16 bits for at most 15 % of the MACs": "mixed, 15 % of the MACs",
    "4-bit weights, adaptive rounding (`w4a8_adaptive`)": "PTQ w4a8, adaptive rounding",
    "int8, trained for 150 steps (`int8_qat`)": "QAT int8",
    "4-bit weights, trained for 1,000 steps (`w4a8_qat`)": "QAT w4a8",
}


def compressed(what):
    """Return in which table a way to quantize is: those that are trained have their own."""
    return "quantization_trained" if what.startswith("QAT") else "quantization"


@pytest.mark.parametrize("line", OURS)
def test_readme_compression(line):
    """Points with their interval, agreement, MB and time by fp32's, for both networks."""
    figures = r"(\S+ \[[^|]*\]) \| ([\d.]+) % \| ([\d.]+) \| ([\d.]+) \|"
    told = stated(rf"\| {re.escape(line)} \| {figures} {figures}")
    what = OURS[line]
    rows = [quantized(size, what, table=compressed(what)) for size in ("large", "small")]
    assert {row["n"] for row in rows} == {"20000"}
    found = [
        (row["minus fp32, points"].replace(",", ""), row["agrees %"], f"{float(row['MB']):.1f}",
         row["time / fp32"])
        for row in rows
    ]  # fmt: skip
    assert told == (*found[0], *found[1])


def test_readme_of_the_simulator():
    told = stated(
        r"int8 has (\S+ \[[^\]]*\]) points to fp32, and with .{0,60}? it has (\S+ \[[^\]]*\])"
    )
    rows = [quantized("large", name, "HTP simulator", "quantization_htp")
            for name in ("PTQ int8", "mixed, 15 % of the MACs")]  # fmt: skip
    assert {row["n"] for row in rows} == {"10000"}
    assert told == tuple(row["minus fp32, points"].replace(",", "") for row in rows)


def test_readme_verdict():
    placed = [
        group
        for table in ("quantization", "quantization_trained")
        for group in re.findall(
            r"^\w+, (.+?): ours (\w+) in top-1, ",
            (RESULTS / f"{table}.txt").read_text("utf-8"),
            re.M,
        )
    ]
    ahead = ("int8 per channel", "int8 per tensor", "w4a8", "QAT int8", "QAT w4a8")
    expected = [("16 bits mixed", "tied"), *((group, "ahead") for group in ahead)]
    assert Counter(placed) == dict.fromkeys(expected, 2)
    stated(r"ours is (ahead) in int8, in int8 with one scale and in 4-bit weights, of both "
           r"networks, and tied where some or all activations have 16 bits")  # fmt: skip
    stated(r"(Ours is ahead) of each of them in top-1, in both groups and of both networks")


@pytest.mark.parametrize("preset", ["int8_qat", "w4a8_qat"])
def test_readme_steps(preset):
    (steps,) = stated(rf"trained for ([\d,]+) steps \(`{preset}`\)")
    assert int(steps) == quantize.load_recipe(preset).qat.steps


PEERS = {
    "int8": "int8 per channel",
    "int8, one scale per tensor": "int8 per tensor",
    "16 bits for some or all": "16 bits mixed",
    "4-bit weights": "w4a8",
    "int8, trained": "QAT int8",
    "4-bit weights, trained": "QAT w4a8",
}


@pytest.mark.parametrize("line", PEERS)
def test_readme_best_peers(line):
    """Of the peers' rows of a group the one with the most right answers, for both networks."""
    for place, size in enumerate(("large", "small")):
        rows = [
            row for row in records(compressed(PEERS[line]))
            if (row["model"], row["group"], row["by"]) ==
            (f"mobilenet_v3_{size}", PEERS[line], "peer")
            and row["top-1 % [95 %]"][:1].isdigit()
        ]  # fmt: skip
        best = max(rows, key=lambda x: (float(x["top-1 % [95 %]"].split()[0]), float(x["SQNR dB"])))
        told = stated(rf"\| \*{re.escape(line)}\* \| ([^|]+) \| ([^|]+) \|")
        assert told[place] == f"{best['what']}: {best['minus fp32, points']}".replace(",", "")


@pytest.mark.parametrize("recipe", ["int8@1", "int8@2"])
def test_readme_default_int8(recipe):
    """The preset on both networks, as recorded: name, recipe, runtime, n, points, ..."""
    file = paths.ROOT / "benchmarks" / "results" / "default_int8_test.txt"
    lines = file.read_text("utf-8").splitlines()
    rows = [re.split(r" {2,}", line.strip()) for line in lines if f" {recipe} " in line]
    points = {where: [r[4].replace(",", "") for r in rows if r[2:4] == list(where)]
              for where in (("ORT", "20000"), ("HTP", "10000"))}  # fmt: skip
    told = stated(rf"\| `{recipe}`, [^|]*\| (\S+ \[.*?\]) \| (\S+ \[.*?\]) \|")
    assert points["ORT", "20000"] == list(told)
    if recipe == "int8@2":
        told = stated(r"\| the same on the HTP simulator, n=10,000 \| (\S+ \[.*?\]) \| \|")
        assert points["HTP", "10000"] == list(told)


def test_what_room_is_worth_with_256_calibration_images():
    gains = []
    for model in ("small", "large"):
        room, plain = (
            float(quantized(model, f"PTQ a16w8, {way}")["SQNR dB"])
            for way in ("ranges with room", "all 16-bit")
        )
        gains.append(f"{room - plain:.1f}")
    pattern = r"With (256) room is worth ([\d.]+) dB here and ([\d.]+) dB on the large network"
    assert stated(pattern) == ("256", *gains)


def test_what_the_weight_constraint_costs():
    names = ("PTQ int8, one scale per tensor", "and weights within 16 medians",
             "and weights within 32 medians")  # fmt: skip
    told = stated(r"16 takes the logit SQNR from ([\d.]+) to ([\d.]+) dB .{0,60}?32 to ([\d.]+)")
    assert told == tuple(quantized("small", name)["SQNR dB"] for name in names)


# --- calibration ----------------------------------------------------------------------------------


def calibration():
    lines = (RESULTS / "calibration.txt").read_text("utf-8").splitlines()
    points, agrees = r"(\S+) points \[.*?\] \(n=20000\)", r"[\d.]+ % \[.*?\] \(n=20000\)"
    pattern = rf"(\S.*?\S) +(alone|in int8) +{points} +{agrees} +(-?[\d.]+) +(\d+) +\d+"
    found = [re.fullmatch(pattern, line) for line in lines]
    return {m.groups()[:2]: m.groups()[2:] for m in found if m}


def test_ranges_in_the_docstring_of_static_quantization():
    words = {"min-max": r"all images \(min-max\)", "min-max without 1 %": "without 1 % on a side",
             "min-max without 5 %": "without 5 % on a side"}  # fmt: skip
    for name, told in words.items():
        rows = [calibration()[name, within] for within in ("alone", "in int8")]
        figures = r"(\S+) \(([\d.]+) dB\)"
        assert stated(rf"{told} {figures} {figures}") == (*rows[0][:2], *rows[1][:2])
    plain = quantized("large", "PTQ a16w8, all 16-bit")
    told = stated(r"a16w8 takes plain min-max \(([\d.]+) dB on ([\d,]+) images")
    assert told == (plain["SQNR dB"], plain["n"])


def test_memory_of_calibration():
    most = max(int(row[2]) for row in calibration().values())
    assert stated(r"on 1,000 images takes ([\d.]+) GB") == (f"{most / 1000:.1f}",)


# --- surgery --------------------------------------------------------------------------------------


def test_coverage():
    rows = [
        row for row in records("surgery_coverage")
        if row["target"] == "snpe-2.7" and row["model"].startswith(("tv:", "timm:"))
    ]  # fmt: skip
    passed = [row for row in rows if row["gate"] and not row["gate"].startswith("FAILED")]
    unknown = [row for row in rows if int(row["after"].rpartition("/")[2])]
    told = stated(r"Of (\d+) torchvision and timm classifiers (\d+) become a DLC and pass the gate "
                  r"after exact repair, but (\d+) of them keep")  # fmt: skip
    assert told == tuple(str(len(found)) for found in (rows, passed, unknown))


def test_what_conditioning_is_good_for():
    text = (RESULTS / "conditioning.txt").read_text("utf-8")
    rows = dict(re.findall(r"^tv:(\w+) +(\S+ +\S+)$", text, re.M))
    told = " ".join((RESULTS / "surgery_coverage.txt").read_text("utf-8").split())
    for name, values in rows.items():
        plain, conditioned = values.split()
        assert re.search(rf"{name} (a cosine of )?{conditioned} instead of {plain}", told)
    assert len(rows) == 2


def test_ten_families():
    outcomes = [row["outcome"] for row in records("ten_families")]
    told = stated(r"ten timm networks of ten families.{0,60}?All (\d+) passed the gate")
    assert outcomes == ["converted"] * int(told[0])


def test_files_of_wheels():
    rows = records("wheels")
    told = stated(
        r"Of (\d+) ONNX files in wheels of other packages .{0,80}? (\d+) become a DLC that passes "
        r"the gate and (\d+) are refused by name; (\d+) pass it in int8"
    )
    ends = Counter(row["convert"] for row in rows), Counter(row["quantize"] for row in rows)
    counted = len(rows), ends[0]["passed"], ends[0]["refused"], ends[1]["passed"]
    assert told == tuple(map(str, counted))
    assert not ends[0]["crashed"] and not ends[1]["crashed"]


def test_places_of_deit():
    (row,) = (row for row in records("surgery_levels") if row["model"].startswith("timm:deit_tiny")
              and (row["rules_asked"], row["level"]) == ("exact", "auto"))  # fmt: skip
    pattern = r"DeiT, a vision transformer of timm, has (\d+) places for exact rules"
    assert stated(pattern) == (row["replaced"],)


# --- the room -------------------------------------------------------------------------------------


def test_room():
    text = (RESULTS / "room.txt").read_text("utf-8")
    rows = re.findall(r"^ +05 +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)$", text, re.M)
    assert len(rows) == 3
    for learners, _, processor, _, together in rows:
        assert stated(rf"\| ({learners}) \| (\d+) \| (\d{{3,}}) \|") == (
            learners,
            processor,
            together,
        )
    memory, minutes = re.search(
        r"05: (\d+) GB of memory; .* and ([\d.]+) on 16 like", text
    ).groups()
    server = re.search(r"nothing open: (\d+) MB", text)[1]
    assert stated(r"Each idle JupyterLab adds (\d+) MB") == (server,)
    assert stated(r"forty learners need about (\d+) GB of memory") == (memory,)
    told = stated(r"16 cores like these would take at least ([\d.]+) minutes")
    assert told == (minutes,)
    largest = max(int(row[3]) for row in rows)
    assert stated(r"A kernel of the lab needs about ([\d.]+) GB") == (f"{largest / 1024:.1f}",)


# --- the gate -------------------------------------------------------------------------------------


def test_why_quantized_kinds_are_judged_by_the_mean():
    told = stated(
        r"agrees with fp32 on ([\d.]+) % of ([\d,]+) images at a mean of ([\d.]+), and its worst "
        r"image is at ([\d.]+); the large one in int8 has a mean of ([\d.]+) and a worst image at "
        r"([\d.]+\d)\."
    )
    rows = gate_rows()
    n, mean, worst, agrees = rows["mobilenet_v3_small", "ort_a16w8"]
    assert told == (agrees, n, mean, worst, *rows["mobilenet_v3_large", "ort_int8"][1:3])


def gate_rows():
    """(model, kind) -> (n, mean cosine, worst image, % that agree)."""
    pattern = (
        r"^(mobilenet_v3_\w+) +(\w+) +(\d+) +(?:worst image|mean) +\S+ +(\S+) +(\S+) +\S+ +(\S+) %"
    )
    text = (RESULTS / "gate.txt").read_text("utf-8")
    return {m[:2]: m[2:] for m in re.findall(pattern, text, re.M)}


def test_sound_files_pass_by_the_figure_that_their_kind_is_judged_by():
    found = gate_rows()
    assert set(found) == {
        (f"mobilenet_v3_{size}", kind)
        for size in ("large", "small")
        for kind in gating.THRESHOLDS
        if kind != "bpu_int8"  # of D-Robotics' simulator, which only a user has
    }
    for (model, kind), (_, mean, worst, _) in found.items():
        judged = worst if kind in gating.BY_THE_WORST else mean
        assert float(judged) >= gating.THRESHOLDS[kind], (model, kind)
    for model, kind in (("large", "ort_int8"), ("small", "ort_int8"), ("small", "ort_a16w8")):
        _, mean, worst, _ = found[f"mobilenet_v3_{model}", kind]
        assert float(worst) < gating.THRESHOLDS[kind] < float(mean)  # hence the mean


def test_the_gate_refuses_what_costs_points_and_not_what_the_network_left_undecided():
    text = (RESULTS / "gate.txt").read_text("utf-8")
    pattern = r"^(\w+) +(int8\w*) +(\S+) points.+?(\S+) % .+?(\S+) % .+(passed|refused)$"
    found = {m[:2]: (*map(float, m[2:5]), m[5]) for m in re.findall(pattern, text, re.M)}
    models = ("mobilenet_v3_large", "mobilenet_v3_small", "fbnet_a")
    assert set(found) == {(m, recipe) for m in models for recipe in ("int8", "int8_minmax")}
    for (model, _), (points, agrees, decided, word) in found.items():
        assert (word == "passed") == (points > -1) == (decided >= 98) and decided > agrees, model


@pytest.mark.parametrize(("images", "least"), [(32, {1: 0.99, 4: 0.95}), (1600, {})])
def test_how_many_flips_the_gate_lets_pass(images, least):
    def passes(flips, required):
        return metrics.Proportion(images - flips, images).interval[1] >= required

    for flips, required in least.items():
        assert passes(flips, required) and not passes(flips + 1, required)
    if images == 1600:
        told = stated(r"with 1,600 images ([\d.]+) % do and ([\d.]+) %")
        for share, required in zip(told, (0.99, 0.95), strict=True):
            most = max(n for n in range(images) if passes(n, required))
            assert float(share) == pytest.approx(100 * most / images, abs=0.25)


def test_what_int8_costs_on_litert_is_what_was_recorded():
    readme = (paths.ROOT / "README.md").read_text("utf-8")
    table = readme.partition("| int8 `.tflite`, points of top-1 lost")[2].split("\n\n")[0]
    makers = ("ours", "ai-edge-quantizer's static", "onnx2tf's")
    lines = table.splitlines()[2:]
    assert len(lines) == 5
    for line in lines:
        network, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        name, image_set = network.split(", ")
        file = {"Marked Things": "litert.txt", "Things-16": "litert_things16.txt"}[image_set]
        name = {"FBNet-A": "fbnet_a"}.get(
            name, name.lower().replace("mobilenetv3-", "mobilenet_v3_")
        )
        recorded = (RESULTS / file).read_text("utf-8")
        for maker, cell in zip(makers, cells, strict=True):
            row = re.search(rf"^{name} +TFLite int8, {re.escape(maker)} .*$", recorded, re.M)
            assert row and cell in row[0], (network, maker)
        lost, *others = (float(cell.split()[0]) for cell in cells)
        assert lost <= 0.3 and min(others) > lost  # in what the lab promises, and ahead


def test_what_equalized_gates_bring_on_the_rdk_is_what_was_recorded():
    number = r"(-\d+\.\d\d \[-\d+\.\d\d, -\d+\.\d\d\])"
    pattern = rf"then changes by {number} points without a 16-bit node, and by {number} without"
    recorded = (RESULTS / "ten_points.txt").read_text("utf-8")
    rows = (r"int8, ours", r"int8, no int16 nodes")
    found = [re.search(rf"^{row} +pictures .*? {number}", recorded, re.M)[1] for row in rows]
    (said,) = re.findall(pattern, texts()["README.md"])
    assert list(said) == found
