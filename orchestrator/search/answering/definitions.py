"""Recognises sentences that say what the subject of a question is."""

from __future__ import annotations

from collections.abc import Set

import regex

from orchestrator.search.answering.relevance import own_words
from orchestrator.search.language.languages import detect_language, stem

_NO_NOUN = (
    r"not|no|never|always|sometimes|only|very|more|most|called|named|given|considered|its|"
    r"and|as|because|but|if|once|or|so|than|that|until|when|where|which|while|"
    r"about|above|across|after|against|among|at|before|below|between|by|during|for|from|in|into|"
    r"like|near|of|on|onto|out|over|per|through|to|under|up|via|with|within|without"
)
"""Words after "are" with which the plural noun after them does not say what the subject is."""

_PLURAL = (
    # A noun does not end as "various", "this" and "less".
    rf"(?:(?!(?:{_NO_NOUN})\b)[\w-]+ ){{0,2}}(?!(?:{_NO_NOUN})\b)[\w-]+[^\W_isu]s"
    r"(?=[.,;]|$| (?:of|that|which|who|whose|for|with|in|\w+ed)\b)"
)
_PREDICATE = (
    r"(?:is|are) (?:(?:also|often|usually|generally|typically|basically|essentially|simply) )?"
    r"(?:an?|the|any|another|one of|een|het|de)\b"
    rf"|are {_PLURAL}"
    r"|(?:ist|sind) (?:ein|eine[mnrs]?|der|die|das)\b"
    r"|sind (?:(?!keine|ohne)\p{Ll}+e )?\p{Lu}\w"
    r"|(?:est|sont) (?:(?:une?|les?|la|des)\b|l['\u2019])"
    r"|(?:es|son) (?:una?|unos|unas|el|la|los|las)\b"
)
_DEFINITION = regex.compile(
    r"(?P<subject>[^,.:;()]{1,80}?)(?:, or (?P<name>[^,]{1,40}),)? "
    # "Raft no es un ...", where the negation is before the verb.
    rf"(?<!\b(?:no|ne|not|never|nunca) )(?:{_PREDICATE})"
)


def defines(sentence: str, wanted: Set[str]) -> bool:
    """Whether `sentence` begins with the words of the subject, whose stems are `wanted`, "is" and
    what it is: a noun with its article, or in the plural.

    "Retrieval-augmented generation, or RAG, is a technique" defines both names. "Raft is not used
    here" and "Raft is described below" define nothing.
    """
    found = _DEFINITION.match(sentence)
    if not found or not wanted:
        return False
    language = detect_language(sentence)
    names = (found["subject"], found["name"] or "")
    return any(wanted == set(map(stem, own_words(name, language))) for name in names)
