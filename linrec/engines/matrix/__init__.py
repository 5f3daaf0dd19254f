"""The matrix-state recurrence: additive, delta and general (diagonal plus rank one) linear attention.

.. code-block:: text

    X_t = Diag(e^{g_t}) S_{t-1}  (predict = "decayed")   or   S_{t-1}  (predict = "undecayed")
    S_t = Diag(e^{g_t}) S_{t-1} + b_t (X_t^T a_t)^T + k_t v_t^T
    o_t = S_t^T q_t                                       (readout = "post")
    o_t = S_{t-1}^T q_t + (q_t . (u * k_t)) v_t           (readout = "pre", bonus u)

``terms`` holds the arguments, ``chunk`` and ``recurrent`` the two ways to compute it in differentiable calls,
``engine`` the face. ``scan`` takes chunk after chunk with the adjoint written out, by one of three methods: ``scalar``
for one decay a head, ``channel`` and ``general`` for all else.
"""

from linrec.engines.matrix.engine import MATRIX
from linrec.engines.matrix.terms import MatrixTerms, delta_terms, on_value_heads, strengthened

__all__ = ["MATRIX", "MatrixTerms", "delta_terms", "on_value_heads", "strengthened"]
