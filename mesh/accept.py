"""Quality values of the `Accept` header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType


@lru_cache(64)  # nearly all requests have one of few values
def accepted_qualities(accept: str) -> MappingProxyType[str, float]:
    """Quality by media range, lower case and without parameters; the best of a repeated range.

    A quality that is not a number from 0 to 1 counts as 0, so that its range is not used.
    """
    qualities: dict[str, float] = {}
    for item in accept.lower().split(","):
        media_range, *parameters = (part.strip() for part in item.split(";"))
        given = [value for name, _, value in (p.partition("=") for p in parameters) if name == "q"]
        quality = _quality(given[0]) if given else 1.0
        qualities[media_range] = max(quality, qualities.get(media_range, 0.0))
    return MappingProxyType(qualities)


def accepts(accept: str, name: str) -> bool:
    """Whether `name`, such as a content coding, is named with a quality above 0."""
    return accepted_qualities(accept).get(name, 0.0) > 0.0


def prefers(accept: str, media_type: str, other: str) -> bool:
    """Whether `media_type` is named with a quality above 0 that is not below that of `other`.

    A range `type/*` names all its types. `*/*` accepts any type and names none.
    """
    qualities = accepted_qualities(accept)
    wanted = qualities.get(media_type, qualities.get(_range_of(media_type), 0.0))
    rest = qualities.get(other, qualities.get(_range_of(other), qualities.get("*/*", 0.0)))
    return 0.0 < wanted >= rest


def _range_of(media_type: str) -> str:
    return f"{media_type.partition('/')[0]}/*"


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0.0 <= quality <= 1.0 else 0.0
