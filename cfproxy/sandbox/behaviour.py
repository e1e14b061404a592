"""The sandbox's settings and faults: defaults, valid values, descriptions and the text form.

No `Behaviour` or `Fault` holds an invalid value, at construction or after an assignment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

FaultKind = Literal["status", "stall", "reset", "lost", "html", "garbage", "slow"]

_Grant = Literal["authorization_code", "client_credentials"]
_Flag = Annotated[bool, Field(strict=True)]
_Text = Annotated[str, Field(strict=True, min_length=1)]
_Word = Annotated[str, Field(strict=True, pattern=r"^\S+$")]
_Count = Annotated[int, Field(strict=True, ge=1, le=2**53)]
_Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
_HeaderName = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9-]+$")]
_HeaderValue = Annotated[str, Field(strict=True, pattern=r"^\P{C}*$")]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_UNKNOWN = {
    "extra_forbidden": "there is no such setting",
    "unexpected_keyword_argument": "a fault has no such field",
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Fault:
    """One fault, for the next `times` requests.

    Args:
        kind: `status` answers with `status`, `headers` and `body`; `stall` never answers; `reset`
            cuts the connection before anything is done; `lost` carries out the request and cuts the
            connection instead of answering; `html` answers a page with 200; `garbage` answers
            `size_bytes` of bytes that are not JSON with 200, as JSON; `slow` carries out the request
            at once and answers `delay_s` later.
        status: an HTTP status, 200 to 599.
        body: the text of a `status` answer.
        headers: headers of a `status` answer; the content type defaults to `text/plain`.
        size_bytes: the size of a `garbage` answer.
        delay_s: seconds by which a `slow` answer is delayed.
        times: how many requests it affects.
    """

    kind: FaultKind
    status: Annotated[int, Field(strict=True, ge=200, le=599)] = 500
    body: Annotated[str, Field(strict=True)] = ""
    headers: dict[_HeaderName, _HeaderValue] = Field(default_factory=dict)
    size_bytes: Annotated[int, Field(strict=True, ge=0, le=2**53)] = 65536
    delay_s: _Seconds = 1.0
    times: _Count = 1

    @property
    def is_processed(self) -> bool:
        """Whether the request is still carried out."""
        return self.kind in ("lost", "slow")


class Behaviour(BaseModel):
    """The sandbox's settings, all of which may change while it runs.

    The description of each setting is also its documentation in docs/sandbox.md. Durations are seconds.
    An unknown setting or an invalid value raises ValueError.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, use_attribute_docstrings=True)

    client_id: _Text = "sandbox-client"
    """the app's client id"""
    client_secret: _Text = "sandbox-secret"  # noqa: S105 - made up
    """the app's client secret; made up, and shown by the control plane"""
    app_name: _Text = "Demo Integration"
    """the app's name on the consent page"""
    grants: tuple[_Grant, ...] = ("authorization_code", "client_credentials")
    """the app's registered grants: either or both of these; any other gets `unauthorized_client`"""
    redirect_uris: tuple[_Word, ...] = ("https://integration.example/callback",)
    """the app's redirect URIs, compared exactly; the sandbox's own `/paste` is always registered"""
    iss_in_redirect: _Flag = True
    """whether the redirect carries `iss` (RFC 9207)"""
    require_pkce: _Flag = False
    """whether a login without PKCE is refused"""
    code_lifetime_s: _Seconds = 1800.0
    """lifetime of an authorization code, in seconds"""
    access_lifetime_s: _Seconds = 3600.0
    """lifetime of an access token, in seconds"""
    refresh_lifetime_s: _Seconds = 2592000.0
    """lifetime of a refresh token, in seconds"""
    refresh_expiry: Literal["absolute", "sliding"] = "absolute"
    """`absolute`: counted from the login; `sliding`: counted anew from every refresh"""
    rotation: _Flag = True
    """whether a refresh token can be used only once"""
    reuse_detection: Literal["none", "revoke"] = "none"
    """`revoke`: a replayed refresh token revokes all refresh tokens of its login; `none`: only refused"""
    refresh_token_in_reply: _Flag = True
    """whether a refresh without rotation repeats the refresh token in its answer"""
    token_format: Literal["opaque", "jwt"] = "opaque"  # noqa: S105 - a format
    """the format of access tokens: `opaque` or `jwt`"""
    limiter: Literal["fixed", "sliding", "off"] = "fixed"
    """`fixed`: windows that start with a call; `sliding`: the period before each call; `off`: no limit"""
    limit_rate: _Count = 20
    """API calls that one IP address may make in `limit_per_s`"""
    limit_per_s: Annotated[_Seconds, Field(gt=0)] = 1.0
    """the period for `limit_rate`, in seconds"""
    blocked_calls_count: _Flag = True
    """`sliding` only: whether a call that got 429 also counts against the limit"""
    retry_after: _Flag = True
    """whether a 429 carries `Retry-After`, in whole seconds"""
    www_authenticate: _Flag = True
    """whether a 401 carries `WWW-Authenticate`"""
    token_faults: list[Fault] = Field(default_factory=list)
    """faults for the next calls of the token endpoint"""
    api_faults: list[Fault] = Field(default_factory=list)
    """faults for the next calls of the API"""

    def update(self, changes: Mapping[str, object]) -> None:
        """Set several settings, all or none.

        Raises:
            InvalidSettings: with every problem.
        """
        checked = _validate(changes)
        for name in changes:
            setattr(self, name, getattr(checked, name))


