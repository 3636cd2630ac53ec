# SPDX-License-Identifier: Apache-2.0
import itertools
import json
import random
import subprocess
import sys
from array import array
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libqos import cli
from libqos.plot import plot
from libqos.plotting import figure, script, series
from libqos.plotting.series import Series
from libqos.telemetry import TelemetryError, quantile, summary

KINDS = ["cdf", "box", "timeline"]


def samples(path: Path, values: list[int], **extra: object) -> Path:
    with path.open("w") as stream:
        for seq, value in enumerate(values):
            record = {"kind": "latency", "ts_ns": 10**18 + seq * 10**6, "seq": seq, "latency_ns": value, **extra}
            stream.write(json.dumps(record) + "\n")
    return path


def summaries(path: Path, *records: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run(*arguments: object, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = cli.run(plot, [str(argument) for argument in arguments])
    return status, capfd.readouterr().err


def of(values: list[int]) -> Series:
    times = array("q", range(10**18, 10**18 + 1000 * len(values), 1000))
    return Series("x", array("q", values), times)


@pytest.mark.parametrize("count", [1, 2, 9_999, 10_001, 123_457])
def test_thinned_cdf_keeps_every_quoted_quantile(count: int) -> None:
    generator = random.Random(count)
    one = of([int(generator.lognormvariate(9, 1)) for _ in range(count)])
    points = series.cdf(one)
    assert len(points) <= 10_001
    for q in series.QUOTED:
        # Read off the staircase: the first value whose share reaches q.
        read = next(value for value, share in points if share >= q * (1 - 1e-12))
        assert read == quantile(one.ordered, q)
    assert points[0][1] == 0
    assert points[-1] == (max(one.values), 1.0)


@pytest.mark.parametrize("count", [9_000, 11_000, 100_000])
def test_thinned_cdf_is_close_everywhere(count: int) -> None:
    points = series.cdf(of(list(range(count))))
    assert len(points) < 4500 or count < 10_000
    gaps = [after[1] - before[1] for before, after in itertools.pairwise(points)]
    assert max(gaps) < 1 / 2000


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=200))
def test_cdf_rises_and_is_exact_when_small(values: list[int]) -> None:
    points = series.cdf(of(values))
    assert points == sorted(points)
    for value, share in points[1:]:
        assert share == pytest.approx(sum(other <= value for other in values) / len(values))


def test_timeline_keeps_every_spike() -> None:
    values = [10] * 50_000
    values[12_345] = 10**9
    values[40_000] = -5
    slices = series.timeline(of(values), 10**18)
    assert len(slices) <= series.TIMELINE_SLICES
    assert max(each.high for each in slices) == 10**9
    assert min(each.low for each in slices) == -5
    assert all(each.middle == 10 for each in slices)
    assert [each.at for each in slices] == sorted(each.at for each in slices)


def test_small_timeline_is_every_sample() -> None:
    slices = series.timeline(of([3, 1, 2]), 10**18)
    assert [(each.at, each.low, each.middle, each.high) for each in slices] == [
        (0.0, 3, 3, 3), (1e-6, 1, 1, 1), (2e-6, 2, 2, 2),
    ]  # fmt: skip


def test_box_of_samples_and_of_a_summary() -> None:
    values = list(range(1, 1001))
    box = series.box(of(values))
    assert (box.low, box.first, box.median, box.third, box.high, box.p999, box.maximum) == (
        10, 250, 500, 750, 990, 999, 1000,
    )  # fmt: skip
    from_summary = series.box(Series("x", summaries=[summary("latency", values)]))
    assert (from_summary.low, from_summary.first, from_summary.third) == (1, 500, 900)


@pytest.mark.parametrize(("value", "unit"), [(5, "ns"), (5_000, "µs"), (5_000_000, "ms"), (5 * 10**9, "s")])
def test_unit_fits_the_values(value: int, unit: str) -> None:
    assert series.unit([of([value] * 10)])[1] == unit


def test_axis_is_cut_only_for_far_outliers() -> None:
    assert series.axis_end([of(list(range(1, 1001)))]) is None
    assert series.axis_end([of([10] * 9999 + [10**6])]) == 11
    assert series.axis_end([of([0] * 100)]) is None


