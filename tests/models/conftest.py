import pytest

from dash_exp.training.record import save_model


@pytest.fixture
def folder(tmp_path, policy, tokenizer):
    save_model(policy, tokenizer, tmp_path / "model")
    return tmp_path / "model"
