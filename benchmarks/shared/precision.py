"""Which precision this machine computes in."""

from __future__ import annotations

import torch


def computes_bf16() -> bool:
    """Whether bf16 pays. On a CPU without instructions for it a product takes a hundred times as long as in fp32."""
    mkldnn = torch.backends.mkldnn.is_available()
    return torch.cuda.is_available() or (mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())
