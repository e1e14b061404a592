"""The configuration: a YAML file and the environment, validated into immutable settings.

Other packages use the names below: `find_config` and `load_settings` (which returns settings that fit
together or raises one `ConfigError` with every problem), the models in `Settings`, the address types, and
`render_settings`, `json_schema` and `starter_file` for output. They also use `conflicts.is_exposed`. To add a
setting, start in `settings.py`.
"""

from cfproxy.config.addresses import TcpAddress, UnixAddress
from cfproxy.config.load import SettingsReader, account_names, load_settings, problem_with
from cfproxy.config.redis_url import RedisAddress
from cfproxy.config.references import AccessKey, LocalUser
from cfproxy.config.render import filled_file, json_schema, render_settings, starter_file
from cfproxy.config.settings import (
    Access,
    Account,
    Log,
    Pacing,
    Settings,
    Store,
)
from cfproxy.config.sources import FoundConfig, find_config

__all__ = [
    "Access",
    "AccessKey",
    "Account",
    "FoundConfig",
    "LocalUser",
    "Log",
    "Pacing",
    "RedisAddress",
    "Settings",
    "SettingsReader",
    "Store",
    "TcpAddress",
    "UnixAddress",
    "account_names",
    "filled_file",
    "find_config",
    "json_schema",
    "load_settings",
    "problem_with",
    "render_settings",
    "starter_file",
]
