"""The files for those who run it for real are valid, and agree with the program."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import trustme
from test_command_line import PROGRAM

import commands
from errors import STATUS
from settings import Settings

HOME = PROGRAM.parent
DEPLOY = HOME / "docs" / "deploy"
UNITS = sorted(path.name for path in DEPLOY.glob("tracker*"))


def unit(name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
    parsed.optionxform = str
    parsed.read(DEPLOY / name)
    return parsed


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_one_that_systemd_understands(name: str, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        assert unit(name).sections()
        return
    for other in UNITS:
        text = (DEPLOY / other).read_text("utf-8")
        (tmp_path / other).write_text(text.replace("/opt/tracker/.venv/bin/python", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if name.partition("@")[0] in line]
    assert not complaints


@pytest.mark.parametrize("name", ["tracker.service", "tracker-backup.service"])
def test_a_unit_starts_what_the_command_line_knows(name: str) -> None:
    words = unit(name)["Service"]["ExecStart"].split()
    assert Path(words[1]).name == PROGRAM.name
    assert commands.parser().parse_args(words[2:])


@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".service")])
def test_services_have_no_more_rights_than_they_need(name: str) -> None:
    service = unit(name)["Service"]
    assert service["NoNewPrivileges"] == "true" and service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == "" and ("User" in service or service["DynamicUser"] == "true")


def test_the_trackers_threads_may_give_way_to_others_and_no_call_of_the_system_kills_it() -> None:
    lines = (DEPLOY / "tracker.service").read_text("utf-8").splitlines()
    filters = [line for line in lines if line.startswith("SystemCallFilter=")]
    assert filters.index("SystemCallFilter=setpriority") > filters.index("SystemCallFilter=~@privileged @resources")
    assert "SystemCallErrorNumber=EPERM" in lines


def test_nginx_takes_its_file_and_sends_what_the_tracker_needs(tmp_path: Path) -> None:
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    assert text.count("proxy_set_header Host $http_host;") >= 2
    assert "gzip off;" in text  # where there are secrets
    if not (nginx := shutil.which("nginx") or shutil.which("/usr/sbin/nginx")):
        assert text.count("{") == text.count("}")
        return
    certificate = trustme.CA().issue_cert("tracker.example.org")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "fullchain.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "privkey.pem")
    for port in ("80", "443"):
        with socket.create_server(("127.0.0.1", 0)) as one:
            text = re.sub(rf"listen (\[::\]:)?{port}\b", f"listen 127.0.0.1:{one.getsockname()[1]}", text, count=1)
        text = re.sub(rf"\n *listen \[::\]:{port}\b.*", "", text)
    (tmp_path / "tracker.conf").write_text(text.replace("/etc/ssl/tracker", str(tmp_path)))
    whole = (
        f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; include {tmp_path}/tracker.conf;"
    )
    whole += "".join(
        f" {kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(whole + " }")
    command = [nginx, "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_caddys_file_is_whole_and_packs_nothing(tmp_path: Path) -> None:
    path = DEPLOY / "Caddyfile"
    if caddy := shutil.which("caddy"):
        command = [caddy, "validate", "--adapter", "caddyfile", "--config", str(path)]
        assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    lines = [
        line for line in path.read_text("utf-8").splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    depth = 0
    for line in lines:
        depth -= line.strip() == "}"
        assert line == "\t" * depth + line.strip()  # as `caddy fmt` has it
        depth += line.endswith("{")
    assert depth == 0 and not any(line.split()[0] == "encode" for line in lines)


def test_no_proxy_takes_in_less_than_the_tracker_does() -> None:
    [size] = re.findall(r"client_max_body_size (\d+)m;", (DEPLOY / "nginx.conf").read_text("utf-8"))
    assert int(size) * 1024 >= Settings().max_bulk_body
    assert "max_size" not in (DEPLOY / "Caddyfile").read_text("utf-8")  # a body beyond it ended without an answer


@pytest.mark.parametrize(
    ("file", "answer"),
    [("nginx.conf", r"return ([45]\d\d) '(?P<said>.*)';"), ("Caddyfile", r"respond `(?P<said>.*)` (\d+)")],
)
def test_what_a_proxy_answers_by_itself_is_json_as_the_trackers_refusals_are(file: str, answer: str) -> None:
    """Programs that read nothing else end when the tracker is started again behind it."""
    found = list(re.finditer(answer, (DEPLOY / file).read_text("utf-8")))
    assert found
    for one in found:
        said = json.loads(one["said"])
        assert said["ok"] is False and said["message"]
        assert str(STATUS[said["code"]]) in one.groups()


def test_nginx_answers_nothing_else_by_itself() -> None:
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    given = {}
    for statuses, status, place in re.findall(r"error_page ([\d ]+) =(\d+) (@\w+);", text):
        given |= dict.fromkeys(statuses.split(), (status, place))
    assert set(given) == {"413", "502", "504"}
    for status, place in given.values():
        assert re.search(rf"location {place} {{[^}}]*application/json;[^}}]*return {status} '", text)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Of the last stage: each instruction and what it says."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", path.read_text("utf-8")))
    found = [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]
    last = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def test_the_container_is_no_ones_root_keeps_its_folder_and_tells_how_it_is() -> None:
    found = dict(instructions(HOME / "Containerfile"))
    assert found["USER"].partition(":")[0] not in ("0", "root") and found["USER"][0].isdigit()
    entry, arguments = json.loads(found["ENTRYPOINT"]), json.loads(found["CMD"])
    scripts = tomllib.loads((HOME / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert Path(entry[0]).name in scripts
    options = commands.parser().parse_args(arguments)
    assert Path(options.database).parent == Path(found["VOLUME"])  # the whole folder: the log lies beside it
    assert "/health" in found["HEALTHCHECK"]
    check = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    compile(check[2], "health check", "exec")


def test_the_line_that_builds_the_container_keeps_its_health_check() -> None:
    """podman's own format has none, and drops it with a warning."""
    first = (HOME / "Containerfile").read_text("utf-8").splitlines()[0]
    assert "podman build --format docker " in first


def test_a_container_has_stopped_before_it_is_killed() -> None:
    """As podman and docker do after ten seconds, if nobody says otherwise."""
    assert Settings().shutdown_timeout <= 8


def test_the_containers_user_and_group_have_the_numbers_that_it_runs_as() -> None:
    made = [what for name, what in instructions(HOME / "Containerfile") if name == "RUN"]
    user, _, group = dict(instructions(HOME / "Containerfile"))["USER"].partition(":")
    assert any(f"groupadd --gid {group} " in one and f"--uid {user} --gid {group} " in one for one in made)


def test_the_health_check_of_the_container_tells_one_tracker_from_none(site: object) -> None:
    check = json.loads(dict(instructions(HOME / "Containerfile"))["HEALTHCHECK"].partition("CMD ")[2])
    for url, status in ((site.url, 0), ("http://127.0.0.1:1", 1)):
        program = check[2].replace("http://127.0.0.1:3010", url)
        assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode == status
