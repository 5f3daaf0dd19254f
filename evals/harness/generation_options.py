"""What a task's ``generation_kwargs`` come to: honoured as lm-eval's own wrapper reads them, or refused by name."""

from __future__ import annotations

import difflib
import math
from typing import Any, NamedTuple

from lm_eval.models.utils import normalize_gen_kwargs

from linrec.errors import ConfigError

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first given counts
HONOURED = ("until", *LIMITS, "max_length", "do_sample", "temperature", "top_k", "top_p")
# Options of transformers' generate that change nothing at these values, or left out (None), and are refused at others.
NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "early_stopping": False,
    "length_penalty": 1.0,
    "diversity_penalty": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    "renormalize_logits": False,
    "use_cache": True,
}


class GenerationOptions(NamedTuple):
    """How to continue a prompt.

    ``stops`` are the stop strings. At most ``limit`` tokens are written, or, where
    ``total`` is given (``max_length``), as many as make up ``total`` with those of the prompt. ``temperature`` 0 is
    greedy, which ``top_k`` and ``top_p`` do not change.
    """

    stops: tuple[str, ...]
    limit: int
    total: int | None
    temperature: float
    top_k: int | None
    top_p: float | None

    @classmethod
    def of(cls, options: dict[str, Any], max_gen_toks: int = 256) -> GenerationOptions:
        """From a task's options. ConfigError, with its name, for one that is not honoured or has no meaning."""
        if not isinstance(options, dict):
            raise ConfigError(f"generation_kwargs: expected a dictionary, got {options!r}")
        _check_names(options)
        _check_numbers(options)
        stops = _stops(options.get("until"))
        given = {name: value for name, value in options.items() if value is not None and name in HONOURED}
        settings: dict[str, Any] = dict(normalize_gen_kwargs(given, max_gen_toks))
        sampled, temperature = settings["do_sample"], float(settings.get("temperature", 0.0))
        if sampled and temperature == 0:
            raise ConfigError("do_sample: true expects a temperature above 0 beside it, got none")
        return cls(
            stops,
            settings["max_gen_toks"],
            settings.get("max_length"),
            temperature if sampled else 0.0,
            settings.get("top_k") or None,  # 0 is how transformers says none
            settings.get("top_p"),
        )

    def room(self, prompt: int) -> int:
        """Tokens to write after a prompt of this many. ConfigError where ``max_length`` leaves none."""
        if self.total is None:
            return self.limit
        if self.total <= prompt:
            raise ConfigError(
                f"max_length counts prompt and new tokens; expected more than the {prompt} of this prompt, "
                f"got {self.total}"
            )
        return self.total - prompt


def _check_names(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name in HONOURED:
            continue
        if name not in NEUTRAL:
            near = difflib.get_close_matches(str(name), [*HONOURED, *NEUTRAL], n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(HONOURED)}"
            raise ConfigError(
                f"generation_kwargs: {name!r} (= {value!r}) is not an option of this model{hint}"
            )
        same = value == NEUTRAL[name] and isinstance(value, bool) == isinstance(NEUTRAL[name], bool)
        if value is not None and not same:
            raise ConfigError(
                f"generation_kwargs: {name}={value!r} is not supported by this model, which decodes greedily or "
                f"samples; expected {name}={NEUTRAL[name]!r} or nothing"
            )


def _check_numbers(options: dict[str, Any]) -> None:
    """The range of each number; a float is a whole number where it has no fraction, as from a command line."""
    if options.get("do_sample") not in (None, True, False) or type(options.get("do_sample")) in (int, float):
        raise ConfigError(f"do_sample: expected true or false, got {options['do_sample']!r}")
    for name, least in (*((name, 0) for name in LIMITS), ("max_length", 1), ("top_k", 0)):
        value = options.get(name)
        if value is not None and not (_number(value) and value >= least and value == int(value)):
            raise ConfigError(f"{name}: expected a whole number >= {least}, got {value!r}")
    temperature, top_p = options.get("temperature"), options.get("top_p")
    if temperature is not None and not (_number(temperature) and temperature >= 0):
        raise ConfigError(f"temperature: expected a finite number >= 0, got {temperature!r}")
    if top_p is not None and not (_number(top_p) and 0 < top_p <= 1):
        raise ConfigError(f"top_p: expected 0 < top_p <= 1, got {top_p!r}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _stops(until: Any) -> tuple[str, ...]:
    """None and [] are no stop strings; the end token ends a stream in any case."""
    stops = [] if until is None else [until] if isinstance(until, str) else until
    if not isinstance(stops, list | tuple) or not all(isinstance(s, str) and s for s in stops):
        raise ConfigError(
            f"until: expected a string or a list of strings, none empty, or null for none, got {until!r}"
        )
    return tuple(stops)
