"""What are linear-attention layers of our own, and how does a softmax model become one that has them?

Importing this folder lets `AutoConfig` and `AutoModelForCausalLM` open what `linearise` saves.
"""

from tutelage.models.linear_attention.architecture import (
    LINEAR_LAYER_TYPE,
    LinearDecoderLayer,
    is_linear_student,
    linear_families,
)
from tutelage.models.linear_attention.attention import BLOCK_TOKENS, LinearAttention, LinearState, read, step
from tutelage.models.linear_attention.kernels import KERNELS, Based, Kernel, ReBased
from tutelage.models.linear_attention.linearise import Linearised, check_linearisable, layers_from, linearise

__all__ = [
    "BLOCK_TOKENS",
    "KERNELS",
    "LINEAR_LAYER_TYPE",
    "Based",
    "Kernel",
    "LinearAttention",
    "LinearDecoderLayer",
    "LinearState",
    "Linearised",
    "ReBased",
    "check_linearisable",
    "is_linear_student",
    "layers_from",
    "linear_families",
    "linearise",
    "read",
    "step",
]
