"""A local stand-in for Creative Force's two servers, for the demo, for development and for tests.

`Sandbox` runs the accounts server, the API, the object store and the control plane on one port.
`Behaviour` holds its settings (`parse_setting` reads one from text), `Fault` describes one misbehaviour,
`TokenRequest` one call of the token endpoint, and `approve` presses the buttons of the login page.
The sandbox shares only the ground modules with the proxy, so that both sides of a test stay independent.
"""

from cfproxy.sandbox.app import Sandbox
from cfproxy.sandbox.behaviour import Behaviour, Fault, InvalidSettings, parse_setting
from cfproxy.sandbox.browser import approve
from cfproxy.sandbox.journal import TokenRequest

__all__ = [
    "Behaviour",
    "Fault",
    "InvalidSettings",
    "Sandbox",
    "TokenRequest",
    "approve",
    "parse_setting",
]
