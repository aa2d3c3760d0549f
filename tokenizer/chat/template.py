"""Renders a model's chat templates like transformers' `apply_chat_template`."""

from __future__ import annotations

from collections.abc import Mapping

from jinja2 import Template, nodes

from tokenizer.chat.control_tokens import MARK_END, MARK_START
from tokenizer.chat.conversation import Conversation, Message
from tokenizer.chat.environment import template_environment
from tokenizer.chat.errors import RenderError
from tokenizer.chat.prompt_format import DEFAULT_TEMPLATE, TOOL_TEMPLATE

MAX_REASON_CHARACTERS = 300
"""Characters of a template's own error message that are passed on."""

# Appended to the final message; the text after it is the template's end of turn, and is cut off.
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


class InvalidTemplateError(Exception):
    """A template has a syntax error."""


class ChatTemplate:
    """Renders conversations."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """Compiles `sources`, templates by name. Raises InvalidTemplateError."""
        self._special_tokens = dict(special_tokens)
        self._environment = template_environment()
        self._templates = {name: self._compile(name, text) for name, text in sources.items()}

    def _compile(self, name: str, source: str) -> Template:
        try:
            return self._environment.from_string(source)
        except MemoryError:
            raise
        except Exception as error:  # also SyntaxError and RecursionError of the generated code
            raise InvalidTemplateError(f"chat template {name!r} is invalid: {error}") from error

    def select(self, *, with_tools: bool) -> str:
        """Returns the name of the template for a conversation. Raises RenderError without one."""
        names = [TOOL_TEMPLATE, DEFAULT_TEMPLATE] if with_tools else [DEFAULT_TEMPLATE]
        for name in names:
            if name in self._templates:
                return name
        if self._templates:
            others = ", ".join(sorted(self._templates))
            raise RenderError("messages", f"the model has no default chat template, only {others}")
        raise RenderError(
            "messages", "the model has no chat template; send a prompt instead of messages"
        )

    def render(self, name: str, conversation: Conversation, max_characters: int) -> str:
        """Returns the prompt of template `name`.

        Raises RenderError if the template fails or writes more than `max_characters`; MemoryError.
        """
        messages = [dict(message) for message in conversation.messages]
        if conversation.continue_final_message:
            messages[-1]["content"] = f"{messages[-1]['content'] or ''}{_CONTINUE_TAG}"
        omitted = conversation.continue_final_message or conversation.omit_generation_prompt
        variables: dict[str, object] = {
            **self._special_tokens,
            "documents": None,
            **conversation.template_kwargs,
            "messages": messages,
            "tools": conversation.tools,
            "add_generation_prompt": not omitted,
        }
        rendered = _run(self._templates[name], variables, max_characters)
        if conversation.continue_final_message:
            return _cut_at_tag(rendered, conversation.messages[-1])
        return rendered


def names_role(source: str, role: str) -> bool:
    """Whether a template of valid syntax contains the name of a role."""
    constants = template_environment().parse(source).find_all(nodes.Const)
    return any(constant.value == role for constant in constants)


def _run(template: Template, variables: Mapping[str, object], max_characters: int) -> str:
    pieces: list[str] = []
    num_characters = 0
    try:
        for piece in template.generate(variables):
            pieces.append(piece)
            num_characters += len(piece)
            if num_characters > max_characters:
                break
    except MemoryError:
        raise
    except Exception as error:
        # A template may raise any exception on messages that it does not support.
        raise RenderError("messages", _rejection(error)) from None
    if num_characters > max_characters:
        raise RenderError(
            "messages",
            f"messages must render to at most {max_characters} characters, "
            f"given {num_characters} or more",
        )
    return "".join(pieces)


def _rejection(error: Exception) -> str:
    reason = str(error) or type(error).__name__
    if len(reason) > MAX_REASON_CHARACTERS:
        reason = f"{reason[:MAX_REASON_CHARACTERS]}…"
    reason = reason.replace(MARK_START, "").replace(MARK_END, "")
    return f"the model's chat template rejects these messages: {reason}"


def _cut_at_tag(rendered: str, final: Message) -> str:
    content = str(final["content"] or "")
    tag = _CONTINUE_TAG.strip()
    if content.strip() not in rendered or tag not in rendered:
        raise RenderError(
            "continue_final_message",
            "continue_final_message needs a chat template that keeps the final message unchanged",
        )
    start = rendered.rindex(tag)
    if rendered.startswith(_CONTINUE_TAG, start):
        return rendered[:start]
    # The template trimmed the message, so the prompt is trimmed too.
    return rendered[:start].rstrip()