def test_labels() -> None:
    assert series._names(["a/x.jsonl", "b/y.jsonl", "-"]) == ["x", "y", "stdin"]
    assert series._names(["a/x.jsonl", "b/x.jsonl"]) == ["a/x", "b/x"]
    assert series._names(["x.json", "x.jsonl"]) == ["x.json", "x.jsonl"]


def test_load_by_key(tmp_path: Path) -> None:
    path = samples(tmp_path / "s.jsonl", [1, 2], topic="a")
    with path.open("a") as stream:
        stream.write('{"kind":"latency","ts_ns":1,"latency_ns":9,"topic":"b"}\n{"kind":"info"}\n')
    assert [one.label for one in series.load([str(path)], "latency", by="topic", labels=())] == ["topic a", "topic b"]
    other = samples(tmp_path / "t.jsonl", [1], topic="a")
    found = series.load([str(path), str(other)], "latency", by="topic", labels=["L1", "L2"])
    assert [one.label for one in found] == ["L1: a", "L1: b", "L2: a"]


def test_samples_stand_above_summaries(tmp_path: Path) -> None:
    path = summaries(tmp_path / "s", summary("latency", [5]), summary("latency", [7]), summary("jitter", [1]))
    (one,) = series.load([str(path)], "latency", by=None, labels=())
    assert (one.from_summary, one.count, one.at(0.5), len(one.summaries)) == (True, 1, 7, 2)
    with path.open("a") as stream:
        stream.write('{"kind":"latency","ts_ns":1,"latency_ns":9}\n')
    (one,) = series.load([str(path)], "latency", by=None, labels=())
    assert (one.from_summary, one.at(0.5)) == (False, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": nothing to draw: found no record, accepted samples or summaries of latency"),
        ('{"kind":"info"}\n', ": nothing to draw: found records of kind info, accepted"),
        ('{"kind":"latency","ts_ns":1}\n', ":1: latency_ns: found nothing"),
        ('{"kind":"latency","latency_ns":1}\n', ":1: ts_ns: found nothing"),
        (
            '{"kind":"latency","latency_ns":1,"ts_ns":99999999999999999999}\n',
            ":1: latency_ns, ts_ns: found an integer of",
        ),
        ('{"kind":"summary","metric":"latency","count":1}\n', ":1: min_ns: found nothing"),
        ("\nrubbish\n", ":2: found 'rubbish', accepted one JSON object"),
    ],
)
def test_bad_input(tmp_path: Path, text: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    path.write_text(text)
    status, err = run(path, "--gnuplot", tmp_path / "p", capfd=capfd)
    assert status == 2
    assert err.startswith(f"qos-plot: error: {path}{message}")
    assert not (tmp_path / "p.gp").exists()


def test_truncated_last_line_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = samples(tmp_path / "s", [1, 2])
    with path.open("a") as stream:
        stream.write('{"kind":"late')
    status, err = run(path, "--gnuplot", tmp_path / "p", capfd=capfd)
    assert status == 0
    assert "the last line is cut off" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to write: give -o FILE.png"),
        (["-o", "x.gif"], "found 'x.gif', accepted a name that ends in .png or .svg, or --format"),
        (["-o", "x.png", "--format", "gif"], "'gif' is not one of"),
        (["-o", "x.png", "--kind", "pie"], "'pie' is not one of"),
        (["--gnuplot", "p", "--label", "a", "--label", "b"], "--label: found 2 labels, accepted one for each of the 1"),
        (["--gnuplot", "/no/such/p"], "/no/such/p.dat: cannot be written"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    status, err = run(samples(tmp_path / "s", [1]), *arguments, capfd=capfd)
    assert status == 2
    assert message in err


def test_log_axis_needs_positive_values(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, err = run(samples(tmp_path / "s", [0, 1]), "--log", "--gnuplot", tmp_path / "p", capfd=capfd)
    assert status == 2
    assert "--log: found 0 ns in 's', accepted values above 0" in err


def test_series_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("".join(f'{{"kind":"latency","ts_ns":1,"latency_ns":1,"t":{n}}}\n' for n in range(40)))
    with pytest.raises(TelemetryError, match=":33: found more than 32 series"):
        series.load([str(path)], "latency", by="t", labels=())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_figure_is_written(tmp_path: Path, kind: str, ending: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    one = samples(tmp_path / "a$x_1.jsonl", [1000 + n for n in range(300)])
    two = samples(tmp_path / "_b.jsonl", [2000 + n % 7 for n in range(5000)])
    out = tmp_path / f"f.{ending}"
    assert run(one, two, "--kind", kind, "-o", out, "--log", capfd=capfd) == (0, "")
    assert out.read_bytes().startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    if ending == "svg":
        first = out.read_bytes()
        run(one, two, "--kind", kind, "-o", out, "--log", capfd=capfd)
        assert out.read_bytes() == first


@pytest.mark.parametrize("kind", KINDS)
def test_figure_of_summaries(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = summaries(tmp_path / "s", summary("latency", [5, 9]), summary("latency", [7, 8, 9]))
    assert run(path, "--kind", kind, "-o", tmp_path / "f.png", capfd=capfd) == (0, "")
    if kind == "timeline":
        both = samples(tmp_path / "t", [1])
        status, err = run(path, both, "--kind", kind, "-o", tmp_path / "f.png", capfd=capfd)
        assert status == 2
        assert "found samples in some files and summaries in others" in err


@pytest.mark.parametrize(("image", "start"), [([], b"\x89PNG"), (["--format", "svg"], b"<?xml")])
def test_figure_to_a_pipe(tmp_path: Path, image: list[str], start: bytes) -> None:
    pytest.importorskip("matplotlib")
    path = samples(tmp_path / "s", [1, 2, 3])
    command = [sys.executable, "-m", "libqos.plot", "-o", "-", *image]
    with path.open() as stream:
        done = subprocess.run(command, stdin=stream, capture_output=True, timeout=60, check=True)
    assert done.stdout.startswith(start)


def test_the_format_wins_over_the_ending(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path, out = samples(tmp_path / "s", [1, 2, 3]), tmp_path / "figure"
    assert run(path, "-o", out, "--format", "svg", capfd=capfd) == (0, "")
    root = ElementTree.parse(out).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    path = samples(tmp_path / "s", [1, 2])
    status, err = run(path, "-o", tmp_path / "f.png", capfd=capfd)
    assert status == 1
    assert 'pip install "qos-continuum[plot]"' in err
    assert run(path, "--gnuplot", tmp_path / "p", capfd=capfd) == (0, "")
    with pytest.raises(figure.MissingError):
        figure.check_available()


@pytest.mark.needs_gnuplot
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log", [False, True])
def test_gnuplot_runs_the_script(tmp_path: Path, kind: str, log: bool, capfd: pytest.CaptureFixture[str]) -> None:
    one = samples(tmp_path / "it's_{a}.jsonl", [1000 + n for n in range(300)] + [10**7])
    two = samples(tmp_path / "b.jsonl", [2000 + n % 7 for n in range(5000)])
    three = summaries(tmp_path / "c", summary("latency", [900, 2000, 3000]))
    files = [one, two] if kind == "timeline" else [one, two, three]
    prefix = tmp_path / "it's"
    log_option = ["--log"] if log else []
    assert run(*files, "--kind", kind, "--gnuplot", prefix, *log_option, capfd=capfd) == (0, "")
    done = subprocess.run(["gnuplot", f"{prefix}.gp"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    made = [path for path in (tmp_path / "it's.png", tmp_path / "it's.svg") if path.exists()]
    assert made
    assert made[0].stat().st_size > 2000


def test_gnuplot_data_are_the_points(tmp_path: Path) -> None:
    script.write([of([1, 1, 3])], "cdf", "latency", str(tmp_path / "p"), "png", title=None, log=False)
    assert (tmp_path / "p.dat").read_text() == "# x\n# value_ns share\n1 0\n1 0.666666667\n3 1\n"


# ---- Shares of a whole ----


def breakdowns(path: Path, *rows: tuple[dict[str, int], int], **extra: object) -> Path:
    path.write_text("".join(json.dumps(breakdown(shares, whole) | extra) + "\n" for shares, whole in rows))
    return path


def breakdown(shares: dict[str, int], whole: int) -> dict[str, object]:
    named = {f"{name}_ns": value for name, value in shares.items()}
    return {"kind": "breakdown", "metric": "rtt", "shares": list(shares), **named, "rtt_ns": whole}


def test_a_stack_is_the_last_breakdown_of_each_series(tmp_path: Path) -> None:
    one = breakdowns(tmp_path / "a", ({"send": 1, "network": 2}, 3), ({"send": 10, "network": 20}, 31), size_bytes=64)
    with one.open("a") as stream:
        stream.write('{"kind":"latency","ts_ns":1,"latency_ns":9}\n')
    (found,) = series.load([str(one)], "rtt", by="size_bytes", labels=(), stack=True)
    assert (found.label, found.shares, found.whole) == ("size_bytes 64", {"send": 10, "network": 20}, 31)
    script.write([found], "stack", "rtt", str(tmp_path / "p"), "svg", title=None, log=False)
    assert (tmp_path / "p.dat").read_text() == (
        "# 0: size_bytes 64\n# position send_ns network_ns measured_ns\n0 10 20 31\n"
    )


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_figure_of_a_stack(tmp_path: Path, ending: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = [breakdowns(tmp_path / name, ({"send": 400, "network": 30_000}, 31_000)) for name in ("_a$x", "b")]
    out = tmp_path / f"f.{ending}"
    assert run(*files, "--kind", "stack", "-o", out, capfd=capfd) == (0, "")
    assert out.read_bytes().startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    if ending == "svg":
        text = out.read_text()
        for word in ("send", "network", "30 µs", "rtt as measured, 31 µs, 31 µs"):
            assert f"<!-- {word}" in text or word in text


@pytest.mark.needs_gnuplot
@pytest.mark.parametrize("image", ["png", "svg"])
def test_gnuplot_draws_a_stack(tmp_path: Path, image: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = breakdowns(tmp_path / "it's", ({"send": 400, "net work": 30_000}, 31_000))
    prefix = tmp_path / "p"
    assert run(path, "--kind", "stack", "--gnuplot", prefix, "--format", image, capfd=capfd) == (0, "")
    done = subprocess.run(["gnuplot", f"{prefix}.gp"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    made = [path for path in (tmp_path / f"p.{image}", tmp_path / "p.svg") if path.exists()]
    assert made
    assert made[0].stat().st_size > 2000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"kind":"latency","ts_ns":1,"latency_ns":9}',
            ": nothing to draw: found records of kind latency, accepted breakd",
        ),
        ('{"kind":"breakdown","metric":"rtt","rtt_ns":1}', ":1: shares: accepted a list of 1 to 7 names"),
        ('{"kind":"breakdown","metric":"rtt","rtt_ns":1,"shares":["a"]}', ":1: a_ns: found nothing"),
        ('{"kind":"breakdown","metric":"rtt","a_ns":1,"shares":["a"]}', ":1: rtt_ns: found nothing"),
        ('{"kind":"breakdown","metric":"rtt","a_ns":-1,"rtt_ns":1,"shares":["a"]}', "a negative share in 's'"),
    ],
)
def test_bad_breakdown(tmp_path: Path, text: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s"
    path.write_text(text + "\n")
    status, err = run(path, "--kind", "stack", "--gnuplot", tmp_path / "p", capfd=capfd)
    assert status == 2
    assert message in err


def test_stacks_of_different_shares_do_not_stand_together(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = [breakdowns(tmp_path / name, ({name: 1}, 1)) for name in ("a", "b")]
    status, err = run(*files, "--kind", "stack", "--gnuplot", tmp_path / "p", capfd=capfd)
    assert status == 2
    assert "found the shares b in 'b', accepted those of the first: a" in err
    status, err = run(files[0], "--kind", "stack", "--log", "--gnuplot", tmp_path / "p", capfd=capfd)
    assert status == 2
    assert "--log: found with --kind stack" in err
