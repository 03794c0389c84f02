"""How do we talk to a language model?  Loading, one shared vocabulary, one stop event, caches and decode steps."""

from tutelage.models.caches import CachedRows
from tutelage.models.context import ContextLength
from tutelage.models.fingerprint import tokenizer_fingerprint, weights_fingerprint
from tutelage.models.finite import is_all_finite
from tutelage.models.fused_teacher import FusedTeacher
from tutelage.models.fusion import DynamicFusion, FixedFusion, Fusion
from tutelage.models.language_model import LanguageModel, as_language_model
from tutelage.models.layer_outputs import check_comparable_layers, compared_outputs
from tutelage.models.linear_attention import KERNELS, Linearised, check_linearisable, layers_from, linearise
from tutelage.models.loading import (
    check_distinct,
    check_files,
    context_length_of,
    load_language_model,
    load_tokenizer,
)
from tutelage.models.meta_model import meta_model_of
from tutelage.models.model_set import ModelSet, teacher_named
from tutelage.models.quantised import check_learnable, check_quantization, check_unquantised
from tutelage.models.read_back import check_savable, check_saved, export_checked
from tutelage.models.recurrent import missing_kernels
from tutelage.models.references import MovingReference, Reference, SharedBackbone, reference_snapshot
from tutelage.models.saving import export_model, save_student
from tutelage.models.sequence_scorer import SequenceScorer, load_sequence_scorer, meta_sequence_scorer
from tutelage.models.serving import both_readings, check_servable
from tutelage.models.source import DEFAULT_DTYPE, DTYPES, ModelSource
from tutelage.models.trainables import ALL_WEIGHTS, TRAINABLES, AdapterSettings, Trainable, TrainableSettings, base_of
from tutelage.models.vocabulary import PROBE_TEXT, Vocabulary, align, check_same_tokenizer
from tutelage.models.weight_sync import save_for_serving

__all__ = [
    "ALL_WEIGHTS",
    "DEFAULT_DTYPE",
    "DTYPES",
    "KERNELS",
    "PROBE_TEXT",
    "TRAINABLES",
    "AdapterSettings",
    "CachedRows",
    "ContextLength",
    "DynamicFusion",
    "FixedFusion",
    "FusedTeacher",
    "Fusion",
    "LanguageModel",
    "Linearised",
    "ModelSet",
    "ModelSource",
    "MovingReference",
    "Reference",
    "SequenceScorer",
    "SharedBackbone",
    "Trainable",
    "TrainableSettings",
    "Vocabulary",
    "align",
    "as_language_model",
    "base_of",
    "both_readings",
    "check_comparable_layers",
    "check_distinct",
    "check_files",
    "check_learnable",
    "check_linearisable",
    "check_quantization",
    "check_savable",
    "check_saved",
    "check_same_tokenizer",
    "check_servable",
    "check_unquantised",
    "compared_outputs",
    "context_length_of",
    "export_checked",
    "export_model",
    "is_all_finite",
    "layers_from",
    "linearise",
    "load_language_model",
    "load_sequence_scorer",
    "load_tokenizer",
    "meta_model_of",
    "meta_sequence_scorer",
    "missing_kernels",
    "reference_snapshot",
    "save_student",
    "save_for_serving",
    "teacher_named",
    "tokenizer_fingerprint",
    "weights_fingerprint",
]
