"""Tests that need a CUDA device; each module of them carries these marks."""

import pytest
import torch

NEEDS_CUDA = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::UserWarning:triton.*"),  # announcements of coming defaults
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
