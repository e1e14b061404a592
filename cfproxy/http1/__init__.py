"""HTTP/1.1 as bytes, shared by the server and the upstream client; it decides nothing about requests.

`parser`, `request_line` and `framing` turn bytes into heads and bodies, `stream` moves them over
connections with back-pressure and timeouts, `turns` keeps connections from delaying each other, and
`headers` names the headers that other packages have rules for.
"""
