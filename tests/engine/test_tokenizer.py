import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadmaster.engine import Detokenizer, Tokenizer
from loadmaster.engine.answer import StopStrings
from loadmaster.errors import CheckpointError, RequestError
from loadmaster.synth.tokenizer import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Tokenizer:
    return Tokenizer(model_path)


def test_text_and_tokens_are_each_others_inverse(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("aé") == [97, 0xC3, 0xA9]
    assert tokenizer.decode([97, 257, 0xC3, 0xA9]) == "aé"


def test_each_token_has_a_text_special_ones_and_parts_of_characters_too(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_text(t) for t in (97, 0xC3, 257)] == ["a", "\ufffd", "<|end|>"]


def test_the_space_before_a_word_of_sentencepiece_is_part_of_its_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Rust
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    rust = Rust(models.WordLevel({"\u2581Hello": 0, "\u2581world": 1, "s": 2, "?": 3}, unk_token="?"))
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    rust.decoder = decoders.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=rust).save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("Hello world") == [0, 1]
    assert tokenizer.decode([1]) == "world"
    assert [tokenizer.token_text(t) for t in (0, 1, 2)] == [" Hello", " world", "s"]


def test_chat_template_lays_out_a_conversation(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert ids == [259, *b"hi", 257, 260]  # <|user|>hi<|end|><|assistant|>


def test_a_character_is_held_back_until_its_last_byte(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add(b) for b in "a€".encode()] == ["a", "", "", "€"]
    assert [detokenizer.add(b) for b in "😀".encode()[:3]] == ["", "", ""]
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.finish() == ""


@given(st.lists(st.integers(0, 258), max_size=40))
def test_the_parts_joined_are_the_whole(tokenizer: Tokenizer, tokens: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer)
    parts = [detokenizer.add(t) for t in tokens]
    assert "".join([*parts, detokenizer.finish()]) == tokenizer.decode(tokens)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_cut_where_the_first_to_be_complete_begins(
    text: str, strings: list[str], data: st.DataObject
) -> None:
    stop, given_out = StopStrings(strings), ""
    whole, with_stop = StopStrings(strings, include=True), ""
    for letter in text:
        given_out += stop.add(letter)
        with_stop += whole.add(letter)
    given_out += stop.finish()
    with_stop += whole.finish()
    ends = [(text.find(s) + len(s), text.find(s)) for s in strings if s in text]
    expected = text[: min(b for e, b in ends if e == min(ends)[0])] if ends else text
    assert given_out == expected
    assert (stop.found is not None) == bool(ends)
    assert stop.found == whole.found
    assert with_stop == given_out + (stop.found or "")


def test_a_model_without_tokenizer_refuses_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(tmp_path)
    tokenizer.load()
    assert not tokenizer.exists
    with pytest.raises(RequestError, match=r"has no tokenizer.*\n\nhint: give the prompt as token ids"):
        tokenizer.encode("hi")


def test_a_broken_tokenizer_is_the_checkpoints_fault(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot load the tokenizer"):
        Tokenizer(tmp_path).load()


def test_a_model_without_chat_template_refuses_messages(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model_path / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(RequestError, match="no chat template"):
        Tokenizer(tmp_path).encode_chat([{"role": "user", "content": "hi"}])


def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    """Its tokenizer is a class in a file of the checkpoint, which leaves a mark when it is imported."""
    write_tokenizer(tmp_path, {"max_position_embeddings": 64, "eos_token_id": 257})
    mark = tmp_path / "executed"
    code = f"open({str(mark)!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast\n"
    (tmp_path / "evil.py").write_text(code + "class Evil(PreTrainedTokenizerFast): pass\n")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    hostile = {**config, "tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(hostile))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}))
    try:
        Tokenizer(tmp_path).load()
    except CheckpointError as error:
        assert "contains custom code" in str(error)
    assert not mark.exists()
