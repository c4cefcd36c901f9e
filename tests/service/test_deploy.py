"""The container and compose files name what the code has: commands, settings, ports, routes, requirements.

No image is built here; where a container engine is at hand, `docs/service.md` says how.
"""

import json
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from sqlalchemy import make_url

from safelens.cli import app
from safelens.service.settings import Settings
from safelens.service.supervise import _GRACE_S, exported
from safelens.service.tables import WorkerRow
from safelens.service.web import create_app

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
ON_A_CLUSTER = {f"SAFELENS_{n}" for n in ("ENGINE", "RAY_ADDRESS", "SCREEN", "DELIBERATE")}
"""Of no use in the image, which has no Ray."""
FOR_COMPOSE = {"SAFELENS_WORKERS", "SAFELENS_DATABASE_PASSWORD"}


def instructions():
    """Of the last stage and of all: (word, rest) pairs."""
    text = (ROOT / "deploy" / "Containerfile").read_text()
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = [tuple(line.split(None, 1)) for line in lines if line and not line.startswith("#")]
    last = max(i for i, (word, _) in enumerate(found) if word == "FROM")
    return found[last:], found


def one(word):
    [rest] = [rest for w, rest in instructions()[0] if w == word]
    return rest


def serve(arguments):
    """The parameters that the command line would run with."""
    name, *rest = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in arguments]
    return typer.main.get_command(app).get_command(None, name).make_context(name, rest).params


def health():
    _, _, command = one("HEALTHCHECK").partition("CMD ")
    return json.loads(command)


@pytest.mark.parametrize(
    "arguments", [json.loads(one("CMD")), COMPOSE["services"]["service"]["command"]]
)
def test_the_command_is_one_that_serves_beyond_the_container(arguments):
    assert json.loads(one("ENTRYPOINT")) == ["safelens"]
    assert "safelens" in PROJECT["scripts"]
    found = serve(arguments)
    assert (found["host"], found["port"]) == ("0.0.0.0", int(one("EXPOSE")))
    assert found["web"]
    assert found["workers"] == 1


def test_nothing_runs_as_root():
    words = [word for word, _ in instructions()[0]]
    user = int(one("USER"))
    assert user > 0
    assert f"--uid {user} " in one("RUN")
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert f"--owner safelens --group safelens {one('VOLUME')}" in one("RUN")


def test_what_is_copied_is_there_and_not_left_out():
    kept = (ROOT / "deploy" / "Containerfile.dockerignore").read_text().splitlines()
    copied = [rest for word, rest in instructions()[1] if word == "COPY" and "--from" not in rest]
    sources = [source for rest in copied for source in rest.split()[:-1]]
    assert set(sources) >= {"pyproject.toml", PROJECT["readme"], "src"}
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in kept


def test_what_is_installed_is_what_the_package_asks_for():
    runs = " ".join(rest for word, rest in instructions()[1] if word == "RUN")
    first = [word for word in shlex.split(runs) if word.startswith("torch")]
    assert len(first) == 2
    assert set(first) <= set(PROJECT["dependencies"])
    extra = re.search(r"/source\[([\w-]+)\]", runs)[1]
    assert "safelens[service]" in PROJECT["optional-dependencies"][extra]
    version = re.search(r"PYTHON=([\d.]+)", (ROOT / "deploy" / "Containerfile").read_text())[1]
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_every_setting_is_one_of_the_service():
    known = set(exported(Settings()))
    service = COMPOSE["services"]["service"]["environment"]
    assert {name for name in service if name not in known} == set()
    assert set(known) - ON_A_CLUSTER == set(service)
    image = dict(
        pair.split("=", 1) for w, r in instructions()[0] if w == "ENV" for pair in r.split()
    )
    assert {name for name in image if name.startswith("SAFELENS_")} <= known
    assert service["SAFELENS_DATA"] == image["SAFELENS_DATA"] == one("VOLUME")
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "deploy" / "compose.yaml").read_text()))
    assert used == FOR_COMPOSE


def test_the_service_finds_its_database_and_keeps_what_it_writes():
    services, volumes = COMPOSE["services"], COMPOSE["volumes"]
    url = make_url(
        re.sub(r"\$\{[^}]*\}", "secret", services["service"]["environment"]["DATABASE_URL"])
    )
    database = services[url.host]
    assert services["service"]["depends_on"] == {url.host: {"condition": "service_healthy"}}
    assert url.username == database["environment"]["POSTGRES_USER"]
    assert url.database == database["environment"]["POSTGRES_DB"]
    assert "pg_isready" in database["healthcheck"]["test"]
    mounted = {m.split(":")[1]: m.split(":")[0] for s in services.values() for m in s["volumes"]}
    assert set(mounted.values()) == set(volumes)
    assert one("VOLUME") in mounted
    [port] = services["service"]["ports"]
    assert port.split(":") == ["127.0.0.1", "8080", one("EXPOSE")]
    assert services["service"]["build"]["dockerfile"] == "deploy/Containerfile"
    assert int(services["service"]["stop_grace_period"].removesuffix("s")) > _GRACE_S


def test_the_health_check_says_whether_a_model_reports(served):
    program, option, code = health()
    assert (program, option) == ("python", "-c")
    path = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", code)
    assert path[1] == one("EXPOSE")
    assert path[2] in create_app(Settings()).openapi()["paths"]

    def healthy():
        here = code.replace(path[0], f"{served.url}{path[2]}")
        return subprocess.run([sys.executable, "-c", here], capture_output=True).returncode == 0

    assert not healthy()
    with served.database.writing() as session:
        session.add(WorkerRow(id="w", host="h", pid=1, seen_at=time.time(), deployment_id=None))
    assert healthy()
