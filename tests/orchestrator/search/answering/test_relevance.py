"""The decision between an answer and that nothing was found."""

from __future__ import annotations

import pytest

from orchestrator.search.answering.decision import decide
from orchestrator.search.answering.relevance import PassageWords, Verdict, judge
from orchestrator.search.answering.respelling import respelled
from orchestrator.search.conversation.rewriting import Rewrite
from orchestrator.search.prompt import Passage
from orchestrator.search.retrieval import SearchResult

PASSAGES = [
    PassageWords.of("Artificial intelligence", "AI is a field of computer science. Models learn."),
    PassageWords.of("Tuning", "A base model may invent answers that it does not know."),
    PassageWords.of("Distributed hash table", "Each node compresses the keys of its neighbours."),
]


@pytest.mark.parametrize(
    ("query", "verdict"),
    [
        ("AI", Verdict.ANSWER),
        ("What is artificial intelligence?", Verdict.ANSWER),
        ("artificial intelligence guide", Verdict.ANSWER),
        ("dht compression", Verdict.ANSWER),
        ("Who invented the telephone?", Verdict.NOTHING),
        ("invented answers for the telephone company", Verdict.NOTHING),
        ("computer science models of the sea", Verdict.ANSWER),
        ("computer science fields learn sea fishing", Verdict.ANSWER),
        ("computer science models, sea fishing", Verdict.UNSURE),
        ("telephone", Verdict.NOTHING),
        ("who is it", Verdict.NOTHING),
        ("?!", Verdict.NOTHING),
    ],
)
def test_a_query_is_answered_by_a_passage_with_its_words(query: str, verdict: Verdict) -> None:
    """Most of the words of the subject must be in one passage and its title."""
    assert judge(query, PASSAGES) is verdict


def test_words_far_from_each_other_do_not_answer() -> None:
    """Two neighbouring sentences and the title are considered together."""
    text = "A queue is long. Its server sleeps. Nothing happens. A stream ends."
    windows = PassageWords.windows("Brokers", text)
    assert judge("queue server broker", windows) is Verdict.ANSWER
    assert judge("queue stream", windows) is Verdict.NOTHING
    assert PassageWords.windows("Brokers", "") == []


def test_a_similar_passage_may_answer_in_other_words() -> None:
    """Found by its vector; the model then decides."""
    assert judge("telephone", PASSAGES, similarity=0.6) is Verdict.UNSURE
    assert judge("telephone", PASSAGES, similarity=0.4) is Verdict.NOTHING
    assert judge("AI", PASSAGES, similarity=0.1) is Verdict.ANSWER


@pytest.mark.parametrize(
    ("query", "verdict"),
    [
        ("Wie hei\u00dft die Hauptstadt von Japan?", Verdict.ANSWER),
        ("Hauptst\u00e4dte Japans", Verdict.ANSWER),
        ("Wie alt ist das Telefon in Japan?", Verdict.NOTHING),
    ],
)
def test_other_languages_have_their_own_stop_words_and_stems(query: str, verdict: Verdict) -> None:
    """Those of the query's language and of the passage's."""
    text = "Die Hauptstadt von Japan ist Tokio. Sie ist die gr\u00f6\u00dfte Stadt des Landes."
    assert judge(query, [PassageWords.of("Japan", text)]) is verdict


@pytest.mark.parametrize(
    "query",
    [
        "what's kubernetes",
        "What\u2019s Kubernetes?",
        "Why should I use Kubernetes?",
        "how do i get kubernetes",
        "would anyone need Kubernetes",
        "Wie funktioniert Kubernetes?",
        "Qu'est-ce que Kubernetes ?",
        "什么是Kubernetes？",
        "Kubernetesとは何ですか",
    ],
)
def test_words_with_which_people_ask_do_not_count(query: str) -> None:
    """In any language: the subject alone must be in the passage."""
    passage = PassageWords.of("Overview", "Kubernetes is a platform for containers.")
    assert judge(query, [passage]) is Verdict.ANSWER
    assert judge(query.lower().replace("kubernetes", "kangaroo"), [passage]) is Verdict.NOTHING


@pytest.mark.parametrize(
    ("question", "corrected"),
    [
        ("What is kuberqnetes?", "What is kubernetes?"),
        ("what are contqainers", "what are containers"),
        ("KUBERNETES plqatform", "KUBERNETES platform"),
        ("kubernetes overviews", "kubernetes overviews"),
        ("What is kangaroo?", "What is kangaroo?"),
        ("pods", "pods"),
        ("", ""),
        ("What is Contaimers?", "What is Contaimers?"),
        ("Contaimers", "containers"),
    ],
)
def test_a_misspelled_word_becomes_that_of_a_passage(question: str, corrected: str) -> None:
    """One error in a word, two in a long one; words with a known stem and short words stay, and
    names, which have a capital inside the question.
    """
    passages = [Passage("Overview", "Kubernetes is a platform for containers. A pad is one.")]
    assert respelled(question, passages) == corrected
    assert respelled(question, []) == question


@pytest.mark.parametrize(
    ("question", "corrections", "corrected"),
    [
        ("What is a casual model?", {}, "What is a casual model?"),
        ("What is a casual model?", {"casual": "causal"}, "What is a causal model?"),
        ("what is a causla model", {"causla": "causal"}, "what is a causal model"),
        ("How fast is Angular?", {"angular": "angula"}, "How fast is Angular?"),
        ("HOW FAST IS CAUSLA", {"causla": "causal"}, "HOW FAST IS causal"),
    ],
)
def test_a_word_that_some_document_has_stays(
    question: str, corrections: dict[str, str], corrected: str
) -> None:
    """The search corrects only words that are in no document; the passages are a part of them."""
    passages = [Passage("Models", "A causal model reads from left to right. An angula is an eel.")]
    assert respelled(question, passages, corrections) == corrected


def test_the_corrections_of_all_searches_are_used() -> None:
    """Results of a search without corrections do not hide those of another."""
    result = SearchResult("Models", "", 1.0, "A causal model reads from left to right.")
    question = Rewrite("what is a causla model", ["causla model"])
    found = [result._replace(corrections=()), result._replace(corrections=(("causla", "causal"),))]
    assert decide(question, found).question.question == "what is a causal model"
    assert decide(question, found[:1]).question.question == "what is a causla model"


def test_no_passages_answer_nothing() -> None:
    """Whatever the query is."""
    assert judge("AI", []) is Verdict.NOTHING
