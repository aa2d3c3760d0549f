"""Renders requests for one model: validation, adaptation, control tokens, chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeAlias

from mesh.protocol.chat import ChatPrompt, ToolPrompt
from tokenizer.adaptation.adapt import adapt
from tokenizer.adaptation.capabilities import Capabilities, find_capabilities
from tokenizer.chat.control_tokens import ControlTokens
from tokenizer.chat.conversation import Conversation, Json, Message, conversation_of
from tokenizer.chat.errors import RenderError
from tokenizer.chat.prompt_format import DEFAULT_TEMPLATE, TOOL_TEMPLATE, PromptFormat
from tokenizer.chat.rendered_prompt import RenderedPrompt, RenderedSegment
from tokenizer.chat.structural_tokens import structural_tokens
from tokenizer.chat.template import ChatTemplate, names_role

TemplateCapabilities: TypeAlias = Mapping[str, Capabilities]
"""Capabilities by the name of the template."""

PROBE_CHARACTERS = 100_000
"""Maximum output of a template that is examined; Llama 3's is the longest, with some thousands."""


class PromptRenderer:
    """Renders conversations with the templates of one model; they may run for any time."""

    def __init__(self, format: PromptFormat) -> None:
        """Raises InvalidTemplateError."""
        self._sources = format.templates
        self._template = ChatTemplate(format.templates, format.variables)
        structural = structural_tokens(format.templates, format.ordinary_tokens)
        self.control = ControlTokens(format.special_tokens, structural)

    def find_capabilities(self) -> TemplateCapabilities:
        """Examines the templates for conversations without and with tools."""
        return {
            name: find_capabilities(
                partial(self._try, name),
                developer_messages=names_role(source, "developer"),
            )
            for name, source in self._sources.items()
            if name in (DEFAULT_TEMPLATE, TOOL_TEMPLATE)
        }

    def render(
        self, prompt: ChatPrompt, capabilities: TemplateCapabilities, max_characters: int
    ) -> RenderedPrompt:
        """Renders a request. Raises RenderError; MemoryError."""
        name = self._template.select(with_tools=bool(prompt.tools_json))
        template = capabilities.get(name, Capabilities())
        conversation = conversation_of(prompt, template.arguments)
        marked = self.control.mark(conversation)
        adapted = adapt(marked or conversation, template)
        rendered = self._template.render(name, adapted, max_characters)
        return RenderedPrompt(
            [RenderedSegment(rendered, False)]
            if marked is None
            else [*self.control.split(rendered)],
            _tool_prompt(conversation, template),
        )

    def _try(self, name: str, messages: Sequence[Message], tools: list[Json] | None) -> str | None:
        probe = Conversation(messages=list(messages), tools=tools, template_kwargs={})
        try:
            return self._template.render(name, probe, PROBE_CHARACTERS)
        except (RenderError, MemoryError):
            return None


def _tool_prompt(conversation: Conversation, template: Capabilities) -> ToolPrompt:
    if conversation.tools is None:
        return ToolPrompt.NONE
    return ToolPrompt.TEMPLATE if template.tools else ToolPrompt.GENERIC
