# SPDX-License-Identifier: Apache-2.0
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libqos import config, tomlfile
from libqos.config import ConfigError, load, option, section, sections
from libqos.environment import environment_name
from libqos.policy import DEFAULT, QosClass
from libqos.policy import parse as parse_qos


@dataclass(frozen=True, kw_only=True)
class Peer:
    name: str = option(meaning="name of the host")
    port: int = option(4791, minimum=1, maximum=65535, meaning="its port")


@dataclass(frozen=True, kw_only=True)
class Tls:
    key_file: str = option("", meaning="private key")
    required: bool = option(False, meaning="refuse clients without a certificate")


@dataclass(frozen=True, kw_only=True)
class Settings:
    data_port: int = option(4791, minimum=1, maximum=65535, meaning="UDP port for data", short="-p")
    mode: str = option("slow", choices=("slow", "fast"), meaning="acceleration")
    spin_us: float = option(200.0, minimum=0, meaning="spin before sleeping")
    verbose_peers: bool = option(True, meaning="say when a peer comes")
    networks: tuple[str, ...] = option((), meaning="networks to listen on")
    node: str | None = option(None, meaning="name of this node")
    qos: QosClass = option(DEFAULT, meaning="default class", parse=parse_qos, accepted="a QoS class")  # noqa: RUF009
    tls: Tls = section(Tls, meaning="transport security")  # noqa: RUF009
    peer: tuple[Peer, ...] = sections(Peer, maximum=3, meaning="another host")

    def __post_init__(self) -> None:
        if self.mode == "fast" and self.spin_us == 0:
            raise ValueError("mode fast needs spin_us above 0")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def to_file(text: str) -> Path:
        path = tmp_path / "t.toml"
        path.write_text(text)
        return path

    return to_file


def problems(path: Path | None, environ: dict[str, str] | None = None, **overrides: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Settings, tool="selened", file=path, environ=environ or {}, overrides=overrides)
    assert caught.value.exit_code == 2
    return [problem.replace(f"{path}:", "F:") for problem in caught.value.problems]


def test_defaults_without_a_file() -> None:
    settings = load(Settings, tool="selened", environ={})
    assert settings == Settings(tls=Tls())
    assert settings.peer == ()


def test_file_fills_every_kind_of_value(write: Any) -> None:
    path = write(
        """
data_port = 5000
mode = "fast"
spin_us = 20
networks = ["10.0.0.0/8", "fd00::/8"]
qos = "control,deadline=1ms"
[tls]
required = true
[[peer]]
name = "a"
[[peer]]
name = "b"
port = 1
"""
    )
    settings = load(Settings, tool="selened", file=path, environ={})
    assert (settings.data_port, settings.spin_us, settings.networks) == (5000, 20.0, ("10.0.0.0/8", "fd00::/8"))
    assert settings.qos == parse_qos("control,deadline=1ms")
    assert settings.tls.required
    assert settings.peer == (Peer(name="a"), Peer(name="b", port=1))


def test_command_line_wins_over_environment_over_file(write: Any) -> None:
    path = write("data_port = 1\nspin_us = 1\nmode = 'fast'\n")
    environ = {"QOS_SELENED_DATA_PORT": "0x10", "QOS_SELENED_SPIN_US": "2", "QOS_SELENED_TLS_REQUIRED": "yes"}
    settings = load(Settings, tool="selened", file=path, environ=environ, overrides={"data_port": "3", "mode": None})
    assert (settings.data_port, settings.spin_us, settings.mode, settings.tls.required) == (3, 2.0, "fast", True)


def test_list_from_the_environment() -> None:
    settings = load(Settings, tool="selened", environ={"QOS_SELENED_NETWORKS": "a, b,"})
    assert settings.networks == ("a", "b")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\ndata_port = 70000", "F:2: data_port: found 70000, accepted an integer from 1 to 65_535"),
        ("data_port = '5'", "F:1: data_port: found '5', accepted an integer from 1 to 65_535"),
        ("data_port = true", "F:1: data_port: found true, accepted an integer from 1 to 65_535"),
        (
            "data_port = 0x1" + "0" * 5000,
            "F:1: data_port: found an integer of thousands of digits, accepted an integer",
        ),
        ("spin_us = 1" + "0" * 400, "F:1: spin_us: found 1000"),
        ("spin_us = nan", "F:1: spin_us: found nan, accepted a number of at least 0"),
        ("mode = 'quick'", "F:1: mode: found 'quick', accepted slow | fast"),
        ("networks = 'x'", "F:1: networks: found 'x', accepted a list of: text"),
        ("[tls]\nrequired = 1", "F:2: tls.required: found 1, accepted true or false"),
        ("tls = 3", "F:1: tls: found 3, accepted a table [tls]"),
        ("peer = 3", "F:1: peer: found 3, accepted an array of tables [[peer]]"),
        (
            "[[peer]]\nname='a'\n\n[[peer]]\nport=2",
            "F:4: peer[1].name: found nothing, accepted text (it must be given)",
        ),
        ("[[peer]]\nname='a'\n[[peer]]\nname='b'\nport=0", "F:5: peer[1].port: found 0, accepted an integer from 1"),
        ("[[peer]]\n" * 4, "F:4: peer[3]: found 4 tables, accepted at most 3"),
        ("dataport = 5", "F:1: dataport: unknown key (did you mean data_port?); accepted: data_port, mode"),
        ("[tls]\n\nzzz = 5", "F:3: tls.zzz: unknown key; accepted: key_file, required"),
        ("mode = 'fast'\nspin_us = 0", "mode fast needs spin_us above 0"),
        (
            "qos = 'contrl'",
            "F:1: qos: found 'contrl', accepted a QoS class: QoS: found 'contrl' (did you mean control?)",
        ),
        ("qos = 3", "F:1: qos: found 3, accepted a QoS class"),
    ],
)
def test_problem_names_file_line_key_found_accepted(write: Any, text: str, problem: str) -> None:
    found = problems(write(text))
    assert len(found) == 1
    assert found[0].startswith(problem) or found[0].endswith(problem)


