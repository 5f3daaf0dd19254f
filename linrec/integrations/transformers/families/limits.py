"""Parts of models that linrec does not compute, and that get padding or documents wrong whatever the mixers do."""

from __future__ import annotations

REPLACEMENTS = ()

LIMITS = {
    "Glm5NextTextIndexer": "pools keys across padding behind a prompt, and across documents",
    "GraniteMoeHybridAttention": "sees all documents of a row",
    "BambaAttention": "needs position_ids where a cache is continued",
}
