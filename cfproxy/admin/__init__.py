"""The admin listener: health checks, status, metrics, the status and login pages, operations.

`listener.AdminListener` belongs to the process and serves a `ListeningSocket`; `access.AdminRules` says who
may call it; `interfaces` declares what it needs of the running proxy. Handlers are functions from
`messages.AdminRequest` to `messages.AdminResponse`, listed in `app.AdminApp`; `server.AdminServer` runs them
on the connections of `cfproxy.server`.
"""
