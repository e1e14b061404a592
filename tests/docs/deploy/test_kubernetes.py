"""docs/deploy/kubernetes-*.yaml: valid, probed by a cfproxy command, and accepted by cfproxy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cfproxy.config import RedisAddress
from tests.docs.deploy.files import load_with, parse_command, read_documents

FILES = ["kubernetes-sidecar.yaml", "kubernetes-replicas.yaml"]
SINCE = "1.33"  # where native sidecars are stable


def _kinds(name: str) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in read_documents(name)}


def _pod(name: str) -> dict[str, Any]:
    pod: dict[str, Any] = _kinds(name)["Deployment"]["spec"]["template"]["spec"]
    return pod


def _proxy(name: str) -> dict[str, Any]:
    pod = _pod(name)
    containers = [*pod.get("initContainers", ()), *pod["containers"]]
    (proxy,) = [container for container in containers if container["name"] == "cfproxy"]
    return dict(proxy)


def _environment(name: str) -> dict[str, str]:
    return {item["name"]: item["value"] for item in _proxy(name)["env"]}


def _secrets(name: str) -> dict[str, str]:
    """Write the Secret's files as the volume mounts them."""
    (mount,) = [mount for mount in _proxy(name)["volumeMounts"] if mount["name"] == "secrets"]
    return {f"{mount['mountPath']}/{key}": f"the-{key}" for key in _kinds(name)["Secret"]["stringData"]}


def _probes(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in _proxy(name).items():
        if key.endswith("Probe"):
            yield key, value


@pytest.mark.parametrize("name", FILES)
def test_each_object_satisfies_its_schema(name: str) -> None:
    """Kubernetes' own strict schema accepts it; unknown keys are errors."""
    validating = pytest.importorskip("kubernetes_validate", reason="needs `make schemas`")
    for document in read_documents(name):
        validating.validate(document, SINCE, strict=True)
    wrong = read_documents(name)[0]
    wrong["spec"]["replicass"] = 1
    with pytest.raises(validating.ValidationError):
        validating.validate(wrong, SINCE, strict=True)


def test_cfproxy_accepts_the_sidecar_s_environment(tmp_path: Path) -> None:
    """It listens inside the pod only, so it needs no key."""
    settings = load_with(_environment(FILES[0]), _secrets(FILES[0]), tmp_path)
    account = settings.accounts["default"]
    assert [str(account.listen), str(settings.admin)] == ["localhost:8080", "localhost:8081"]
    assert account.client_secret is not None
    assert account.client_secret.reveal() == "the-client_secret"
    assert _proxy(FILES[0])["restartPolicy"] == "Always"
    assert _kinds(FILES[0])["NetworkPolicy"]["spec"]["ingress"] == []


def test_cfproxy_accepts_the_replicas_configuration(tmp_path: Path) -> None:
    """Replicas share login and rate, require a key, and accept the Service's name."""
    kinds = _kinds(FILES[1])
    environ = _environment(FILES[1])
    path = environ.pop("CFPROXY_CONFIG")
    folder, _, file = path.rpartition("/")
    assert {"name": "config", "mountPath": folder, "readOnly": True} in _proxy(FILES[1])["volumeMounts"]
    config = kinds["ConfigMap"]["data"][file]
    settings = load_with(environ, _secrets(FILES[1]), tmp_path, config)
    account = settings.accounts["default"]
    assert isinstance(account.store.url, RedisAddress)
    assert account.pacing.shared
    assert account.access.keys
    service = kinds["Service"]
    port = service["spec"]["ports"][0]["port"]
    assert f"{service['metadata']['name']}:{port}" in account.access.hosts
    (container_port,) = _proxy(FILES[1])["ports"]
    assert str(account.listen) == f"0.0.0.0:{container_port['containerPort']}"


@pytest.mark.parametrize("name", FILES)
def test_probes_run_cfproxy_commands(name: str) -> None:
    """Only liveness decides about a restart, and each probe has enough time."""
    asked = {}
    for key, probe in _probes(name):
        program, *words = probe["exec"]["command"]
        command, options, _ = parse_command(words)
        assert (program, command) == ("cfproxy", "wait")
        assert options["timeout_s"] < probe["timeoutSeconds"]
        asked[key] = options["state"]
    assert asked["livenessProbe"] == "live"
    assert asked["readinessProbe"] == "ready"


@pytest.mark.parametrize("name", FILES)
def test_pods_are_locked_down_and_have_time_to_drain(name: str) -> None:
    """They meet the restricted Pod Security Standard and have a read-only root."""
    pod, proxy = _pod(name), _proxy(name)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = proxy["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["runAsUser"] == pod["securityContext"]["fsGroup"] == 65532
    # Otherwise kubelet opens all files of the volume to that group at each mount.
    assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    assert pod["enableServiceLinks"] is False
    before_s = proxy.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pod["terminationGracePeriodSeconds"] - before_s > 9 + 30  # timeouts.drain and timeouts.token
