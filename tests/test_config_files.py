"""The files beside the code are held to it: examples that load, commands that exist, documentation that is complete."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from gatekeeper import __version__
from gatekeeper.dialects import DIALECTS
from gatekeeper.settings import Settings, load
from gatekeeper.settings.model import Settings as Model
from gatekeeper.settings.source import setting_infos
from gatekeeper.telemetry.metrics import Metrics

_ROOT = Path(__file__).parent.parent
_DOCUMENTS = ("README.md", "docs/dialects.md", "docs/operations.md", "docs/python.md", "docs/security.md")
_SECRETS = {
    "GATEKEEPER_JWT_SECRET_FILE": "pR8mZ3xQ7vN2kT5wY9bL4cF6hJ1dS0gA+eUiOqWzXrM=",
    "GATEKEEPER_REDIS_URL_FILE": "rediss://:a-password@redis.example:6379/0",
}


def _text(name: str) -> str:
    return (_ROOT / name).read_text(encoding="utf-8")


def _loaded(environment: Mapping[str, str], folder: Path) -> Settings:
    """The settings of an example, its secret files being there."""
    given = {name: value for name, value in environment.items() if name.startswith("GATEKEEPER_")}
    for name in given.keys() & _SECRETS.keys():
        path = folder / name
        path.write_text(_SECRETS[name] + "\n")
        path.chmod(0o600)
        given[name] = str(path)
    return load(given, require_upstream=True)


# The image


def _dockerfile() -> list[tuple[str, str]]:
    """Every instruction, continued lines joined."""
    lines = [line for line in _text("Dockerfile").splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def _final_stage() -> list[tuple[str, str]]:
    instructions = _dockerfile()
    last = max(position for position, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[last:]


def _image_environment() -> dict[str, str]:
    words = [word for name, rest in _final_stage() if name == "ENV" for word in rest.split()]
    return dict(word.split("=", 1) for word in words)


def test_the_image_is_built_in_stages_and_runs_as_a_number_that_is_not_root() -> None:
    instructions = _dockerfile()
    assert [name for name, _ in instructions].count("FROM") == 2
    users = [rest for name, rest in _final_stage() if name == "USER"]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", users[-1])


def test_nothing_in_the_image_needs_a_shell() -> None:
    for name, rest in _dockerfile():
        if name in {"RUN", "ENTRYPOINT", "CMD", "VOLUME"}:
            assert json.loads(rest), f"{name} in exec form"
    final = dict(_final_stage())
    assert (json.loads(final["ENTRYPOINT"]), json.loads(final["CMD"])) == (["gatekeeper"], ["serve"])


def test_the_settings_of_the_image_are_accepted_and_open_its_ports() -> None:
    environment = _image_environment()
    settings = load({name: value for name, value in environment.items() if name.startswith("GATEKEEPER_")} | _LEAST)
    assert (str(settings.listen), str(settings.ops_listen)) == ("0.0.0.0:8000", "0.0.0.0:9090")
    final = dict(_final_stage())
    assert final["EXPOSE"].split() == ["8000", "9090"]
    assert json.loads(final["VOLUME"]) == [environment["GATEKEEPER_DATA_DIR"]]


_LEAST = {"GATEKEEPER_JWT_SECRET": _SECRETS["GATEKEEPER_JWT_SECRET_FILE"]}


def _health_check(port: int) -> int:
    """The exit code of the image's health check against an ops port."""
    health = dict(_final_stage())["HEALTHCHECK"]
    command: list[str] = json.loads(health[health.index("[") :])
    assert command[0] == "python"
    # As in the image, whatever proxy the environment names.
    environment = {**os.environ, "GATEKEEPER_OPS_LISTEN": f"0.0.0.0:{port}", "http_proxy": "http://127.0.0.1:1"}
    run = subprocess.run([sys.executable, *command[1:]], env=environment, capture_output=True, check=False)
    return run.returncode


@contextmanager
def _ops_port(status: int) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_of_the_image_asks_whether_it_is_alive(status: int, code: int) -> None:
    with _ops_port(status) as port:
        assert _health_check(port) == code


