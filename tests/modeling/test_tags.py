"""Which entries of a vocabulary are language tags."""

import copy

from dragoman.modeling import TextCodec
from tests.texts import tokenizer


def test_an_entry_that_is_no_special_token_is_no_tag():
    """Gemma has <tr> and <th> of HTML. Where one of two languages has a tag, prompt and answer are plain both."""
    html = copy.deepcopy(tokenizer())
    html.add_tokens(["<tr>"])
    assert html.convert_tokens_to_ids("<tr>") == len(html) - 1
    names = {"en": "English", "tr": "Turkish"}
    ((ids, prompt),) = TextCodec(html).pairs(["one"], ["bir"], "en", "tr", names)
    assert TextCodec(html).tag_id("tr") is None
    assert html.decode(ids[1:-1]) == "English: one\nTurkish: bir" and html.decode(ids[prompt:-1]) == " bir"
    ((ids, prompt),) = TextCodec(html).pairs(["bir"], ["one"], "tr", "en", names)
    assert html.decode(ids[1:-1]) == "Turkish: bir\nEnglish: one" and html.decode(ids[prompt:-1]) == " one"
