"""The tokenizer: one token a word, the same after saving, tolerant of case, punctuation and unknown words."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPTokenizer

from recipes.embedded_model.scenes import SUBJECTS, every_word
from recipes.embedded_model.text import MAX_WORDS, learn_merges


def words_of(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    """Return the ids between start and end."""
    return tokenizer(text).input_ids[1:-1]


def test_every_word_is_one_token(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.model_max_length == MAX_WORDS
    ids = [words_of(tokenizer, word) for word in every_word()]
    assert all(len(word) == 1 for word in ids)
    assert len({word[0] for word in ids}) == len(ids)
    for subject in SUBJECTS:
        assert len(words_of(tokenizer, subject)) == len(subject.split())


def test_saving_keeps_the_words(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for text in ("a fox in the snow", "", "Zebra, übermorgen! 3", *every_word()):
        assert again(text, padding="max_length").input_ids == tokenizer(text, padding="max_length").input_ids
    assert again.model_max_length == MAX_WORDS
    assert (again.bos_token_id, again.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_case_and_spaces_do_not_matter(tokenizer: CLIPTokenizer) -> None:
    assert words_of(tokenizer, "A  Fox in the SNOW") == words_of(tokenizer, "a fox in the snow")


def test_punctuation_stands_alone(tokenizer: CLIPTokenizer) -> None:
    fox = words_of(tokenizer, "fox")
    assert words_of(tokenizer, "fox, snow.")[0:1] == fox
    assert words_of(tokenizer, "(fox)")[1:2] == fox


def test_unknown_text_never_holds_the_end_token(tokenizer: CLIPTokenizer) -> None:
    ids = words_of(tokenizer, "quetzalcoatl über 雪 🦊 42 ~")
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.bos_token_id not in ids


def test_empty_prompt_is_start_and_end(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("", padding="max_length").input_ids
    assert ids == [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * (MAX_WORDS - 1)


def test_merges_join_words_that_share_pieces() -> None:
    merges = learn_merges(["can", "an", "cab"])
    assert ("c", "a") in merges or ("a", "n</w>") in merges
    assert all(len(pair) == 2 for pair in merges)
