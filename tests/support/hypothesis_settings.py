"""How Hypothesis draws: the same examples in every run, without a clock and without notes of earlier runs."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")

# Of tests that draw many requests at once and send them together: no shrinking, for each try takes seconds; a failure
# names its request.
BATCHES = settings(phases=[Phase.generate], suppress_health_check=list(HealthCheck))
