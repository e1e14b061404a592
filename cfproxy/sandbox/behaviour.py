"""How the sandbox plays its two servers.

Owns: every setting with its default, its valid values and its description, and the text and JSON
forms of settings.
Must not know: what any setting does.
Invariant: no `Behaviour` holds an invalid value, and a setting that does not exist can't be set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple, TypeVar

from cfproxy.sandbox.faults import Fault, Faults
from cfproxy.sandbox.kinds import Choice, Flag, Kind, Seconds, Text, Texts, Whole

T = TypeVar("T")


def _setting(default: T, kind: Kind, text: str) -> T:
    return field(default=default, metadata={"kind": kind, "text": text})


@dataclass
class Behaviour:
    """The sandbox's settings, all of which may change while it runs.

    The text beside each setting is its documentation: docs/sandbox.md and the command line show it.
    Durations are seconds; setting anything invalid raises ValueError, anything unknown AttributeError.
    """

    client_id: str = _setting("sandbox-client", Text(), "the app's client id")
    client_secret: str = _setting(
        "sandbox-secret", Text(), "the app's client secret; made up, and shown by the control plane"
    )
    app_name: str = _setting("Demo Integration", Text(), "the app's name on the consent page")
    grants: tuple[str, ...] = _setting(
        ("authorization_code", "client_credentials"),
        Texts(("authorization_code", "client_credentials")),
        "the grants that the app is registered for: either or both of these; "
        "another one gets `unauthorized_client`",
    )
    redirect_uris: tuple[str, ...] = _setting(
        ("https://integration.example/callback",),
        Texts(),
        "the app's redirect URIs, compared exactly; the sandbox's own `/paste` is always one more",
    )
    iss_in_redirect: bool = _setting(True, Flag(), "whether the redirect carries `iss` (RFC 9207)")
    require_pkce: bool = _setting(False, Flag(), "whether a login without PKCE is refused")
    code_lifetime_s: float = _setting(1800.0, Seconds(), "seconds that an authorization code lives")
    access_lifetime_s: float = _setting(3600.0, Seconds(), "seconds that an access token lives")
    refresh_lifetime_s: float = _setting(2592000.0, Seconds(), "seconds that a refresh token lives")
    refresh_expiry: Literal["absolute", "sliding"] = _setting(
        "absolute",
        Choice(("absolute", "sliding")),
        "`absolute`: counted from the login; `sliding`: counted anew with every refresh",
    )
    rotation: bool = _setting(True, Flag(), "whether a refresh token is good for one use only")
    reuse_detection: Literal["none", "revoke"] = _setting(
        "none",
        Choice(("none", "revoke")),
        "`revoke`: replaying a used refresh token revokes every refresh token of that login; "
        "`none`: it is refused, and that is all",
    )
    refresh_token_in_reply: bool = _setting(
        True, Flag(), "whether a refresh without rotation repeats the refresh token in its answer"
    )
    token_format: Literal["opaque", "jwt"] = _setting(
        "opaque", Choice(("opaque", "jwt")), "what access tokens look like: `opaque` or `jwt`"
    )
    limiter: Literal["fixed", "sliding", "off"] = _setting(
        "fixed",
        Choice(("fixed", "sliding", "off")),
        "`fixed`: windows that begin with their first call; `sliding`: the time before each call; "
        "`off`: no limit",
    )
    limit_rate: int = _setting(20, Whole(1), "API calls that one IP address may make in `limit_per_s`")
    limit_per_s: float = _setting(1.0, Seconds(above_zero=True), "seconds that `limit_rate` is counted over")
    blocked_calls_count: bool = _setting(
        True, Flag(), "`sliding` only: whether a call that got 429 counts against the limit as well"
    )
    retry_after: bool = _setting(True, Flag(), "whether a 429 carries `Retry-After`, in whole seconds")
    www_authenticate: bool = _setting(True, Flag(), "whether a 401 carries `WWW-Authenticate`")
    token_faults: list[Fault] = field(
        default_factory=list,
        metadata={"kind": Faults(), "text": "faults for the next calls of the token endpoint"},
    )
    api_faults: list[Fault] = field(
        default_factory=list, metadata={"kind": Faults(), "text": "faults for the next calls of the API"}
    )

    def __setattr__(self, name: str, value: object) -> None:
        kind = _kinds().get(name)
        if kind is None:
            raise AttributeError(f"the sandbox has no setting '{name}'")
        try:
            checked = kind.check(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        object.__setattr__(self, name, checked)

    def to_document(self) -> dict[str, Any]:
        """Return all settings in JSON types."""
        return asdict(self)

    def update(self, changes: Mapping[str, object]) -> None:
        """Set several settings, all or none.

        Raises:
            InvalidSettings: with every problem.
        """
        problems: list[str] = []
        for name, value in changes.items():
            kind = _kinds().get(name)
            if kind is None:
                problems.append(f"{name}: there is no such setting")
                continue
            try:
                kind.check(value)
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise InvalidSettings(problems)
        for name, value in changes.items():
            setattr(self, name, value)


class InvalidSettings(ValueError):
    """Some settings are unknown or invalid; `problems` lists all of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Setting(NamedTuple):
    """One setting as people see it."""

    name: str
    default: str
    text: str


def describe_settings() -> tuple[Setting, ...]:
    """Return every setting in order, its default as `parse_setting` reads it."""
    described = []
    for each in fields(Behaviour):
        default = each.default if each.default is not MISSING else []
        described.append(Setting(each.name, each.metadata["kind"].render(default), each.metadata["text"]))
    return tuple(described)


def parse_setting(name: str, text: str) -> object:
    """Return the value that `text` means for the setting `name`.

    Raises:
        ValueError: unknown name (the text lists the known ones), or not a value of that setting.
    """
    kinds = _kinds()
    if name not in kinds:
        raise ValueError(f"there is no setting '{name}'; there are {', '.join(kinds)}")
    try:
        return kinds[name].parse(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _kinds() -> dict[str, Kind]:
    return {each.name: each.metadata["kind"] for each in fields(Behaviour)}
