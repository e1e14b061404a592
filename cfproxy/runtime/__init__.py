"""The composition root: builds the proxy from the settings, and starts, reloads and drains it.

Others use `service.Service`, the running proxy, and `factory.build_*`, which map settings to components.
`account` holds what serves one account, `reload_rules` compares configurations, and `os_limits` and `systemd`
talk to the operating system and the service manager.
"""
