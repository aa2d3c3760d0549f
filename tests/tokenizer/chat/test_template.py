"""Chat templates: rendered and encoded as in transformers, in a secure sandbox."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tokenizer import templates
from tests.tokenizer.conftest import MakeModel
from tests.tokenizer.prompts import chat, encode
from tokenizer.chat.conversation import Conversation, Message
from tokenizer.chat.errors import RenderError
from tokenizer.chat.template import ChatTemplate, InvalidTemplateError
from tokenizer.files import read_files
from tokenizer.tokenizer import Tokenizer

LoadTokenizer = Callable[..., Tokenizer]

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_level",
            "description": "Level of a river's <gauge> & more, in °",
            "parameters": {"type": "object", "properties": {"river": {"type": "string"}}},
        },
    }
]
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_level", "arguments": {"river": "Danube è 日"}},
}
SHORT: list[Any] = [{"role": "user", "content": "What is a weir?\n  "}]
LONG: list[Any] = [
    {"role": "system", "content": "  Be brief.  "},
    {"role": "user", "content": "Hello 👋 <b>'quoted'</b> & \"more\""},
    {"role": "assistant", "content": "<think>hm\n</think>\n\nHello."},
    {"role": "user", "content": "And now?"},
]
WITH_CALL: list[Any] = [
    {"role": "user", "content": "How high is the Danube?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"level": 3}', "tool_call_id": "abcdefghi"},
]


def conversation(messages: list[Any], **fields: Any) -> Conversation:
    return Conversation(messages=messages, **{"template_kwargs": {}, **fields})


def render(template: str, given: Conversation, max_characters: int = 1_000_000) -> str:
    return ChatTemplate({"default": template}, {}).render("default", given, max_characters)


def transformers_tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("name", sorted(templates.ALL))
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("messages", [SHORT, LONG, WITH_CALL], ids=["short", "long", "call"])
def test_ids_equal_those_of_transformers(
    make_model: MakeModel, name: str, tools: list[Any] | None, messages: list[Any]
) -> None:
    """For every template, with and without tools and tool calls, if the template renders them."""
    if name == "plain" and (tools or messages is WITH_CALL):
        return  # transformers omits the tools
    folder = make_model(templates.ALL[name])
    theirs = transformers_tokenizer(folder).apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_dict=False
    )
    tokenizer = Tokenizer("m", read_files(str(folder)))
    ours = encode(tokenizer, chat(messages, tools=tools))
    assert ours == theirs
    assert len(ours) > 10


@pytest.mark.parametrize("content", ["The level is", "The level is \n"])
@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral"])
def test_a_final_message_is_continued_as_in_transformers(
    make_model: MakeModel, name: str, content: str
) -> None:
    """With continue_final_message the prompt ends inside the assistant's message."""
    messages = [{"role": "user", "content": "How high?"}, {"role": "assistant", "content": content}]
    folder = make_model(templates.ALL[name])
    theirs = transformers_tokenizer(folder).apply_chat_template(
        messages, continue_final_message=True, tokenize=False
    )
    tokenizer = Tokenizer("m", read_files(str(folder)))
    ours = encode(tokenizer, chat(messages, continue_final_message=True))
    assert tokenizer.decode(ours, skip_special_tokens=False) == theirs
    assert theirs.rstrip().endswith("The level is")


def test_template_kwargs_and_documents_reach_the_template(make_model: MakeModel) -> None:
    """Variables of the request are available to the template, as in transformers."""
    template = "{{ greeting }} {{ documents[0].title }} {{ messages[0].content }}"
    folder = make_model(template)
    variables = {"greeting": "Grüezi", "documents": [{"title": "Weirs"}]}
    theirs = transformers_tokenizer(folder).apply_chat_template(
        SHORT, tokenize=False, add_generation_prompt=True, **variables
    )
    assert render(template, conversation(SHORT, template_kwargs=variables)) == theirs
    assert theirs.startswith("Grüezi Weirs What")


def test_tools_select_the_tool_template(load_tokenizer: LoadTokenizer) -> None:
    """Requests with tools use the template `tool_use`, all others use `default`."""
    sources = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    tokenizer = load_tokenizer(sources)
    for tools, text in ((None, "plain"), (TOOLS, "tools")):
        ids = encode(tokenizer, chat(SHORT, tools=tools))
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_template_files_take_precedence_over_the_config(load_tokenizer: LoadTokenizer) -> None:
    """chat_template.jinja and additional_chat_templates/ are read as transformers reads them."""
    files = {"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "extra"}
    tokenizer = load_tokenizer("config", files)
    for tools, text in ((None, "file"), (TOOLS, "extra")):
        ids = encode(tokenizer, chat(SHORT, tools=tools))
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_chat_without_a_template_is_refused(load_tokenizer: LoadTokenizer) -> None:
    """The error does not contain the model's folder."""
    with pytest.raises(RenderError, match="the model has no chat template; send a prompt"):
        encode(load_tokenizer(None), chat(SHORT))


def test_an_invalid_template_is_found_when_it_is_loaded() -> None:
    """Syntax errors and expressions that are nested too deeply, not at the first request."""
    for source in ("{% if %}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"):
        with pytest.raises(InvalidTemplateError, match="chat template 'default' is invalid"):
            ChatTemplate({"default": source}, {})


def test_raise_exception_refuses_the_messages(load_tokenizer: LoadTokenizer) -> None:
    """The client receives the message that the template passes to raise_exception, shortened."""
    with pytest.raises(RenderError, match="roles must alternate") as caught:
        encode(load_tokenizer(templates.MISTRAL), chat([{"role": "assistant", "content": "1"}]))
    assert caught.value.param == "messages"
    with pytest.raises(RenderError) as long:
        render("{{ raise_exception('x' * 30000) }}", conversation(SHORT))
    assert len(long.value.message) < 400


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ self.__init__.__globals__ }}",
        "{{ dict.__class__.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(_x=1) }}",
        "{{ messages.append({}) }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ (messages|attr('__class__')) ~ 1 / 0 }}",
        "{% for a in range(10000000) %}{{ a }}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_the_sandbox_refuses_known_escapes(template: str) -> None:
    """Published escapes from jinja2, and templates that run or write too much, are refused."""
    with pytest.raises(RenderError):
        render(template, conversation(SHORT))


def test_the_output_is_limited() -> None:
    """The limit and the length are in the error."""
    loop = "{% for i in range(90000) %}{% for k in range(90000) %}x{% endfor %}{% endfor %}"
    with pytest.raises(RenderError, match="at most 1000 characters, given 1001"):
        render(loop, conversation(SHORT), max_characters=1000)


def test_rendering_does_not_modify_messages() -> None:
    """The same conversation can be rendered twice."""
    messages: list[Message] = [{"role": "assistant", "content": "a"}]
    for _ in range(2):
        continued = conversation(messages, continue_final_message=True)
        assert render("{{ messages[0].content }}", continued) == "a"
