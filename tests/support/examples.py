"""Hypothesis profiles, and how many examples a test runs under the one in use.

`make test` runs `default`, `make quick` runs `quick`. Neither has a deadline or judges how long examples take
to make, because time says nothing on a machine that runs other tests at the same time.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

DEFAULT_EXAMPLES = 100
QUICK_EXAMPLES = 10


def load_profiles() -> None:
    """Register the profiles and load `default`; `--hypothesis-profile` may choose the other one later."""
    current = settings()  # in CI, Hypothesis has settings of its own
    untimed = settings(current, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("default", untimed, max_examples=DEFAULT_EXAMPLES)
    settings.register_profile("quick", untimed, max_examples=QUICK_EXAMPLES)
    settings.load_profile("default")


def examples(count: int) -> int:
    """Return `count` under `default`, and no more than the profile's own number under a smaller profile.

    For a test that needs another number than the default. Call it where the test is defined, for
    `hypothesis.settings(max_examples=…)`.
    """
    profile = settings().max_examples
    return count if profile >= DEFAULT_EXAMPLES else min(count, profile)
