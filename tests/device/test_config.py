from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from device.screen.canvas import THEMES
from device.settings import config as configuration
from device.settings.config import (
    FACTS,
    ConfigWatch,
    config_path,
    load_config,
    read_config,
    reference,
    to_toml,
)
from device.settings.scanners import save_profile
from device.state import default_state_folder, write_whole
from reader.bundle import DEFAULT_BUNDLE
from tests.conftest import ROOT, Command
from tests.device.test_scanners import PROFILE

GOOD = """
language = "en"
[source]
device = "demo"  # a comment = with an equals sign
width = 1_920
[screen]
overlay = false
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SONOGLANCE_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("SONOGLANCE_CONFIG", raising=False)
    return tmp_path / "state"


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "sonoglance.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def mistakes(tmp_path: Path, text: str | bytes) -> list[str]:
    """The mistakes without the file's name: ``LINE: ...``."""
    path = written(tmp_path, text)
    found = read_config(path).mistakes
    assert all(line.startswith(f"{path}:") and "\n" not in line for line in found)
    return [line.removeprefix(f"{path}:") for line in found]


def test_a_good_file_gives_every_value(tmp_path: Path) -> None:
    loaded = load_config(written(tmp_path, GOOD))
    assert loaded.mistakes == ()
    assert loaded.config.source.device == "demo"
    assert loaded.config.source.width == 1920
    assert loaded.config.screen.overlay is False
    assert loaded.config.source.height == 720
    assert loaded.config.reader.bundle == DEFAULT_BUNDLE
    assert loaded.config.reader.keys is None
    assert loaded.given == {"language", "source.device", "source.width", "screen.overlay"}


