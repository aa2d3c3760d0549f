"""SSE frames of an OpenAI stream.

They have no `id:`: such a stream cannot be resumed, and clients that split events at line ends
(litellm among them) skip what follows an unknown line.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.http.json_text import encode_line
from gateway.openai.responses import Choice
from gateway.streaming.sse import DONE

# Placeholder for a delta's text; the control character occurs in no model's name.
_MARK = "\0text\0"
_ENCODED_MARK = encode_line(_MARK)


class Chunks:
    """Encodes frames. `text_choice` builds the choice with an index and a text.

    Everything except the text of a delta is encoded once for each choice, not for each token.
    """

    def __init__(
        self,
        head: dict[str, object],
        text_choice: Callable[[int, str], Choice],
        *,
        num_choices: int,
        include_usage: bool,
    ) -> None:
        self._head = head
        self._include_usage = include_usage
        self._around: list[tuple[str, str]] = []
        for index in range(num_choices):
            chunk = encode_line(self._chunk(text_choice(index, _MARK)))
            before, _, after = chunk.partition(_ENCODED_MARK)
            self._around.append((before, after))

    def text(self, index: int, text: str) -> bytes:
        """Encode a chunk with text and without logprobs."""
        before, after = self._around[index]
        return _frame(f"{before}{encode_line(text)}{after}")

    def chunk(self, choice: Choice) -> bytes:
        """Encode a chunk with one choice."""
        return _frame(encode_line(self._chunk(choice)))

    def end(self, usage: dict[str, object]) -> bytes:
        """Encode the end of the stream: the usage, if requested, and `[DONE]`."""
        if not self._include_usage:
            return DONE
        return _frame(encode_line({**self._head, "choices": [], "usage": usage})) + DONE

    def _chunk(self, choice: Choice) -> dict[str, object]:
        fields: dict[str, object] = {**self._head, "choices": [choice]}
        if self._include_usage:
            fields["usage"] = None
        return fields


def _frame(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