class InvalidSettings(ValueError):
    """Some settings or fields of a fault are unknown or invalid; `problems` lists all of them."""

    def __init__(self, error: ValidationError) -> None:
        self.problems = []
        for each in error.errors(include_url=False):
            text = _UNKNOWN.get(each["type"], each["msg"].replace("Input should", "must"))
            self.problems.append(f"{'.'.join(map(str, each['loc']))}: {text}")
        super().__init__("; ".join(self.problems))


def parse_setting(name: str, text: str) -> object:
    """Return the value of the setting `name` that `text` stands for.

    Durations may have a unit (`30s`, `5m`, `1h`, `30d`), lists are separated by spaces and faults are JSON.

    Raises:
        ValueError: `name` is unknown (the message lists the known ones), or `text` is not a valid value.
    """
    known = Behaviour.model_fields
    if name not in known:
        raise ValueError(f"there is no setting '{name}'; there are {', '.join(known)}")
    value: object = text
    match known[name].get_default(call_default_factory=True):
        case bool():
            value = _FLAGS.get(text.lower(), text)
        case int() if re.fullmatch(r"[0-9]{1,17}", text):
            value = int(text)
        case float():
            value = _parse_duration(name, text)
        case tuple():
            value = text.split()
        case list():
            try:
                value = json.loads(text)
            except ValueError:
                raise ValueError(
                    f'{name}: expected JSON such as [{{"kind": "status", "status": 500}}]'
                ) from None
    return getattr(_validate({name: value}), name)


def parse_fault(document: Mapping[str, object]) -> Fault:
    """Return a fault from its JSON form; raise InvalidSettings if it is not valid."""
    try:
        return Fault(**document)  # type: ignore[arg-type]  # pydantic checks the fields
    except ValidationError as error:
        raise InvalidSettings(error) from None


def _parse_duration(name: str, text: str) -> float:
    try:
        match = _DURATION.fullmatch(text)
        return float(match[1]) * _UNIT_S[match[2]] if match else float(text)
    except ValueError:
        raise ValueError(f"{name}: expected a duration such as 3600, 90s, 30m, 1h or 30d") from None


def _validate(settings: Mapping[str, object]) -> Behaviour:
    try:
        return Behaviour.model_validate(dict(settings))
    except ValidationError as error:
        raise InvalidSettings(error) from None
