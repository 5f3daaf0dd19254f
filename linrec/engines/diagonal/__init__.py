"""The diagonal recurrence h_t = a_t * h_{t-1} + x_t, elementwise; a real of any sign, zero, or complex.

.. code-block:: text

    a_t, x_t = expand(tokens_t);   h_t = a_t * h_{t-1} + x_t;   o_t = read(tokens_t, scale h_t)

A rule gives its tokens in their small layout and says how one stretch of them expands to decays and inputs:
selective state spaces have N states a channel, and only one chunk of them exists at a time. ``read`` sees
h_{t-1} instead of h_t if ``late``. A complex state is stored as pairs of real numbers, ``[..., 2]``.

``terms`` holds the arguments, ``chunks`` goes over the sequence, ``convolved`` serves decays that are constant in
time, ``engine`` chooses among them, ``gpu`` calls the Triton kernels. ``selective`` is the structure that selective
state spaces share.
"""

from linrec.engines.diagonal.engine import DIAGONAL
from linrec.engines.diagonal.terms import DiagonalTerms, Tokens, gated_terms

__all__ = ["DIAGONAL", "DiagonalTerms", "Tokens", "gated_terms"]
