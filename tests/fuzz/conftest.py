"""How much is drawn: the same few examples every time, or as many new ones as ``FUZZ_EXAMPLES`` says."""

import os

from hypothesis import HealthCheck, settings

CHECKS = list(HealthCheck)
settings.register_profile(
    "fixed", derandomize=True, database=None, max_examples=40, deadline=None, suppress_health_check=CHECKS
)
settings.register_profile(
    "long",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "1000")),
    deadline=None,
    print_blob=True,
    suppress_health_check=CHECKS,
)
settings.load_profile("long" if "FUZZ_EXAMPLES" in os.environ else "fixed")
