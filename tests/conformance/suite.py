"""All cases, in the order of the page."""

from __future__ import annotations

from tests.conformance import answers, bodies, connections, requests

GROUPS = (
    requests.targets,
    requests.methods,
    requests.headers,
    requests.credentials,
    answers.status_lines,
    answers.headers,
    answers.bodiless,
    answers.redirects,
    bodies.bytes_up,
    bodies.bytes_down,
    bodies.framing,
    bodies.trailers,
    bodies.streams,
    bodies.cuts,
    bodies.cuts_up,
    connections.expectations,
    connections.interim,
    connections.early,
    connections.clients,
)