def test_the_health_check_of_the_image_fails_where_nobody_listens() -> None:
    with _ops_port(200) as port:
        pass
    assert _health_check(port) == 1


def test_only_what_the_image_is_made_of_is_sent_to_the_builder() -> None:
    lines = [line for line in _text(".dockerignore").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert set(allowed) >= {"gatekeeper", "middleware", "pyproject.toml", "uv.lock", "README.md", "LICENSE"}
    assert all((_ROOT / name).exists() for name in allowed)


def test_everything_is_installed_by_the_same_uv() -> None:
    (here,) = re.findall(r"UV_VERSION := (\S+)", _text("Makefile"))
    (there,) = re.findall(r"uv==([0-9.]+)", _text("Dockerfile"))
    assert here == there


# Compose


def _compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(_text("config/compose.yaml"))
    return document


def test_the_settings_of_the_compose_example_are_accepted(tmp_path: Path) -> None:
    service = _compose()["services"]["gatekeeper"]
    settings = _loaded(_image_environment() | service["environment"], tmp_path)
    seconds = settings.shutdown_delay + settings.shutdown_grace
    assert float(service["stop_grace_period"].removesuffix("s")) > seconds


def test_the_secrets_of_the_compose_example_are_files() -> None:
    compose = _compose()
    service = compose["services"]["gatekeeper"]
    files = [value for name, value in service["environment"].items() if name.endswith("_FILE")]
    assert files == [f"/run/secrets/{name}" for name in service["secrets"]]
    for secret in compose["secrets"].values():
        # Where git does not look, and the builder neither.
        assert secret["file"].startswith("../.gatekeeper/")
    assert ".gatekeeper/" in _text(".gitignore").splitlines()


def test_the_store_of_the_compose_example_forgets_nothing() -> None:
    command = _compose()["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options == {"--appendonly": "yes", "--appendfsync": "always", "--maxmemory-policy": "noeviction"}


def test_only_gatekeeper_is_published_in_the_compose_example() -> None:
    published = {name for name, service in _compose()["services"].items() if "ports" in service}
    assert published == {"gatekeeper"}


# Kubernetes


def _kubernetes() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(_text("config/kubernetes.yaml"))}


def _pod() -> dict[str, Any]:
    pod: dict[str, Any] = _kubernetes()["Deployment"]["spec"]["template"]["spec"]
    return pod


def _container(name: str) -> dict[str, Any]:
    (found,) = [container for container in _pod()["containers"] if container["name"] == name]
    container: dict[str, Any] = found
    return container


def _sidecar_settings(tmp_path: Path) -> Settings:
    given = {variable["name"]: variable["value"] for variable in _container("gatekeeper")["env"]}
    return _loaded(_image_environment() | given, tmp_path)


def test_the_pod_of_the_kubernetes_example_lives_until_the_drain_is_over(tmp_path: Path) -> None:
    settings = _sidecar_settings(tmp_path)
    drain = settings.shutdown_delay + settings.shutdown_grace
    assert settings.shutdown_delay > 0
    assert drain < _pod()["terminationGracePeriodSeconds"]
    outlives = _container("backend")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drain <= outlives < _pod()["terminationGracePeriodSeconds"]


def test_the_kubernetes_example_asks_for_health_on_the_ops_port(tmp_path: Path) -> None:
    settings, sidecar = _sidecar_settings(tmp_path), _container("gatekeeper")
    ports = {port["name"]: port["containerPort"] for port in sidecar["ports"]}
    assert settings.ops_listen is not None
    assert (ports["http"], ports["ops"]) == (settings.listen.port, settings.ops_listen.port)
    asked = {kind: sidecar[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in asked.values()} == {"ops"}
    assert [probe["path"] for probe in asked.values()] == ["/livez", "/livez", "/readyz"]
    # A store that is silent is told as a fault, not as a probe that timed out.
    assert sidecar["readinessProbe"]["timeoutSeconds"] > settings.store_timeout


def test_the_kubernetes_example_has_its_secrets_as_files() -> None:
    sidecar = _container("gatekeeper")
    mounted = {mount["name"]: mount["mountPath"] for mount in sidecar["volumeMounts"]}
    files = [variable["value"] for variable in sidecar["env"] if variable["name"].endswith("_FILE")]
    assert len(files) == 2
    assert all(Path(file).parent == Path(mounted["secrets"]) for file in files)
    assert "Secret" not in _kubernetes()


def test_the_kubernetes_example_runs_the_image_as_its_user_and_this_version() -> None:
    sidecar = _container("gatekeeper")
    user = dict(_final_stage())["USER"].split(":")
    context = sidecar["securityContext"]
    assert [str(context["runAsUser"]), str(context["runAsGroup"])] == user
    assert context["runAsNonRoot"] is True
    assert context["readOnlyRootFilesystem"] is True
    assert _pod()["securityContext"]["fsGroup"] == context["runAsGroup"]
    assert sidecar["image"].endswith(f":{__version__}")


def test_the_service_of_the_kubernetes_example_leads_to_the_sidecar() -> None:
    (port,) = _kubernetes()["Service"]["spec"]["ports"]
    assert port["targetPort"] == "http"
    labels = _kubernetes()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert _kubernetes()["Service"]["spec"]["selector"] == labels
    open_ports = [rule["ports"][0]["port"] for rule in _kubernetes()["NetworkPolicy"]["spec"]["ingress"]]
    assert open_ports == [8000, 9090]


# Commands and documents


@pytest.mark.parametrize("name", ["run", "pythons", "check-pythons"])
def test_the_scripts_for_continuous_integration_can_run(name: str) -> None:
    script = _ROOT / ".ci" / name
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_continuous_integration_runs_everything_and_then_the_other_pythons() -> None:
    everything, others = _text(".ci/run").index("\nmake test\n"), _text(".ci/run").index("\n.ci/check-pythons ")
    assert everything < others


def test_the_changelog_names_the_version_and_its_date_below_what_is_unreleased() -> None:
    unreleased, latest, *_ = re.findall(r"^## (.*)", _text("CHANGELOG.md"), re.MULTILINE)
    assert unreleased == "[Unreleased]"
    released = re.fullmatch(r"\[(.+)\] - (\d{4}-\d\d-\d\d)", latest)
    assert released is not None
    assert released[1] == __version__
    assert date.fromisoformat(released[2])


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(document: str) -> None:
    folder = (_ROOT / document).parent
    for target in re.findall(r"\]\(([^)]+)\)", _text(document)):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = folder / path if path else _ROOT / document
            assert file.exists(), target
            headings = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
            assert not anchor or anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("document", [*_DOCUMENTS, "CHANGELOG.md", "Dockerfile", "config/compose.yaml"])
def test_a_document_names_settings_that_exist_only(document: str) -> None:
    known = {name for info in setting_infos(Model) for name in info.names}
    assert set(re.findall(r"\bGATEKEEPER_[A-Z][A-Z_]*[A-Z]\b", _text(document))) <= known


def test_the_page_on_dialects_lists_every_path_that_there_is() -> None:
    page = _text("docs/dialects.md")
    for name, dialect in DIALECTS.items():
        section = page.partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]
        listed = set(re.findall(r"^\| `([A-Z]+) (/[^`?]*)[^`]*` \|", section, re.MULTILINE))
        assert listed == {(operation.method, operation.path) for operation in dialect.operations}


def test_the_page_on_operations_lists_every_metric_and_every_field_of_the_access_line() -> None:
    page = _text("docs/operations.md")
    for family in Metrics("sidecar").registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"| `{name}" in page, name
    fields = (
        "ts level event request_id client_ip method route path status duration_ms upstream_ms decision reason "
        "user_id session_id bytes_out why"
    )
    assert re.findall(
        r"^\| `(\w+)` \|", page.partition("## The access line")[2].partition("\n## ")[0], re.MULTILINE
    ) == (fields.split())
