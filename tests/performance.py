"""Makes docs/performance.md's table and docs/performance/*.svg from one run of `pagewire bench`.

    cargo build --release
    tests/sqlite/tools.sh --bin target/release speedtest1
    python3 tests/performance.py [--quick] [--speedtest1 PROGRAM] [--from FILE.json]
    python3 tests/performance.py --check [--bin DIR]

With `--check` nothing is made: a short run of a few workloads has to give rows that can be shown, whose calls are those of the design.
How long they take is not looked at.

The text around the table is left as it is: only what stands between the two markers is replaced. Plots are plain SVG, drawn here, so that
nothing has to be installed.
"""

import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import xml.dom.minidom
import xml.sax.saxutils

TOP = pathlib.Path(__file__).resolve().parent.parent
PAGE = TOP / "docs" / "performance.md"
PLOTS = TOP / "docs" / "performance"
# Where tests/sqlite/tools.sh makes one.
SPEEDTEST1 = TOP / ".test-tools" / "sqlite-suite" / "build" / "proof" / "speedtest1"
BEGIN, END = "<!-- made by tests/performance.py -->\n", "<!-- end -->\n"
ADDED = re.compile(r"^(.*), (\d+) ms added(.*)$")
COLOURS = ["#1b6ca8", "#3a7d44", "#c77d1e", "#8a2b8f", "#c0392b", "#16a0a0", "#7f6a00", "#e377c2", "#555555", "#98c379"]
# What `--check` runs, and the beginnings of the rows that have to come of it.
CHECKED = {
    "commit": ["commit of one INSERT, memory store", "commit of one INSERT, local store"],
    "warm-read": ["warm point read, table of 1 MB", "warm point read, table of 11 MB"],
    "open": ["open + first query, new client, memory store", "open + first query, new client, local store"],
}
# Each of them has so many calls at the least: an operation that did nothing would reach every aim.
AT_LEAST = {"commit": 1, "open": 1, "warm-read": 0}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="smaller tables and fewer rounds")
    made = SPEEDTEST1 if SPEEDTEST1.exists() else None
    parser.add_argument("--speedtest1", default=made, help="a speedtest1 that is linked with SQLite and libpagewire.a")
    parser.add_argument("--from", dest="source", help="an earlier run's JSON instead of a new run")
    parser.add_argument("--check", action="store_true", help="only whether a short run is right")
    parser.add_argument("--bin", default=TOP / "target" / "debug", type=pathlib.Path, help="where --check finds pagewire")
    arguments = parser.parse_args()
    if arguments.check:
        sys.exit(check(arguments.bin / "pagewire"))
    if arguments.source:
        text = pathlib.Path(arguments.source).read_text()
    else:
        command = [TOP / "target" / "release" / "pagewire", "bench", "--json"]
        command += ["--quick"] if arguments.quick else []
        command += ["--speedtest1", arguments.speedtest1] if arguments.speedtest1 else []
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = json.loads(text)
    if not rows:
        sys.exit("performance: the benchmark measured nothing")
    PLOTS.mkdir(exist_ok=True)
    (PLOTS / "ratios.svg").write_text(ratios(rows))
    (PLOTS / "distance.svg").write_text(distance(rows))
    page = PAGE.read_text()
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        sys.exit(f"performance: {PAGE} has not both markers once")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + machine(bool(arguments.source)) + table(rows) + without_calls(rows) + END + after)
    print(f"performance: {len(rows)} rows, {missed(rows)} aims missed")


def check(program):
    command = [program, "bench", "--quick", "--only", ",".join(CHECKED), "--json"]
    try:
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300).stdout
        faults = faults_of(json.loads(text))
    except (subprocess.SubprocessError, OSError, ValueError, LookupError, TypeError) as error:
        faults = [f"{type(error).__name__}: {error}"]
    for fault in faults:
        print(f"FAILED: {fault}")
    print(f"performance: {int(not faults)} passed, {int(bool(faults))} failed")
    return int(bool(faults))


