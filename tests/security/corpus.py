"""The whole corpus."""

from __future__ import annotations

from tests.security.case import Case
from tests.security.cases import chunks, framing, hop, hosts, letters, pipelines, protocols, sizes, targets

CORPUS: tuple[Case, ...] = tuple(
    case
    for kind in (framing, chunks, letters, targets, hosts, hop, pipelines, protocols, sizes)
    for case in kind.CASES
)
BY_NAME = {case.name: case for case in CORPUS}
