"""1,000 inputs each, made by hypothesis: the verifier and the JSONL readers neither crash nor hang nor take 100 ms.

Milliseconds are those of the thread's own clock, so that a busy machine fails nothing.
"""

import gc
import json
import time
from fractions import Fraction

import pytest

import dapo
import delta_logp

pytest.importorskip("hypothesis", reason="needs: pip install -r requirements-extras.txt")
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

MANY = settings(max_examples=1_000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

# ---- answers: pieces of LaTeX in any order, any text, fractions
PIECES = r"\boxed{ { } \{ \} \ \frac \dfrac12 \text{ \left( \right) \circ \! \% $ % - + . , ^2 cm 1 068 1/2 /0 9e9"
LATEX = st.sampled_from([*PIECES.split(), " ", "\n", "\u2212", "7" * 90, "{" * 50, r"\boxed{" * 20])
ANSWER = st.one_of(st.lists(LATEX, max_size=30).map("".join), st.text(max_size=20), st.fractions().map(str))

# ---- files: pieces of JSON in any order, whole rows with and without their keys, any bytes
PAIRS = ['"prompt": "1+1?"', '"answer": "2"', '"system": 1', '"source": "base"', '"response": "x"', '"ids": [1, 2]']
ODD = ["\u2028", "\ud800", r'"\ud800"', "null", "NaN", "1" * 5000, "[" * 999, "\x00", '"ids": [-1]']
ROWS = [
    '{"prompt": "1", "answer": "1", "system": "1", "response": "1", "ids": "1"}',
    '{"prompt": "1", "answer": "1"}',
    '{"prompt": "1"}',
    '{"response": "1"}',
]
JSON = st.lists(st.sampled_from([*PAIRS, *ODD, *ROWS, *'{}[],:" \n\r\\']), max_size=8)
TEXT = st.one_of(JSON.map("".join), JSON.map("\n".join)).map(lambda text: text.encode("utf-8", "surrogatepass"))
FILE = st.one_of(TEXT, st.binary(max_size=40))


@pytest.fixture(autouse=True, scope="module")
def small_heap_for_the_garbage_collector():
    """Rows of brackets set it off again and again, and each time it would walk through all of torch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def timed(function, *args):
    """What function(*args) returns, or its ValueError; one call of three must take less than 100 ms."""
    for _ in range(3):  # the garbage collector may fall into one
        began = time.thread_time()
        try:
            result = function(*args)
        except ValueError as error:
            result = error
        if time.thread_time() - began < 0.1:
            return result
    pytest.fail(f"slow: {args}")


@MANY
@given(text=ANSWER, answer=ANSWER)
@example(text="\\boxed{" * 5000, answer="1")
@example(text="\\boxed{" + "{" * 9000 + "}" * 9000, answer="1")
@example(text="\\boxed{" + "1," * 9000 + "}", answer="1" * 5000)
@example(text="\\boxed{" + "\\frac" * 3000 + "}", answer="\\frac" * 3000)
def test_the_verifier_answers_every_text(text, answer):
    assert timed(dapo.is_correct, text, answer) in (True, False)
    assert timed(dapo.is_correct, rf"\boxed{{{text}}}", answer) in (True, False)
    found = timed(dapo.extract_answer, text)
    assert found is None or found in text
    assert isinstance(timed(dapo.normalize_answer, text), str | Fraction)


class Characters:
    """As much of a tokenizer as the readers ask for."""

    eos_token_id = 1
    unk_token_id = 0
    chat_template = None

    def __len__(self):
        return 40

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(x) % 40 for x in text]}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "rows.jsonl"


@MANY
@given(data=FILE)
@example(data=b'{"prompt": "1", "answer": "1", "system": 1}')
@example(data=b"[" * 100_000)
@example(data=b'{"prompt": "\\ud800", "answer": "1"}')
@example(data=b'{"prompt": "1", "answer": "1"}\r\n\xe2\x80\xa8')
def test_the_problem_reader_returns_rows_or_a_sentence(path, data):
    path.write_bytes(data)
    found = timed(dapo.read_problems, path, Characters(), 60, 20)
    if isinstance(found, ValueError):
        assert str(found).startswith((f"{path}, line ", f"{path}: no prompt fits")) and "\n" not in str(found)
    else:
        assert found and all(row["prompt"].strip() and row["answer"].strip() and row["ids"] for row in found)


IDS = st.lists(st.one_of(st.integers(-3, 45), st.none(), st.booleans()), max_size=4)


@MANY
@given(data=FILE, ids=IDS, good=st.booleans())
def test_the_response_reader_returns_responses_or_a_sentence(path, data, ids, good):
    base = {"prompt": "1", "answer": "2", "response": "2", "source": "base", "response_ids": ids}
    rlvr = {"prompt": "1", "answer": "x", "response": "x", "source": "rlvr"}
    if good:
        data = b"\n".join([json.dumps(base).encode(), json.dumps(rlvr).encode(), data])
    path.write_bytes(data)
    found = timed(delta_logp.read_responses, path, Characters(), 40, "exact")
    if isinstance(found, ValueError):
        assert str(path) in str(found) and "\n" not in str(found)
    else:
        assert {response.source for response in found} == {"base", "rlvr"} and all(response.ids for response in found)
