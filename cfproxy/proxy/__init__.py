"""Handles one proxied request: access rules, header rewriting, token, retries, response, log line.

Other packages use `account_server` (`AccountServer`, `ProxySettings`), `exchange.build_connection`,
`access.AccessRules`, `retry.Forwarder` and `request_headers` (`Origin` and the parts of a request head).
"""
