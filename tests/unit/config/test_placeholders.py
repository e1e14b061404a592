"""Secrets that look like placeholders which nothing has replaced."""

from __future__ import annotations

import pytest

from cfproxy.config import load_settings
from cfproxy.config.conflicts import placeholder_warnings
from tests.support.config_loader import ENVIRON


def _warned(environ: dict[str, str]) -> list[str]:
    settings = load_settings(None, {**ENVIRON, **environ})
    warnings = list(placeholder_warnings(settings))
    for warning in warnings:
        assert warning.source == "environment"
        assert environ.get("CF_X", "%KEY%") not in str(warning)
    return [warning.path for warning in warnings]


@pytest.mark.parametrize(
    "value",
    [
        *("${CF_SECRET}", "${CF_SECRET:-}", "$CF_SECRET", "$(CF_SECRET)", "${{ secrets.CF }}", "%CF_SECRET%"),
        *("{{ cf_secret }}", "{{cf}}", "{cf_secret}", "#{CF_SECRET}#", "#{cf}", "@{cf}", "%{cf}", "@@CF@@"),
        *("<secret>", "<your client secret>", "[redacted]", "__CF_SECRET__", "env:CF_SECRET", "file:/run/x"),
        *(
            "vault:secret/cf#id",
            "op://vault/cf/secret",
            "!vault cf",
            "changeme",
            "CHANGE_ME",
            "change-this!",
            "put-it-in-with-your-own-tool",
        ),
        *(
            "your-secret",
            "your client secret here",
            "xxx",
            "XXXXXXXX",
            "***",
            "...",
            "todo",
            "none",
            " ${X} ",
            "$env:CF_SECRET",
            "@Microsoft.KeyVault(SecretUri=https://a.example/secrets/cf)",
            "ENC[AES256_GCM,data:Zm9v,iv:YmFy,tag:YmF6,type:str]",
            "ENC(Zm9vYmFy)",
            "ssm:/cf/secret",
        ),
    ],
)
def test_a_placeholder_is_noticed(value: str) -> None:
    """Whichever tool should have replaced it."""
    assert _warned({"CFPROXY_CLIENT_SECRET__ENV": "CF_X", "CF_X": value}) == ["client_secret"]


@pytest.mark.parametrize(
    "value",
    [
        *(
            "hunter2",
            "pa$$word",
            "a${b",
            "{x",
            "x}",
            "<3abc",
            "100%sure",
            "a b c",
            "$5.00",
            "xx",
            "s",
            "**ab**",
            "a(b)",
            "@a.b",
            "$env:",
        ),
        *("Zm9vYmFyYmF6", "9f86d081884c7d65", "p@ss@w0rd", "__init", "environment", "nullable", "exchange"),
    ],
)
def test_other_secrets_are_not(value: str) -> None:
    """Special characters alone mean nothing."""
    assert _warned({"CFPROXY_CLIENT_SECRET__ENV": "CF_X", "CF_X": value}) == []


def test_every_kind_of_secret_is_looked_at() -> None:
    """The app's, the store's and access keys, each account's own once."""
    environ = {
        "CFPROXY_CLIENT_ID": "${ID}",
        "CFPROXY_CLIENT_SECRET": "$SECRET",
        "CFPROXY_STORE__URL": "redis://localhost/0",
        "CFPROXY_STORE__PASSWORD": "{{ redis }}",
        "CFPROXY_STORE__KEY": "<passphrase>",
        "CFPROXY_ACCESS__KEYS": "fine,%KEY%",
        "CFPROXY_ACCOUNTS__ACME": "{listen: 8090, client_secret: changeme, access: {keys: [ok]}}",
    }
    assert sorted(_warned(environ)) == [
        "access.keys.1",
        "accounts.acme.client_secret",
        *("client_id", "client_secret", "store.key", "store.password"),
    ]
