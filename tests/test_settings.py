"""Settings: the file, the overrides, and the one line that a mistake is answered with."""

import tomllib
from pathlib import Path

import msgspec
import pytest

import tracker
from settings import load_settings

REPOSITORY = Path(tracker.__file__).parent


def load(tmp_path: Path, text: str, **overrides: object) -> tracker.Settings:
    path = tmp_path / "tracker.toml"
    path.write_text(text)
    return load_settings(path, **overrides)[0]


def test_tracker_toml_lists_every_setting_with_its_default() -> None:
    listed = tomllib.loads((REPOSITORY / "tracker.toml").read_text("utf-8"))
    assert list(listed) == list(tracker.FIELDS)
    assert msgspec.convert(listed, tracker.Settings) == tracker.Settings()


def test_tracker_toml_explains_every_setting_in_the_words_of_the_code() -> None:
    lines = (REPOSITORY / "tracker.toml").read_text("utf-8").splitlines()
    for name, field in tracker.FIELDS.items():
        place = next(number for number, line in enumerate(lines) if line.startswith(f"{name} = "))
        assert lines[place - 1] == f"# {field.type.extra_json_schema['description']}"


def test_the_file_overrides_the_defaults_and_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    settings = load(tmp_path, "port = 4000\nmax_wait = 5", port=5000)
    assert (settings.port, settings.max_wait, settings.host) == (5000, 5, "127.0.0.1")


def test_where_each_setting_came_from_is_known(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("port = 4000")
    _, sources = load_settings(path, host="127.0.0.2")
    assert (sources["port"], sources["host"], sources["max_wait"]) == (str(path), "command line", "default")


def test_a_relative_database_lies_beside_the_file(tmp_path: Path) -> None:
    settings = load(tmp_path, 'database = "data/x.db"')
    assert settings.database == str(tmp_path / "data" / "x.db")


def test_a_database_given_on_the_command_line_starts_at_the_current_folder(tmp_path: Path) -> None:
    assert load(tmp_path, "", database="x.db").database == "x.db"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 1", "unknown setting prot (did you mean port?)"),
        ('port = "3010"', "port: "),
        ("port = 65536", "port: "),
        ("port = true", "port: "),
        ("max_wait = -1", "max_wait: "),
        ("max_wait = nan", "max_wait: "),
        ("snapshot_interval = 0", "snapshot_interval: "),
        ('synchronous = "OFF"', "synchronous: "),
        ('cookie_name = "a b"', "cookie_name: "),
        ("production_branches = [1]", "production_branches[0]: "),
        ("[server]\nport = 1", "unknown setting server"),
        ("port = ", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_key_and_file(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(tracker.TrackerError) as raised:
        load(tmp_path, text)
    assert raised.value.message.startswith(f"{tmp_path / 'tracker.toml'}: {named}")
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("proxy", ["10.0.0.5/8", "localhost", "1.2.3.4:80", "127.0.0.1, *", "::1 10.0.0.1", "[::1]"])
def test_a_proxy_that_nobody_could_be_is_refused_by_name(tmp_path: Path, proxy: str) -> None:
    with pytest.raises(tracker.TrackerError, match=r"tracker.toml: trusted_proxies: .* is neither an address nor"):
        load(tmp_path, f'trusted_proxies = "{proxy}"')


@pytest.mark.parametrize("proxies", ["", "*", "::1", "10.0.0.0/8, fd00::/8", "127.0.0.1,"])
def test_proxies_are_addresses_networks_none_or_all(tmp_path: Path, proxies: str) -> None:
    assert load(tmp_path, f'trusted_proxies = "{proxies}"').trusted_proxies == proxies


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(tracker.TrackerError, match=r"nowhere\.toml: cannot be read"):
        load_settings(tmp_path / "nowhere.toml")
