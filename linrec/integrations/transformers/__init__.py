"""Models of transformers, run through linrec: faster, and right where documents are packed or rows are padded.

.. code-block:: python

    from linrec.integrations.transformers import accelerate

    model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3.5-0.8B")
    accelerate(model)

How it works. Modelling files compute their mixers by functions with known names (``torch_chunk_gated_delta_rule``).
:func:`accelerate` puts in place of each a function that asks which call it is in: inside a mixer of an accelerated
model it is linrec's, elsewhere the original. Which call it is in is noted by forward hooks: on the model, whose
arguments say which tokens are padding and where documents begin (:mod:`.layout`), and on its mixers (:mod:`.calls`).
A function whose parameters are not the ones that linrec knows is left alone, and its mixer with it; :func:`report`
says so.

How to add a family. One file in ``families/``, with a tuple ``REPLACEMENTS`` of
:class:`~linrec.integrations.transformers.replacement.Replacement`: names, known signatures, and the function. For a
function of modelling files::

    def chunk(mixing, query, key, value, g, beta, initial_state=None, output_final_state=False, **others):
        o, state = apply(rules.gated_delta_net, {"q": query, ...}, mixing.layout, initial_state)
        return o, state if output_final_state else None

    REPLACEMENTS = (Replacement(("torch_chunk_gated_delta_rule",), (("query", "key", ...),), chunk,
                                "gated_delta_net", "chunkwise"),)

and with ``owner="RecurrentGemmaRglru"`` for a method of that class (any, ``forward`` included), whose ``self`` comes
behind ``mixing``. What ``mixing`` (:class:`~linrec.integrations.transformers.calls.Mixing`) knows: ``module``, the
mixer, with its parameters; ``given``, the arguments of its call by name; ``layout``, None or the
:class:`~linrec.integrations.transformers.layout.Layout` with ``real`` and ``starts`` ``[B, T]``; ``cache`` and
``cached_layer``. :func:`~linrec.integrations.transformers.layout.apply` calls a rule under a layout by packing the real
tokens. Returning NotImplemented leaves the call to transformers.
"""

from linrec.integrations.transformers.everywhere import disable, enable
from linrec.integrations.transformers.handle import Accelerated, accelerate, restore
from linrec.integrations.transformers.reporting import Row, report

__all__ = ["Accelerated", "Row", "accelerate", "disable", "enable", "report", "restore"]
