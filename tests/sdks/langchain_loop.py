"""Runs a tool loop and structured output with LangChain; prints what happened as JSON.

Runs in the environment of `make test-sdks`: python langchain_loop.py BASE_URL
"""

from __future__ import annotations

import json
import sys
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


@tool
def weather(city: Literal["Rome", "Oslo"], warm: bool) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


class Forecast(BaseModel):
    """A forecast."""

    warm: bool
    city: Literal["Rome", "Oslo"]


def main(base_url: str) -> None:
    """Call the tool, answer with its result, by messages and by response id; parse; stream."""
    model = ChatOpenAI(
        model="instruct",
        base_url=base_url,
        api_key="none",
        use_responses_api=True,
        temperature=0,
        max_tokens=300,
        max_retries=0,
    )
    forced = model.bind_tools([weather], tool_choice="required", parallel_tool_calls=False)
    question = HumanMessage("Is it warm?")
    first = forced.invoke([question])
    [call] = first.tool_calls
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    bound = model.bind_tools([weather])
    second = bound.invoke([question, first, result])
    id = first.response_metadata["id"]
    by_id = bound.invoke([result], previous_response_id=id)
    parsed = model.with_structured_output(Forecast, method="json_schema").invoke("Warm?")
    texts = [chunk.text for chunk in model.stream("Hi")]
    assert isinstance(second, AIMessage)
    print(
        json.dumps(
            {
                "call": call["args"],
                "second": second.text,
                "by_id": by_id.text,
                "parsed": parsed.model_dump(),
                "streamed": "".join(map(str, texts)),
                "whole": model.invoke("Hi").text,
                "usage": second.usage_metadata,
            }
        )
    )


main(sys.argv[1])
