"""A model's chat templates, rendered as transformers' `apply_chat_template` renders them."""

from __future__ import annotations

from collections.abc import Mapping

from jinja2 import Template, TemplateError

from mesh.errors import MeshError, invalid
from mesh.process.lifecycle import StartupError
from tokenizer.chat.budget import Budget
from tokenizer.chat.conversation import Conversation, Message
from tokenizer.chat.environment import template_environment
from tokenizer.config import DEFAULT_TEMPLATE

TOOL_TEMPLATE = "tool_use"
"""Name of the template that some models keep for requests with tools."""

# Appended to the message that is to be continued; all behind it is the template's end of turn.
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """Renders conversations. Safe to use from several threads."""

    def __init__(
        self, model: str, sources: Mapping[str, str], special_tokens: Mapping[str, str]
    ) -> None:
        """Compiles all `sources`, by name. Raises StartupError on bad syntax."""
        self._model = model
        self._special_tokens = dict(special_tokens)
        self._environment = template_environment()
        self._templates = {name: self._compile(name, text) for name, text in sources.items()}

    def _compile(self, name: str, source: str) -> Template:
        try:
            return self._environment.from_string(source)
        except TemplateError as error:
            raise StartupError(
                f"chat template {name!r} of model {self._model!r} is broken: {error}"
            ) from error

    def render(self, conversation: Conversation, budget: Budget) -> str:
        """The prompt. Raises MeshError where the template refuses or `budget` is used up."""
        if not conversation.messages:
            raise invalid("messages", "messages must hold at least 1 message, given 0")
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
        rendered = self._run(template, variables, budget)
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

    def _run(self, template: Template, variables: Mapping[str, object], budget: Budget) -> str:
        pieces: list[str] = []
        num_characters = 0
        budget.check(0)
        try:
            for piece in template.generate(variables):
                pieces.append(piece)
                num_characters += len(piece)
                budget.check(num_characters)
        except MeshError:
            raise
        except Exception as error:
            # A template is a program: on messages it was not made for it fails in any way.
            reason = str(error) or type(error).__name__
            raise invalid(
                "messages",
                f"the chat template of model {self._model!r} refuses these messages: {reason}",
            ) from error
        return "".join(pieces)


def _cut_at_tag(rendered: str, final: Message) -> str:
    content = str(final["content"])
    tag = _CONTINUE_TAG.strip()
    if content.strip() not in rendered or tag not in rendered:
        raise invalid(
            "continue_final_message",
            "continue_final_message needs a chat template that keeps the final message as it is",
        )
    start = rendered.rindex(tag)
    if rendered.startswith(_CONTINUE_TAG, start):
        return rendered[:start]
    # The template trimmed the message; so must the prompt be.
    return rendered[:start].rstrip()
