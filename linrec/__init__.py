"""linrec: linear attention and recurrent sequence models for PyTorch.

A mechanism is one equation in one file; its forms, its streaming state, its tests and its row in the support
table are derived from that file.

    from linrec import layers, models, rules

    rules.gated_delta_net(q, k, v, g, beta)           # the mathematics: functions of tensors
    layers.LAYERS["gated_delta_net"](d_model=512)     # nn.Modules around a rule
    models.LanguageModel(models.Config(...))          # a language model with any pattern of layers

Nothing is imported here, so that ``import linrec`` is free; the subpackages load when they are asked for.
"""

__version__ = "0.1.0"
