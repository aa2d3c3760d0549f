"""Renders a model's chat templates like transformers' `apply_chat_template`."""

from __future__ import annotations

from collections.abc import Mapping

from jinja2 import Template

from mesh.errors import MeshError, invalid
from mesh.process.lifecycle import StartupError
from tokenizer.chat.conversation import Conversation, Message
from tokenizer.chat.environment import template_environment
from tokenizer.chat.render_limits import RenderLimits
from tokenizer.config import DEFAULT_TEMPLATE

TOOL_TEMPLATE = "tool_use"
"""Name of the template that some models provide for requests with tools."""

# Appended to the final message; the text after it is the template's end of turn, and is cut off.
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """Renders conversations. Thread-safe."""

    def __init__(
        self, model: str, sources: Mapping[str, str], special_tokens: Mapping[str, str]
    ) -> None:
        """Compiles `sources`, templates by name. Raises StartupError on a syntax error."""
        self._model = model
        self._special_tokens = dict(special_tokens)
        self._environment = template_environment()
        self._templates = {name: self._compile(name, text) for name, text in sources.items()}

    def _compile(self, name: str, source: str) -> Template:
        try:
            return self._environment.from_string(source)
        except Exception as error:  # also SyntaxError and RecursionError of the generated code
            raise StartupError(
                f"chat template {name!r} of model {self._model!r} is invalid: {error}"
            ) from error

    def render(self, conversation: Conversation, limits: RenderLimits) -> str:
        """Returns the prompt. Raises MeshError if the template fails or exceeds `limits`."""
        if not conversation.messages:
            raise invalid("messages", "messages must contain at least 1 message, given 0")
        template = self._select(with_tools=conversation.tools is not None)
        messages = [dict(message) for message in conversation.messages]
        if conversation.continue_final_message:
            messages[-1]["content"] = f"{messages[-1]['content']}{_CONTINUE_TAG}"
        variables: dict[str, object] = {
            **self._special_tokens,
            "documents": None,
            **conversation.template_kwargs,
            "messages": messages,
            "tools": conversation.tools,
            "add_generation_prompt": not conversation.continue_final_message,
        }
        rendered = self._run(template, variables, limits)
        if conversation.continue_final_message:
            return _cut_at_tag(rendered, conversation.messages[-1])
        return rendered

    def _select(self, *, with_tools: bool) -> Template:
        names = [TOOL_TEMPLATE, DEFAULT_TEMPLATE] if with_tools else [DEFAULT_TEMPLATE]
        for name in names:
            if name in self._templates:
                return self._templates[name]
        if self._templates:
            raise invalid(
                "messages",
                f"model {self._model!r} has no default chat template, only "
                f"{', '.join(sorted(self._templates))}",
            )
        raise invalid(
            "messages",
            f"model {self._model!r} has no chat template; send a prompt instead of messages",
        )

    def _run(
        self, template: Template, variables: Mapping[str, object], limits: RenderLimits
    ) -> str:
        pieces: list[str] = []
        num_characters = 0
        limits.check(0)
        try:
            for piece in template.generate(variables):
                pieces.append(piece)
                num_characters += len(piece)
                limits.check(num_characters)
        except MeshError:
            raise
        except Exception as error:
            # A template may raise any exception on messages that it does not support.
            reason = str(error) or type(error).__name__
            raise invalid(
                "messages",
                f"the chat template of model {self._model!r} rejects these messages: {reason}",
            ) from error
        return "".join(pieces)


def _cut_at_tag(rendered: str, final: Message) -> str:
    content = str(final["content"])
    tag = _CONTINUE_TAG.strip()
    if content.strip() not in rendered or tag not in rendered:
        raise invalid(
            "continue_final_message",
            "continue_final_message needs a chat template that keeps the final message unchanged",
        )
    start = rendered.rindex(tag)
    if rendered.startswith(_CONTINUE_TAG, start):
        return rendered[:start]
    # The template trimmed the message, so the prompt is trimmed too.
    return rendered[:start].rstrip()
