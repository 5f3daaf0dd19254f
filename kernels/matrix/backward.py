"""The backward of the matrix engine: three launches between which only the states of the chunks pass."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from linrec.kernels.matrix.backward_chunk import chunk_gradients
from linrec.kernels.matrix.backward_scan import entry_states, state_gradients
