"""Which sentences say what the subject of a question is."""

from __future__ import annotations

import pytest

from orchestrator.search.answering.definitions import defines


@pytest.mark.parametrize(
    ("sentence", "subject"),
    [
        ("Raft is a consensus algorithm.", "raft"),
        ("Raft is also an algorithm.", "raft"),
        ("Raft is the algorithm of etcd.", "raft"),
        ("Raft is one of the algorithms.", "raft"),
        ("Raft, or RFT, is an algorithm.", "rft"),
        ("Pods are groups of containers.", "pod"),
        ("Pods are the smallest units.", "pod"),
        ("Pods are small deployable units that share a network.", "pod"),
        ("Raft ist ein Protokoll.", "raft"),
        ("Raft ist eine der L\u00f6sungen.", "raft"),
        ("Pods sind Gruppen von Containern.", "pod"),
        ("Raft est un algorithme.", "raft"),
        ("Raft est l\u2019algorithme de etcd.", "raft"),
        ("Raft es un algoritmo.", "raft"),
        ("Raft is een algoritme.", "raft"),
    ],
)
def test_a_noun_after_the_verb_defines_the_subject(sentence: str, subject: str) -> None:
    """With its article, or in the plural."""
    assert defines(sentence, {subject})


@pytest.mark.parametrize(
    ("sentence", "subject"),
    [
        ("Raft is not used here.", "raft"),
        ("Raft is not a database.", "raft"),
        ("Raft is described in chapter 3.", "raft"),
        ("Raft is used by etcd.", "raft"),
        ("Raft is shown below.", "raft"),
        ("Raft is called in the server.", "raft"),
        ("Raft is no database.", "raft"),
        ("Raft is never the cause.", "raft"),
        ("Pods are not groups of servers.", "pod"),
        ("Pods are described in chapters of this book.", "pod"),
        ("Pods are restarted when containers fail.", "pod"),
        ("Pods are always restarted.", "pod"),
        ("Pods are stateless.", "pod"),
        ("Raft ist nicht ein Protokoll.", "raft"),
        ("Raft ist keine Datenbank.", "raft"),
        ("Raft wird beschrieben.", "raft"),
        ("Pods sind keine Server.", "pod"),
        ("Pods sind in Kapitel 3 beschrieben.", "pod"),
        ("Raft est pas un protocole.", "raft"),
        ("Raft est d\u00e9crit ici.", "raft"),
        ("Raft no es un protocolo.", "raft"),
        ("Raft es a menudo lento.", "raft"),
        ("Raft is niet een protocol.", "raft"),
        ("Raft is a protocol.", "paxos"),
    ],
)
def test_negations_and_participles_define_nothing(sentence: str, subject: str) -> None:
    """Nor what is said of another subject."""
    assert not defines(sentence, {subject})