def test_every_problem_is_reported(write: Any) -> None:
    path = write("data_port = 0\nmode = 'x'\nfoo = 1\n")
    found = problems(path, {"QOS_SELENED_SPIN_US": "many"})
    assert [line.split(": ")[1] for line in found] == ["foo", "data_port", "mode", "QOS_SELENED_SPIN_US"]
    assert found[-1] == "environment: QOS_SELENED_SPIN_US: found 'many', accepted a number of at least 0"


def test_command_line_problem() -> None:
    assert problems(None, data_port="x") == ["option --data-port: found 'x', accepted an integer from 1 to 65_535"]
    assert problems(None, nonsense="x") == ["command line: nonsense: no such option"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a = 1\nb = = 2\n", ":2: "),
        (b"a = 1\na = 2\n", ":2: "),
        (b"a = \"x\ny\"\n", ":1: "),
        (b"a = 1\n\xff = 2\n", ":2: found a byte 0xff, accepted UTF-8"),
        (b"[a\n", ":1: "),
        (b"a = 1\nb = " + b"1" * 5000, ":2: a number of 5000 digits, accepted TOML"),
    ],
)  # fmt: skip
def test_text_that_is_no_toml(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "t.toml"
    path.write_bytes(text)
    with pytest.raises(tomlfile.TomlError) as caught:
        load(Settings, tool="selened", file=path, environ={})
    assert str(caught.value).startswith(f"{path}{message}")


def test_missing_file() -> None:
    with pytest.raises(tomlfile.TomlError, match="/no/such: cannot be read: No such file"):
        load(Settings, tool="selened", file="/no/such", environ={})


def test_lines_of_keys_whatever_stands_in_values() -> None:
    text = '''# = [x]
a.b = "] # = [["
c = [ [1, # ]]
  2], ["]]"] ]
d = """
e = 1
""" # x
f = \'\'\'
[g]\'\'\'
["q.r"."s"]
t = { u = [ { v = 1 } ] }
[[p]]
[p.q]
w = 1979-05-27T07:32:00Z
[[p]]
[[p.z]]
"k\\u00e9y" = 1
'''
    document = tomlfile.parse(text, "x")
    places = {
        ("a", "b"): 2, ("c",): 3, ("d",): 5, ("f",): 8, ("q.r", "s"): 10, ("q.r", "s", "t"): 11, ("p", 0): 12,
        ("p", 0, "q", "w"): 14, ("p", 1): 15, ("p", 1, "z", 0): 16, ("p", 1, "z", 0, "kéy"): 17,
    }  # fmt: skip
    assert {path: document.line(path) for path in places} == places
    assert document.line(("q.r", "s", "t", "u", 0)) == 11  # inside an inline table: the key that holds it
    assert document.line(("none",)) is None


KEYS = st.text("ab_-1", min_size=1, max_size=3)
SCALARS = st.sampled_from(
    ["1", "-2.5", "true", '"x # ["', "'[['", "[1, [2], '#']", '"""\n[a]\nb = 1\n"""', "{ k = 1 }"]
)


@given(st.lists(st.tuples(KEYS, SCALARS), unique_by=lambda pair: pair[0]), KEYS, st.integers(0, 3))
def test_line_of_each_key_is_where_it_was_written(pairs: list[tuple[str, str]], table: str, tables: int) -> None:
    """The scan agrees with the text: each key is on the line where it was put."""
    lines = []
    expected = {}
    for index in range(tables):
        lines.append(f"[[{table}]]  # comment")
        for key, value in pairs:
            expected[(table, index, key)] = sum(line.count("\n") + 1 for line in lines) + 1
            lines.append(f"{key} = {value}")
    document = tomlfile.parse("\n".join(lines), "x")
    assert {path: document.line(path) for path in expected} == expected


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """Rubbish: a TomlError, never another exception."""
    with contextlib.suppress(tomlfile.TomlError):
        tomlfile.parse(text, "x")


def test_a_long_value_is_passed_over_in_one_go() -> None:
    """The watchdog ends it otherwise: to look again at every place of a word for its end takes hours."""
    assert tomlfile.parse(f"n = 0x{'a' * 1_000_000}\nm = 1", "x").line(("m",)) == 2


def test_reference_has_every_option() -> None:
    rows = {row[0]: row for row in config.reference(Settings, tool="selened")}
    assert rows["data_port"] == (
        "data_port", "an integer from 1 to 65_535", "4791", "QOS_SELENED_DATA_PORT", "UDP port for data",
    )  # fmt: skip
    assert rows["tls.key_file"][3] == "QOS_SELENED_TLS_KEY_FILE"
    assert rows["peer.name"][2:4] == ("(must be given)", "")
    assert rows["[[peer]]"][1] == "array of tables, at most 3"


@pytest.mark.parametrize(("tool", "prefix"), [("selened", "QOS_SELENED"), ("qos-stat", "QOS_STAT")])
def test_environment_prefix(tool: str, prefix: str) -> None:
    assert environment_name(tool, ("a", "b_c")) == f"{prefix}_A_B_C"


def test_table_with_a_plain_field_is_refused() -> None:
    @dataclass
    class Wrong:
        port: int = 3

    with pytest.raises(TypeError, match=r"Wrong\.port is not made with option"):
        config.table(Wrong)


def test_option_with_parse_must_say_what_it_accepts() -> None:
    with pytest.raises(TypeError, match="accepted="):
        option(meaning="x", parse=int)