OK = [
    ("source.device", '"demo"'),
    ("source.device", '"v4l2:/dev/v4l/by-id/usb-x"'),
    ("source.device", '"v4l2:534d:2109"'),
    ("source.device", '"v4l2:534D:2109"'),
    ("source.device", '"/"'),
    ("source.width", "160"),
    ("source.width", "7680"),
    ("source.rate", "240"),
    ("source.wait", "false"),
    ("source.scanner", '""'),
    ("reader.runner", '"litert"'),
    ("reader.bundle", '"/"'),
    ("reader.keys", '""'),
    ("screen.display", '"none"'),
    ("exam.protocol", '""'),
    ("exam.protocol", '"zones-12"'),
    ("exam.seconds", "2"),
    ("exam.folder", '"/nowhere/yet"'),
    ("exam.quota", "0"),
    ("web.host", '"0.0.0.0"'),
    ("web.host", '"::1"'),
    ("web.certificate", '"/etc/passwd"'),
    ("send.destination", '"10.0.0.5:104/PACS"'),
    ("send.destination", '""'),
    ("send.title", '"WARD_3"'),
    ("send.authority", '"/etc/passwd"'),
    ("panel.connection", '"auto"'),
    ("panel.connection", '"gpio"'),
    ("panel.connection", '"/dev/serial/by-id/usb-1a86_USB_Serial-if00-port0"'),
    ("panel.quiet", "true"),
    ("panel.battery_low", "6600"),
    ("gpio.freeze", "0"),
    ("gpio.buzzer", "-1"),
    ("gpio.mute", "-1"),
    ("fleet.broker", '"broker.example:8883"'),
    ("fleet.broker", '""'),
    ("fleet.name", '"ward-3"'),
    ("fleet.authority", '"/etc/passwd"'),
    ("fleet.minutes", "1440"),
    ("fleet.metrics_port", "0"),
    ("state.folder", '"/nowhere/yet"'),
]
FAIL = [
    ("language", '"xx"', "must be one of"),
    ("language", "1", "must be one of"),
    ("language", '["en"]', "must be one of"),
    ("source.device", '""', 'must be "demo"'),
    ("source.device", '"clip.mp4"', 'must be "demo"'),
    ("source.device", '"/no/such/clip.mp4"', 'must be "demo"'),
    ("source.device", '"v4l2:video0"', 'must be "demo"'),
    ("source.device", '"v4l2:534d:21"', 'must be "demo"'),
    ("source.device", '"/\\u0000"', 'must be "demo"'),
    ("source.width", "159", "from 160 to 7680"),
    ("source.width", "7681", "from 160 to 7680"),
    ("source.width", "1280.0", "a whole number"),
    ("source.width", '"1280"', "a whole number"),
    ("source.width", "true", "a whole number"),
    ("source.height", "-720", "a whole number"),
    ("source.rate", "0", "from 1 to 240"),
    ("source.rate", "nan", "a whole number"),
    ("source.scanner", '"../etc"', "letters, digits"),
    ("source.scanner", '"ward-9"', "sonoglance scanner list"),
    ("source.wait", "1", "true or false"),
    ("source.wait", '"yes"', "true or false"),
    ("reader.bundle", '"/no/such/bundle"', "full path"),
    ("reader.bundle", '"bundle"', "full path"),
    ("reader.runner", '"tpu"', '"edgetpu"'),
    ("reader.threads", "0", "from 1 to 64"),
    ("reader.threads", "true", "from 1 to 64"),
    ("reader.keys", '"/etc/passwd"', "full path of a folder"),
    ("screen.display", '"hdmi"', '"window"'),
    ("screen.theme", '"pink"', "must be one of"),
    ("screen.overlay", "[]", "true or false"),
    ("screen.fullscreen", "{}", "true or false"),
    ("screen.fullscreen", "2026-01-01", "true or false"),
    ("exam.protocol", '"blue"', '"blue-6"'),
    ("exam.site", f'"{65 * "x"}"', "at most 64 letters"),
    ("exam.operator", "7", "at most 64 letters"),
    ("exam.seconds", "1", "from 2 to 30"),
    ("exam.autocapture", '"on"', "true or false"),
    ("exam.folder", '"exams"', "full path of a folder"),
    ("exam.quota", "-1", "from 0 to"),
    ("exam.make_room", "1", "true or false"),
    ("exam.advice", '"/no/such/table.json"', "full path"),
    ("exam.advice", '"/etc/passwd"', "not JSON"),
    ("web.enabled", '"yes"', "true or false"),
    ("web.host", '"10.0.0.5/24"', "a host's name"),
    ("web.port", "0", "from 1 to 65535"),
    ("web.certificate", '"cert.pem"', "full path"),
    ("web.key", '"/no/such.pem"', "full path"),
    ("send.destination", '"pacs"', "HOST:PORT/TITLE"),
    ("send.destination", '"10.0.0.5:104/A TITLE"', "HOST:PORT/TITLE"),
    ("send.title", '""', "1 to 16 letters"),
    ("send.title", '"SEVENTEEN-LETTERS"', "1 to 16 letters"),
    ("panel.connection", '"ttyUSB0"', '"auto"'),
    ("panel.connection", '"/etc/passwd"', "under /dev"),
    ("panel.quiet", "0", "true or false"),
    ("panel.battery_low", "-1", "from 0 to 17600"),
    ("gpio.freeze", "28", "from 0 to 27"),
    ("gpio.next", "-1", "from 0 to 27"),
    ("gpio.back", "true", "from 0 to 27"),
    ("gpio.record", "1.0", "from 0 to 27"),
    ("gpio.confirm", '"GPIO19"', "from 0 to 27"),
    ("gpio.normal", "-2", "from 0 to 27"),
    ("gpio.opacity", "99", "from 0 to 27"),
    ("gpio.no_reading", "[]", "from 0 to 27"),
    ("gpio.buzzer", "-2", "-1 for none"),
    ("gpio.mute", "true", "-1 for none"),
    ("send.authority", '"ca.pem"', "full path"),
    ("fleet.broker", '"broker.example"', "HOST:PORT"),
    ("fleet.broker", '"broker.example:0"', "HOST:PORT"),
    ("fleet.name", '"ward/3"', "letters, digits"),
    ("fleet.authority", '"ca.pem"', "full path"),
    ("fleet.certificate", '"/no/such"', "full path"),
    ("fleet.key", "7", "full path"),
    ("fleet.user", '"' + "u" * 65 + '"', "at most 64"),
    ("fleet.password", '"secret"', "full path"),
    ("fleet.minutes", "0", "from 1 to 1440"),
    ("fleet.metrics_port", "65536", "from 0 to 65535"),
    ("gpio.mute", "5", "gpio.freeze has it"),
    ("gpio.freeze", "6", "gpio.next has it"),
    ("state.folder", '"relative"', "full path of a folder"),
    ("state.folder", '"/etc/passwd"', "full path of a folder"),
    ("source.widht", "1280", "did you mean source.width?"),
    ("source.theme", '"dark"', "did you mean screen.theme?"),
    ("source.colour", '"x"', "[source] takes device, width"),
    ("width", "1280", "did you mean source.width?"),
    ("sorce", "1", "did you mean source?"),
    ("zzz", "1", "allowed: language, source"),
    ("source", "1", "a line [source]"),
    ('source."wid.th"', "1", "unknown"),
]


@pytest.mark.parametrize(("key", "value"), OK)
def test_ok(tmp_path: Path, key: str, value: str) -> None:
    assert mistakes(tmp_path, f"{key} = {value}") == []


