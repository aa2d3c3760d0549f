"""Finds the tokens that a chat template uses as structure, though they are not marked special."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jinja2 import nodes

from tokenizer.chat.environment import template_environment


def structural_tokens(sources: Mapping[str, str], added_tokens: Iterable[str]) -> list[str]:
    """Those of `added_tokens` that the templates write, such as DeepSeek's `<|User|>`.

    Left out are tokens that a template looks for inside messages (`'</think>' in content`,
    `content.split('</think>')`): those belong to the language of the messages. Whitespace is
    nobody's structure. The templates must be known to be sound.
    """
    environment = template_environment()
    trees = [environment.parse(source) for source in sources.values()]
    written = "\0".join(text for tree in trees for text in _written(tree))
    sought = "\0".join(text for tree in trees for text in _sought(tree))
    return [
        token
        for token in added_tokens
        if token in written and token not in sought and not token.isspace()
    ]


def _written(tree: nodes.Template) -> set[str]:
    return {data.data for data in tree.find_all(nodes.TemplateData)} | _constants(tree)


def _sought(tree: nodes.Template) -> set[str]:
    texts: set[str] = set()
    for compare in tree.find_all(nodes.Compare):
        texts |= _constants(compare)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr):  # a method, such as content.split(…)
            for argument in call.args:
                texts |= _constants(argument)
    for filtered in tree.find_all(nodes.Filter):
        for argument in filtered.args:
            texts |= _constants(argument)
    return texts


def _constants(node: nodes.Node) -> set[str]:
    found = [*node.find_all(nodes.Const), *([node] if isinstance(node, nodes.Const) else [])]
    return {constant.value for constant in found if isinstance(constant.value, str)}
