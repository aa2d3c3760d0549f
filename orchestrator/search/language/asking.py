"""Words with which people ask a question, and which its answer need not have.

They are searched for, since a rare match of them still says something, but they do not count in the
decision whether passages answer.
"""

from __future__ import annotations

import regex

ASKING_WORDS = frozenset(
    (
        # English
        "actually also am any anyone anybody anything been before being between both but cannot "
        "could did does doing done during each either else even ever every few get gets getting "
        "got had has having he her here hers him his if instead its itself just know known let "
        "like lot make makes making many maybe may might mine much must my myself need needed "
        "needs never no not off only or other our over please possible really same shall she "
        "should show so some somebody someone something still such than them then they thing "
        "things those through too under until up upon use used uses useful using very want wants "
        "was way ways we were whether while whom whose would yes yet "
        "whats "  # codespell:ignore
        # German
        "bedeutet brauche braucht erklare erklaren funktioniert funktionieren geht gibt heisst "
        "macht man nutzt verwendet wann warum welche welcher welches wer weshalb wie wieso wo "
        "wofur wozu "
        # French
        "comment expliquer explique fonctionne fonctionnent marche pourquoi quand quel quelle "
        "quelles quels qui quoi sert signifie utilise utiliser "
        # Spanish and Portuguese
        "como cual cuando donde explica explicar funciona funcionan para por porque qual quando "
        "que quien serve significa sirve usa usar "
        # Italian and Dutch
        "cosa dove funzionano hoe perche quale spiega spiegare waarom wanneer wat welke werken "
        "werkt"
    ).split()
)
"""Folded, in languages with spaces."""

_ASKING_PHRASES = regex.compile(
    "是什么|什么是|有什么|为什么|什么|为何|如何|怎么样|怎么|怎样|哪些|哪个|哪里|多少|请问|请解释|的|吗|呢"
    "|とは何ですか|何ですか|とは|なぜ|どのように|どうやって|ですか|ますか|教えて"
    "|คืออะไร|อะไร|อย่างไร|ทำไม"
    "|무엇입니까|무엇인가요|무엇|어떻게|입니까|인가요|왜"
)
"""In scripts without spaces, which do not separate such a phrase from its subject."""


def without_phrases(query: str) -> str:
    """The query without the phrases of a question in scripts without spaces."""
    subject: str = _ASKING_PHRASES.sub(" ", query)
    return subject
