"""An export in LangChain's Hugging Face pipeline: a chain, a batch, and an answer that streams."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from tests.support.taught_model import LESSONS

pytestmark = pytest.mark.skipif(
    find_spec("langchain_huggingface") is None,
    reason="optional: needs the extra langchain",
)


@pytest.fixture(scope="module")
def chain(taught) -> Any:
    """A question goes through a prompt and the model to a text."""
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

    options = {"max_new_tokens": 64, "return_full_text": False}
    llm = HuggingFacePipeline.from_model_id(str(taught), task="text-generation", pipeline_kwargs=options)
    prompt = ChatPromptTemplate.from_messages([("user", "{question}")])
    return prompt | ChatHuggingFace(llm=llm, model_id=str(taught)) | StrOutputParser()


def test_a_chain_gives_the_answers_that_were_trained(chain):
    """Through the export's chat template, and up to the token that ends an answer."""
    assert [chain.invoke({"question": question}) for question in LESSONS] == list(LESSONS.values())
    assert chain.batch([{"question": question} for question in LESSONS]) == list(LESSONS.values())


def test_an_answer_streams_in_pieces(chain):
    question, answer = next(iter(LESSONS.items()))
    pieces = [piece for piece in chain.stream({"question": question}) if piece]
    assert "".join(pieces) == answer and len(pieces) > 2
