from __future__ import annotations

import pytest
import torch

from tests.support.tiny_models import make_model
from tests.support.tiny_run import make_tokenizer
from tutelage.errors import ModelError, VocabularyMismatchError
from tutelage.models import LanguageModel, Vocabulary, align, check_same_tokenizer


def pair(student_stop, teacher_stop, student_rows=262, teacher_rows=270):
    return (
        LanguageModel(make_model(vocab_size=student_rows), make_tokenizer(), student_stop, "student"),
        LanguageModel(make_model(vocab_size=teacher_rows), make_tokenizer(), teacher_stop, "teacher"),
    )


def test_unequal_padding_is_cut_off_and_stop_ids_are_united() -> None:
    vocabulary = align(*pair((256,), (258, 256)))
    assert vocabulary == Vocabulary(size=259, stop_ids=(256, 258), stop_id=256, padding_ids=())


def test_merging_conserves_mass_whichever_id_carried_it() -> None:
    vocabulary = Vocabulary(size=8, stop_ids=(2, 5), stop_id=2)
    logits = torch.randn(4, 10, dtype=torch.float64)
    merged = vocabulary.shared_logits(logits).softmax(-1)
    plain = logits[:, :8].softmax(-1)
    torch.testing.assert_close(merged[:, 2], plain[:, 2] + plain[:, 5])
    assert (merged[:, 5] == 0).all()
    others = [0, 1, 3, 4, 6, 7]
    torch.testing.assert_close(merged[:, others], plain[:, others])
    swapped = logits.clone()
    swapped[:, [2, 5]] = logits[:, [5, 2]]
    torch.testing.assert_close(vocabulary.shared_logits(swapped), vocabulary.shared_logits(logits))


def test_padding_ids_have_no_mass_and_the_rest_is_untouched() -> None:
    vocabulary = Vocabulary(size=6, stop_ids=(1,), stop_id=1, padding_ids=(3,))
    logits = torch.randn(2, 9)
    shared = vocabulary.shared_logits(logits)
    assert (shared[:, 3] == float("-inf")).all()
    kept = [0, 1, 2, 4, 5]
    assert torch.equal(shared[:, kept], logits[:, kept])


def test_a_single_stop_id_costs_nothing() -> None:
    logits = torch.randn(2, 6)
    assert Vocabulary(size=6, stop_ids=(1,), stop_id=1).shared_logits(logits).data_ptr() == logits.data_ptr()


def test_gradients_reach_every_stop_id_by_its_share() -> None:
    vocabulary = Vocabulary(size=5, stop_ids=(0, 3), stop_id=0)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    vocabulary.shared_logits(logits).log_softmax(-1)[0].backward()
    probs = logits.detach().softmax(-1)
    stop = probs[0] + probs[3]
    for stop_id in (0, 3):
        torch.testing.assert_close(logits.grad[stop_id], probs[stop_id] / stop - probs[stop_id])
    assert torch.autograd.gradcheck(lambda x: vocabulary.shared_logits(x).log_softmax(-1)[[0, 1, 2, 4]], logits)


def test_bfloat16_logits_are_widened() -> None:
    assert Vocabulary(size=4).shared_logits(torch.zeros(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_different_tokenizers_name_the_first_differing_tokens() -> None:
    with pytest.raises(VocabularyMismatchError) as refusal:
        check_same_tokenizer(make_tokenizer(), make_tokenizer(extra=("ab", "cd")))
    message = str(refusal.value)
    assert "id 256: student '<|endoftext|>', teacher 'ab'; id 257: student '<|im_start|>', teacher 'cd'" in message
    assert "model family" in message


def test_same_tokens_but_another_cut_is_refused() -> None:
    from tokenizers import pre_tokenizers

    other = make_tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(VocabularyMismatchError, match="cut text differently: the probe text differs at piece 0"):
        check_same_tokenizer(make_tokenizer(), other)


def test_a_stop_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ModelError, match="stop id 261"):
        align(*pair((261,), (258,)))
