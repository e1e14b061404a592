"""The HTTP client for the API: a connection pool, and requests that may be sent without waiting.

Other packages use `client.UpstreamClient`, which returns a `client.UpstreamResponse` for each `request.Call`.
It knows tokens only as an `Authorization` value. What to retry after a response is decided in `proxy`.
"""
