"""A local stand-in for Creative Force's two servers: a demo, a place to develop, and a test double.

Owns: the names that others use.
Must not know: the rest of cfproxy, whose real client it is there to meet.
"""

from cfproxy.sandbox.app import Sandbox
from cfproxy.sandbox.behaviour import Behaviour, InvalidSettings, Setting, describe_settings, parse_setting
from cfproxy.sandbox.browser import approve
from cfproxy.sandbox.faults import Fault
from cfproxy.sandbox.journal import TokenRequest

__all__ = [
    "Behaviour",
    "Fault",
    "InvalidSettings",
    "Sandbox",
    "Setting",
    "TokenRequest",
    "approve",
    "describe_settings",
    "parse_setting",
]
