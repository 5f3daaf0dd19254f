"""Kimi delta attention, of Kimi Linear, Bailing-Hybrid and GLM-5: the same functions, with a decay a channel."""

from __future__ import annotations

from linrec import rules
from linrec.integrations.transformers.families.gated_delta import delta_replacements

REPLACEMENTS = delta_replacements(
    "chunk_kimi_delta_attention",
    "recurrent_kimi_delta_attention",
    rules.kimi_delta_attention,
    "kimi_delta_attention",
)
