"""``nndiffseg_info``: text, JSON and a card that is never replaced unasked."""

from __future__ import annotations

import json

import pytest
from stock_folder import write_stock_folder

from nndiffseg.cli.info import main
from nndiffseg.report.card import TO_FILL_IN


@pytest.fixture
def stock(tmp_path):
    return write_stock_folder(tmp_path / "results")


def test_the_text_and_the_json_tell_of_the_model(stock, capsys):
    assert main([str(stock)]) == 0
    assert "Dataset902_Stock, 2d" in capsys.readouterr().out
    assert main([str(stock), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folds"]["0"]["validation"]["cases"] == 3


def test_a_card_is_written_and_replaced_only_on_request(stock, tmp_path, capsys):
    card = tmp_path / "README.md"
    assert main([str(stock), "--card", str(card)]) == 0
    text = card.read_text()
    assert f"{text.count(TO_FILL_IN)} places" in capsys.readouterr().out and "Dataset902" in text
    card.write_text("completed by a person")
    assert main([str(stock), "--card", str(card)]) == 2
    assert "--overwrite" in capsys.readouterr().err and card.read_text() == "completed by a person"
    assert main([str(stock), "--card", str(card), "--overwrite"]) == 0 and card.read_text() == text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "There is no model folder nowhere"),
        (["nowhere", "--json", "--card", "x.md"], "not allowed with"),
        (["nowhere", "--card", "missing/x.md"], "There is no folder missing"),
        ([], "the following arguments are required: MODEL_FOLDER"),
    ],
)
def test_wrong_calls_end_with_one_sentence(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    err = capsys.readouterr().err
    assert message.lower() in err.lower() and err.count("\n") == 1 and not list(tmp_path.iterdir())
