"""From the merged tree of keys to settings: inheritance, presets, validation, agreement.

Owns: which accounts there are, what each inherits, and where a problem with a value belongs.
Must not know: where the tree comes from.
Invariant: always returns settings; where the findings are empty, these are the settings that were asked
for and they fit together, otherwise defaults stand for broken values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from cfproxy.config.conflicts import (
    EXPOSED,
    is_exposed,
    key_conflicts,
    listen_conflicts,
    own_conflicts,
    pacing_conflicts,
)
from cfproxy.config.keys import drop_nulls, has_key, keys_of, merge
from cfproxy.config.problems import Problems
from cfproxy.config.references import Context
from cfproxy.config.settings import Account, AccountKeys, Model, ProcessKeys, Settings
from cfproxy.config.tree import Keys, Tree

# What a word stands for: defaults of other keys, so whatever is set explicitly wins.
_PRESETS = {
    ("environment", "sandbox"): {
        "upstream": "https://sandbox-gateway.creativeforce.io",
        "authorize_url": "https://sandbox-accounts.creativeforce.io/connect/authorize",
        "token_url": "https://sandbox-accounts.creativeforce.io/connect/token",
        "revocation_url": "https://sandbox-accounts.creativeforce.io/connect/revocation",
    },
    ("grant", "client_credentials"): {"scope": "cfgateway"},
}
_TYPE_TEXTS = {
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
    "tuple_type": "must be a list such as [a, b]",
}
_NO_CLIENT_ID = (
    "must be set, here or as CFPROXY_CLIENT_ID: the id of the app registered with Creative Force "
    "(`cfproxy config init` writes a file to start from)"
)

M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True)
class _Draft:
    """One account before validation: what it sets itself, and with what it inherits."""

    name: str
    prefix: Keys
    own: Tree
    top: Tree
    broken: set[str] = field(default_factory=set)

    def locate(self, loc: Keys) -> Keys:
        """Return where a key that matters for this account is written."""
        inherited = not has_key(self.own, loc) and has_key(self.top, loc)
        return loc if inherited else (*self.prefix, *loc)

    def complete(self) -> Tree:
        tree = drop_nulls(merge(self.top, self.own))
        preset: Tree = {}
        for (key, word), values in _PRESETS.items():
            if str(tree.get(key)).strip().lower() == word:
                preset |= values
        return {**preset, **tree}


def build_settings(root: Tree, context: Context, findings: Problems) -> Settings:
    """Return settings in which broken values are replaced by defaults; the findings tell which."""
    drafts = _drafts(root, findings)
    _report_missing_ids(drafts, findings)
    accounts = {}
    for draft in drafts:
        fixed = {"name": draft.name, "client_id": "missing", "config_file": context.named}
        account, broken = _validated(
            Account, fixed | draft.complete(), fixed, context, draft.locate, findings
        )
        accounts[draft.name] = account
        draft.broken.update(broken)
    keys = drop_nulls({key: root[key] for key in keys_of(ProcessKeys) if key in root})
    process, _ = _validated(ProcessKeys, keys, {}, context, lambda loc: loc, findings)
    settings = Settings(admin=process.admin, log=process.log, accounts=accounts, source=findings.source)
    _check_together(settings, {draft.name: draft for draft in drafts}, findings)
    return settings


def names_of(root: Tree) -> list[str]:
    """Return the names of the accounts that the tree makes."""
    return [draft.name for draft in _drafts(root, Problems(""))]


def _drafts(root: Tree, findings: Problems) -> list[_Draft]:
    top = {key: value for key, value in root.items() if key in keys_of(AccountKeys)}
    named = root.get("accounts", {})
    drafts = [_Draft(name, ("accounts", name), own, top) for name, own in named.items()]
    has_default = top.get("client_id") is not None
    if has_default and "default" in named:
        text = "is taken: the top level, which has a client_id, is the account 'default'"
        findings.add(("accounts", "default"), text)
        drafts = [draft for draft in drafts if draft.name != "default"]
    if has_default or not drafts:
        drafts.insert(0, _Draft("default", (), top, top))
    return drafts


def _report_missing_ids(drafts: list[_Draft], findings: Problems) -> None:
    missing = [draft for draft in drafts if "client_id" not in draft.complete()]
    for draft in missing:
        draft.broken.add("client_id")
        nobody_has_one = len(missing) == len(drafts)
        findings.add(("client_id",) if nobody_has_one else (*draft.prefix, "client_id"), _NO_CLIENT_ID)


def _validated(
    model: type[M],
    tree: Tree,
    fixed: Tree,
    context: Context,
    locate: Callable[[Keys], Keys],
    findings: Problems,
) -> tuple[M, set[str]]:
    """Return the model and the keys whose values were broken and left out; `fixed` is never left out."""
    broken: set[str] = set()
    try:
        return model.model_validate(tree, context=context), broken
    except ValidationError as error:
        for item in error.errors(include_url=False, include_input=False):
            loc = tuple(map(str, item["loc"]))
            broken.add(loc[0])
            findings.add(locate(loc), _explained(item["type"], item.get("ctx", {})))
    sound = {key: value for key, value in tree.items() if key not in broken}
    return model.model_validate(fixed | sound, context=context), broken


def _explained(kind: str, details: Mapping[str, Any]) -> str:
    if "error" in details:
        return str(details["error"])
    if kind.startswith("int_"):
        return "must be a whole number"
    return _TYPE_TEXTS.get(kind, "is not a value of the right kind").format_map(details)


def _check_together(settings: Settings, drafts: Mapping[str, _Draft], findings: Problems) -> None:
    """Report what single values can't show; what rests on a broken value is not reported again."""

    def sound(*keys: str) -> dict[str, Account]:
        accounts = settings.accounts.items()
        return {name: account for name, account in accounts if not drafts[name].broken & set(keys)}

    for name, account in settings.accounts.items():
        for involved, loc, text in own_conflicts(account):
            if not involved & drafts[name].broken:
                findings.add(drafts[name].locate(loc), text)
    for name, index, text in key_conflicts(settings.accounts):
        if "access" not in drafts[name].broken:
            findings.add(drafts[name].locate(("access", "keys", str(index))), text)
    for name, text in listen_conflicts(settings.admin, sound("listen")):
        findings.add((*drafts[name].prefix, "listen"), text)
    for name, text in pacing_conflicts(sound("pacing", "upstream", "environment")):
        findings.add((*drafts[name].prefix, "pacing"), text)
    if any(is_exposed(settings.admin, account.access) for account in sound("access").values()):
        findings.add(("admin",), EXPOSED)