@pytest.mark.parametrize(("key", "value", "allowed"), FAIL)
def test_fail(tmp_path: Path, key: str, value: str, allowed: str) -> None:
    (found,) = mistakes(tmp_path, f"# one\n\n{key} = {value}\n")
    assert re.match(rf"3: {re.escape(key)} .+: ", found), found
    assert allowed in found


def test_the_themes_are_those_that_the_screen_has() -> None:
    assert set(configuration.THEMES) == set(THEMES)


def test_every_key_has_values_that_are_tried() -> None:
    tried = {key for key, *_ in [*OK, *FAIL]}
    assert {fact.name for fact in FACTS} <= tried


EVERYTHING_WRONG = """
language = 'xx'
[source]
"width" = 3
device = \"\"\"
a clip\"\"\"   # over two lines
'height' = [
    1, # ] "
    2,
]
scanner = "no quote
[screen]
  overlay = "on"
bright = 3
theme == "dark"
[reader]
threads = 99
"""


def test_every_mistake_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    found = mistakes(tmp_path, EVERYTHING_WRONG.lstrip("\n").replace("\n", "\r\n"))
    assert [int(line.split(":")[0]) for line in found] == [1, 3, 4, 6, 10, 12, 13, 14, 16]
    assert [line.split(" ")[1] for line in found[:4]] == [
        "language",
        "source.width",
        "source.device",
        "source.height",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[source\nwidth = 1280", 1),
        ("[source]\nwidth = 1280\n[source]\nrate = 3", 3),
        ("[source]\nwidth = 1280\nwidth = 1281", 3),
        ("[source]\nwidth = [1,\nheight = 720", 2),
        ('[source]\ndevice = """x\nheight = 720\n\n', 2),
        ("language = en", 1),
        ("\n\n= 3", 3),
        (b"\nlanguage = '\xff'", 2),
        (b"\x00\x01\x02", 1),
        ("x = " + "[" * 9000, 1),
        ("a = " + "9" * 9000, 1),
        ("# " + "x" * 20000, 1),
        ("\n" * 1500, 1),
    ],
)
def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path, text: str | bytes, line: int) -> None:
    found = mistakes(tmp_path, text)
    assert found
    assert int(found[0].split(":")[0]) == line


def test_a_duplicate_does_not_hide_the_mistakes_after_it(tmp_path: Path) -> None:
    found = mistakes(tmp_path, "[source]\nwidth = 1280\nwidth = 1281\nrate = 999")
    assert [line.split(":")[0] for line in found] == ["3", "4"]


def test_dotted_and_inline_tables_are_tables(tmp_path: Path) -> None:
    text = 'source = {device = "demo", width = 5}\nscreen.theme = "x"\nscreen."overlay" = 1\n'
    assert [line.split(" must")[0] for line in mistakes(tmp_path, text)] == [
        "1: source.width 5:",
        '2: screen.theme "x":',
        "3: screen.overlay 1:",
    ]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    assert mistakes(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()) == []


def test_a_file_that_is_not_there_or_no_file_is_a_mistake(tmp_path: Path) -> None:
    assert "No such file" in read_config(tmp_path / "none.toml").mistakes[0]
    assert "must be a file" in read_config(tmp_path).mistakes[0]
    os.mkfifo(tmp_path / "pipe")
    assert "must be a file" in read_config(tmp_path / "pipe").mistakes[0]


def test_a_broken_file_leaves_the_last_good_one_running(tmp_path: Path, state: Path) -> None:
    path = written(tmp_path, GOOD)
    load_config(path)
    assert (state / "last-good.toml").read_text() == GOOD
    written(tmp_path, GOOD + "\nbroken = 1")
    loaded = load_config(path)
    assert loaded.from_last_good
    assert len(loaded.mistakes) == 1
    assert loaded.config.source.width == 1920
    assert (state / "last-good.toml").read_text() == GOOD, "a broken file was kept as good"
    path.unlink()
    assert load_config(path).config.source.width == 1920


@pytest.mark.parametrize("kept", [None, "broken =", b"\xff"])
def test_without_a_last_good_one_the_defaults_run(
    tmp_path: Path, state: Path, kept: str | bytes | None
) -> None:
    if kept is not None:
        state.mkdir()
        (state / "last-good.toml").write_bytes(kept if isinstance(kept, bytes) else kept.encode())
    loaded = load_config(written(tmp_path, "broken = 1"))
    assert loaded.mistakes
    assert not loaded.from_last_good
    assert loaded.config == load_config(None).config


