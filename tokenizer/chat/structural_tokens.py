"""Finds structural tokens of a chat template that the tokenizer does not mark as special."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jinja2 import nodes

from tokenizer.chat.environment import template_environment


def structural_tokens(sources: Mapping[str, str], added_tokens: Iterable[str]) -> list[str]:
    """Returns those of `added_tokens` that the templates write, such as DeepSeek's `<|User|>`.

    Excludes tokens that a template searches for inside messages (`'</think>' in content`,
    `content.split('</think>')`), because they are part of the messages' own text, and white
    space. The templates must have valid syntax.
    """
    environment = template_environment()
    trees = [environment.parse(source) for source in sources.values()]
    written = "\0".join(text for tree in trees for text in _written(tree))
    searched = "\0".join(text for tree in trees for text in _searched(tree))
    return [
        token
        for token in added_tokens
        if token in written and token not in searched and not token.isspace()
    ]


def _written(tree: nodes.Template) -> set[str]:
    return {data.data for data in tree.find_all(nodes.TemplateData)} | _constants(tree)


def _searched(tree: nodes.Template) -> set[str]:
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
