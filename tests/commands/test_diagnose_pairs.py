"""`dragoman diagnose --pairs` on a toy: the trace has which experts were chosen together."""

import numpy as np
import pytest

import dragoman
from dragoman.modeling import TextCodec, save_model
from dragoman.routing import coactivation
from dragoman.routing.trace import RoutingTrace
from tests.models import tiny
from tests.texts import corpus, tokenizer


def test_pairs_are_counted_where_they_are_asked_for(tmp_path):
    """Of two experts a token: on the diagonal how often each was chosen, and as often it stood beside another one."""
    codec = TextCodec(tokenizer())
    save_model(tiny("olmoe", vocab_size=len(codec.tokenizer)), codec, tmp_path / "model")
    corpus().save(tmp_path / "text.tsv")
    given = {"model": str(tmp_path / "model"), "corpus": str(tmp_path / "text.tsv"), "split": "train", "quiet": True}
    given |= {"languages": ("en", "ca"), "segments": 20}
    plain, paired = (dragoman.diagnose(**given, pairs=on, out=tmp_path / str(on)) for on in (False, True))
    without, trace = (RoutingTrace.load(tmp_path / str(on) / "trace.npz") for on in (False, True))
    assert without.pairs_GLEE is None and plain["routing"]["pairing"] is None
    assert trace.pairs_GLEE.shape == (2, 3, 8, 8)
    alone_GLE = np.diagonal(trace.pairs_GLEE, axis1=-2, axis2=-1)
    np.testing.assert_array_equal(alone_GLE, trace.chosen_GLE)
    np.testing.assert_array_equal(trace.pairs_GLEE.sum(axis=-1) - alone_GLE, trace.chosen_GLE)
    for g, found in zip(trace.languages, coactivation.pairing(trace.pairs_GLEE), strict=True):
        assert paired["routing"]["pairing"]["share"][g] == pytest.approx(found)
