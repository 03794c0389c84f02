"""A saved student."""

from __future__ import annotations

import torch

from tests.support.tiny_run import make_tokenizer, save_model
from tutelage.models import (
    Vocabulary,
    load_language_model,
    load_tokenizer,
    save_student,
)


def test_a_saved_student_stops_where_it_was_trained_to(tmp_path) -> None:
    folder = save_model(tmp_path / "model", make_tokenizer(), padded_size=264, stop_ids=256, seed=0)
    student = load_language_model(str(folder), load_tokenizer(str(folder)))
    assert student.stop_ids == (256,)
    save_student(student, Vocabulary(259, stop_ids=(256, 258), stop_id=256), tmp_path / "saved")
    again = load_language_model(str(tmp_path / "saved"), load_tokenizer(str(tmp_path / "saved")))
    assert again.stop_ids == (256, 258)
    assert student.module.generation_config.eos_token_id == 256
    for name, weight in student.module.state_dict().items():
        assert torch.equal(weight, again.module.state_dict()[name])