def test_a_state_folder_that_cannot_be_written_does_not_stop_the_box(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        loaded = load_config(written(tmp_path, GOOD), tmp_path / "file" / "state")
    assert loaded.config.source.width == 1920
    assert loaded.mistakes == ()
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("options", ["size=8k", "ro"])
def test_a_full_or_read_only_disk_keeps_what_was_there(tmp_path: Path, options: str) -> None:
    """On a real file system of its own, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "x", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        path = written(tmp_path, GOOD)
        assert load_config(path, disk).mistakes == ()
        if options == "ro":
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        else:
            (disk / "filler").write_bytes(b"x" * 4096)
        written(tmp_path, GOOD + "# " + "y" * 5000)
        assert load_config(path, disk).config.source.width == 1920
        with pytest.raises(OSError, match=r"No space|Read-only"):
            write_whole(disk / "last-good.toml", b"z" * 9000)
        assert (disk / "last-good.toml").read_text() == GOOD
        assert not list(disk.glob(".*")), "a part of a file was left behind"
    finally:
        subprocess.run(["umount", disk], check=True)


WRITER = """
import sys
from pathlib import Path
from device.state import write_whole
for i in range(300):
    write_whole(Path(sys.argv[1]), bytes([65 + i % 2]) * 50000)
"""


def test_who_reads_while_it_is_written_sees_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"A" * 50000)
    child = subprocess.Popen([sys.executable, "-c", WRITER, path], cwd=ROOT)
    while child.poll() is None:
        assert path.read_bytes() in (b"A" * 50000, b"B" * 50000)
    assert child.returncode == 0
    assert path.read_bytes() == b"B" * 50000
    assert list(tmp_path.iterdir()) == [path]


def test_a_changed_file_is_noticed_once_it_is_whole(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    watch = ConfigWatch(path)
    assert watch.poll() is None
    path.write_text("[source]\n")
    assert watch.poll() is None, "it may still be being written"
    path.write_text("[source]\nwidth = 640\n")
    assert watch.poll() is None
    loaded = watch.poll()
    assert loaded is not None
    assert loaded.config.source.width == 640
    assert watch.poll() is None
    path.unlink()
    assert watch.poll() is None
    gone = watch.poll()
    assert gone is not None
    assert gone.from_last_good
    path.write_text("[source]\nwidth = 800\n")
    watch.poll()
    back = watch.poll()
    assert back is not None
    assert (back.config.source.width, back.mistakes) == (800, ())


def test_the_file_is_the_one_named_then_the_variable_then_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system.toml"
    monkeypatch.setattr(configuration, "SYSTEM_FILE", system)
    assert config_path() is None
    system.touch()
    assert config_path() == system
    monkeypatch.setenv("SONOGLANCE_CONFIG", str(tmp_path / "v.toml"))
    assert config_path() == tmp_path / "v.toml"
    assert config_path(tmp_path / "n.toml") == tmp_path / "n.toml"


def test_the_state_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_state_folder() == tmp_path / "state"
    monkeypatch.delenv("SONOGLANCE_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    if not os.access("/var/lib/sonoglance", os.W_OK):
        assert default_state_folder() == tmp_path / "xdg" / "sonoglance"


def test_a_scanner_that_is_named_must_have_a_profile(tmp_path: Path, state: Path) -> None:
    text = '[source]\nscanner = "ward-3"'
    assert mistakes(tmp_path, text)
    save_profile(state, PROFILE)
    assert mistakes(tmp_path, text) == []
    # It is looked for where this very file has profiles kept.
    other = tmp_path / "other"
    assert mistakes(tmp_path, f'{text}\n[state]\nfolder = "{other}"')
    shutil.copytree(state, other)
    assert mistakes(tmp_path, f'{text}\n[state]\nfolder = "{other}"') == []


def test_what_is_shown_is_a_good_file_of_the_same_values(tmp_path: Path) -> None:
    loaded = load_config(written(tmp_path, GOOD))
    shown = to_toml(loaded)
    again = read_config(written(tmp_path, shown))
    assert again.mistakes == ()
    assert again.config == loaded.config
    assert re.search(r"width = 1920 +# file", shown)
    assert re.search(r"height = 720 +# default", shown)


def test_config_check_and_show_as_a_user_calls_them(sonoglance: Command, tmp_path: Path) -> None:
    path = written(tmp_path, "language = 'xx'\n[source]\nwidth = 1")
    done = sonoglance("config", "check", path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    assert f"{path}:1: language" in done.stderr
    done = sonoglance("config", "show", "--config", path)
    assert done.returncode == 0
    assert "BROKEN" in done.stdout
    written(tmp_path, GOOD)
    assert sonoglance("config", "check", path).stdout == f"{path}: good\n"


def test_the_docs_reference_is_the_table_of_facts() -> None:
    docs = (ROOT / "docs" / "setup.md").read_text(encoding="utf-8")
    hint = f"{sys.executable} -c 'from device.settings.config import reference; print(reference())'"
    assert reference() in docs, f"the reference in docs/setup.md is old; put in what this prints: {hint}"
