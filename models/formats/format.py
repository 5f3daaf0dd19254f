"""What a format of another project is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from linrec.errors import CheckpointError
from linrec.models.config import Config, argument_defaults
from linrec.models.formats.options import Options
from linrec.models.formats.weights import Weight


class Format(NamedTuple):
    """One project's way to write one family of models.

    ``recognises`` tells a ``config.json`` of it; ``config`` reads the options, all of them, and ``options`` gives those
    of a configuration; ``weights`` lists every weight of such a model. They raise CheckpointError for what cannot be
    expressed on the other side. ``architecture`` is what ``architectures`` says there.
    """

    name: str
    architecture: str | None
    recognises: Callable[[Mapping[str, Any]], bool]
    config: Callable[[Options], Config]
    options: Callable[[Config], dict[str, Any]]
    weights: Callable[[Config], list[Weight]]

    def read(self, values: Mapping[str, Any], where: str) -> Config:
        """The configuration that a ``config.json`` says. Raises CheckpointError, naming option and file."""
        options = Options(values, where)
        try:
            config = self.config(options)
        except CheckpointError:
            raise
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise CheckpointError(f"{where}: {' '.join(str(error).split())[:500]}") from error
        options.finish()
        return config


def of_type(model_type: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether ``model_type`` is this."""
    return lambda values: values.get("model_type") == model_type


def only_layer(config: Config, layer: str) -> None:
    """Raises CheckpointError for a model with any other kind of layer, or with an MLP."""
    if set(config.layer_names) != {layer} or config.mlp_width:
        have = " and ".join([*sorted(set(config.layer_names)), *(["an MLP"] if config.mlp_width else [])])
        raise CheckpointError(f"expected a model of {layer} layers alone, got {have}")
    usual_blocks(config)


USUAL = {
    "norm": "rms",
    "embed_norm": False,
    "mlp": "swiglu",
    "mlp_bias": False,
    "embed_scale": 1.0,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
    "logit_cap": None,
}


def usual_blocks(config: Config, **others: Any) -> None:
    """Raises CheckpointError for other norms and MLPs than the usual ones, or than ``others`` says."""
    for name, usual in {**USUAL, **others}.items():
        if (value := getattr(config, name)) != usual:
            raise CheckpointError(f"{name} = {value!r} cannot be said in this format, only {usual!r}")


def layer_values(config: Config, layer: str) -> dict[str, Any]:
    """Every option of a layer: those of the configuration, and what it leaves out as the model or the layer has it."""
    return {**argument_defaults(layer), "num_heads": config.num_heads, **config.layer_options.get(layer, {})}