def faults_of(rows):
    """What is wrong with the rows of `CHECKED`, but for times."""
    faults = []
    shown = table(rows)
    for picture in (ratios(rows), distance(rows)):
        xml.dom.minidom.parseString(picture)
    for workload, beginnings in CHECKED.items():
        for beginning in beginnings:
            found = [row for row in rows if row["operation"].startswith(beginning)]
            if len(found) != 1 or beginning not in shown:
                faults.append(f"{len(found)} rows of {beginning!r}")
                continue
            row = found[0]
            least, most = AT_LEAST[workload], row["calls_aim"]
            if most is None or not least <= row["calls"] <= most:
                faults.append(f"{row['calls']} calls for {row['operation']!r}, not {least} to {most}")
    names = [row["operation"] for row in rows]
    expected = sum(map(len, CHECKED.values()))
    if len(names) != expected or len(set(names)) != expected:
        faults.append(f"these rows instead of {expected}: {names}")
    return faults


def machine(is_earlier):
    if is_earlier:
        # Nothing is known of the machine then.
        return ""
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, load {load:.1f} at the end of the run (1 of it is the benchmark's own).\n\n"


def missed(rows):
    by_ratio = sum(ratio["aim"] is not None and ratio["median"] > ratio["aim"] for row in rows for ratio in row["ratios"])
    by_ratio += sum(calls_reached(row) is False for row in rows)
    return by_ratio + sum(row["throughput_aim"] is not None and throughput(row) < row["throughput_aim"] for row in rows)


def calls_reached(row):
    """None where there is no aim or no count."""
    if row["calls_aim"] is None or row["calls"] is None:
        return None
    return row["calls"] <= row["calls_aim"]


def without_calls(rows):
    """Why some rows are not there at all distances."""
    names = [row["operation"].split(",")[0] for row in rows if row["calls"] == 0 and row["calls_aim"] == 0]
    if not names:
        return ""
    listed = ", ".join(f"*{name}*" for name in dict.fromkeys(names))
    return (
        f"\nThere are no rows with round trips added for {listed}: they make 0 calls, as is asserted in `tests/it/round_trips.rs`, so that\n"
        "the way to the server is no part of them.\n"
    )


def throughput(row):
    """Megabytes in a second."""
    return row["bytes"] / row["series"][0]["p50_us"]


def figure(row, microseconds):
    if row["bytes"]:
        return f"{row['bytes'] / microseconds:.0f} MB/s"
    if row["together"] > 1:
        return f"{row['together'] * 1e6 / microseconds:.0f} /s"
    return f"{microseconds:.1f} us" if microseconds < 100 else f"{microseconds:.0f} us"


def times(ratio):
    """Of a small one what two digits would hide."""
    return f"{ratio:.3f}" if ratio < 0.1 else f"{ratio:.2f}"


def table(rows):
    lines = [
        "| operation | calls | bytes sent, received | ours, p50 | p99 | floor, p50 | ours / floor [quartiles] | aim |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours = row["series"][0]
        medians = {one["name"]: one["p50_us"] for one in row["series"]}
        if row["calls"] is None:
            traffic = ["of another process", ""]
        else:
            # Rows of several operations show the traffic of one of them.
            each = [row[key] / row["together"] for key in ("calls", "bytes_sent", "bytes_received")]
            word = ""
            if calls_reached(row) is not None:
                reached = "reached" if calls_reached(row) else "**missed**"
                word = f" (aim {row['calls_aim'] / row['together']:.3g}, {reached})"
            traffic = [f"{each[0]:.3g}{word}", f"{each[1]:.0f}, {each[2]:.0f}"]
        first = [row["operation"], *traffic, figure(row, ours["p50_us"]), figure(row, ours["p99_us"])]
        if row["throughput_aim"] is not None:
            word = "reached" if throughput(row) >= row["throughput_aim"] else "**missed**"
            lines.append("| " + " | ".join(first + ["", "", f"at least {row['throughput_aim']:g} MB/s, {word}"]) + " |")
            first = [""] * 5
        for ratio in row["ratios"]:
            floor = medians.get(ratio["floor"])
            against = ratio["floor"] + (f" {figure(row, floor)}" if floor else "")
            median, low, high = (times(ratio[key]) for key in ("median", "first_quartile", "third_quartile"))
            spread = f"{median} [{low}, {high}]"
            aim = ""
            if ratio["aim"] is not None:
                aim = f"{ratio['aim']:g}, " + ("reached" if ratio["median"] <= ratio["aim"] else "**missed**")
            lines.append("| " + " | ".join(first + [against, spread, aim]) + " |")
            first = [""] * 5
    return "\n".join(lines) + "\n"


def text(x, y, words, anchor="start", size=12):
    words = xml.sax.saxutils.escape(words)
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}">{words}</text>'


def picture(width, height, parts):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>"]) + "\n"


def ratios(rows):
    """Ours against each floor, on a logarithmic scale: left of the line is faster than the floor."""
    bars = [
        (row["operation"], ratio)
        for row in rows
        if not ADDED.match(row["operation"])
        for ratio in row["ratios"]
        if ratio["aim"] is not None
    ]
    if not bars:
        return picture(400, 40, [text(10, 25, "no workload with an aim was measured")])
    left, wide, line = 430, 420, 22
    low, high = math.log(0.05), math.log(20)

    def x(value):
        return left + wide * (min(max(math.log(value), low), high) - low) / (high - low)

    bottom = 50 + line * len(bars)
    parts = [text(left, 20, "ours / floor (median and quartiles; the red mark is the aim)")]
    for mark in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        parts.append(f'<line x1="{x(mark):.0f}" x2="{x(mark):.0f}" y1="40" y2="{bottom}" stroke="{"#555" if mark == 1 else "#ddd"}"/>')
        parts.append(text(x(mark), 36, f"{mark:g}", "middle", 10))
    for index, (operation, ratio) in enumerate(bars):
        y = 50 + line * index
        colour = "#3a7d44" if ratio["median"] <= ratio["aim"] else "#c77d1e"
        a, b = sorted((x(1), x(ratio["median"])))
        parts.append(text(left - 8, y + 13, f"{operation} / {ratio['floor']}"[:74], "end", 10))
        parts.append(f'<rect x="{a:.1f}" y="{y + 4}" width="{max(b - a, 1):.1f}" height="12" fill="{colour}"/>')
        parts.append(f'<line x1="{x(ratio["first_quartile"]):.1f}" x2="{x(ratio["third_quartile"]):.1f}" y1="{y + 10}" y2="{y + 10}" stroke="black"/>')
        parts.append(f'<line x1="{x(ratio["aim"]):.1f}" x2="{x(ratio["aim"]):.1f}" y1="{y}" y2="{y + 20}" stroke="#c00" stroke-width="2"/>')
    return picture(left + wide + 20, bottom + 10, parts)


def distance(rows):
    """What an operation takes by the round trip that was added; the dashed line is the round trip itself."""
    curves = {}
    for row in rows:
        match = ADDED.match(row["operation"])
        if match:
            name = match.group(1) + match.group(3)
            curves.setdefault(name, []).append((int(match.group(2)), row["series"][0]["p50_us"] / row["together"] / 1000))
    # Two distances are a comparison (the windows of HTTP/2), and no curve.
    curves = {name: points for name, points in curves.items() if len(points) > 2}
    if not curves:
        return picture(400, 40, [text(10, 25, "no distance was measured")])
    left, wide, top, tall = 60, 420, 20, 300
    added = sorted({point[0] for points in curves.values() for point in points})
    most = max(point[1] for points in curves.values() for point in points)
    high = math.log10(max(most, 100) * 1.3)
    low = math.log10(0.05)

    def place(ms, value):
        column = left + wide * added.index(ms) / max(len(added) - 1, 1)
        return column, top + tall * (high - math.log10(max(value, 0.05))) / (high - low)

    parts = [text(left, 14, "milliseconds of one operation (p50), by the round trip added")]
    for value in (0.1, 1, 10, 100):
        _, y = place(added[0], value)
        parts.append(f'<line x1="{left}" x2="{left + wide}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
        parts.append(text(left - 6, y + 4, f"{value:g}", "end", 10))
    for ms in added:
        parts.append(text(place(ms, 1)[0], top + tall + 16, f"{ms} ms", "middle", 10))
    itself = " ".join("{:.1f},{:.1f}".format(*place(ms, ms)) for ms in added if ms > 0)
    parts.append(f'<polyline points="{itself}" fill="none" stroke="#888" stroke-dasharray="4"/>')
    for index, ((name, points), colour) in enumerate(zip(curves.items(), COLOURS)):
        line = " ".join("{:.1f},{:.1f}".format(*place(ms, value)) for ms, value in sorted(points))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<rect x="{left + wide + 14}" y="{top + 20 * index}" width="12" height="12" fill="{colour}"/>')
        parts.append(text(left + wide + 32, top + 20 * index + 11, name, size=11))
    return picture(left + wide + 320, top + tall + 30, parts)


if __name__ == "__main__":
    main()
