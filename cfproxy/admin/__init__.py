"""The admin listener: health checks, status, metrics, the status and login pages, operations.

`listener.AdminListener` serves a `ListeningSocket` of the process; `access.AdminRules` decides who
may call it; `interfaces` declares what it needs of the running proxy. Handlers are functions from
`messages.AdminRequest` to `messages.AdminResponse`, listed in `app.AdminApp`; `server.AdminServer` runs them
on the connections of `cfproxy.server`.
"""
