"""Runs a tool loop with OpenAI's Agents SDK; prints what happened as JSON.

Runs in the environment of `make test-sdks`: python agents_loop.py BASE_URL END_TOKEN_ID
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

called: list[dict[str, object]] = []


@function_tool
def weather(city: Literal["Rome", "Oslo"], warm: bool) -> str:
    """The weather in a city."""
    called.append({"city": city, "warm": warm})
    return f"It is sunny in {city}."


async def main(base_url: str, end_token: str) -> None:
    """Run the loop without and with streaming."""
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    # A random model calls tools only if it must; the SDK lets it answer after the first call.
    # The bias ends its answer, which is random text, after a few tokens.
    settings = ModelSettings(
        tool_choice="required",
        temperature=0,
        max_tokens=300,
        parallel_tool_calls=False,
        extra_body={"min_tokens": 4, "logit_bias": {end_token: 100}},
    )
    agent = Agent(
        name="forecaster",
        instructions="Be short.",
        model=OpenAIResponsesModel("instruct", client),
        tools=[weather],
        model_settings=settings,
    )
    config = RunConfig(tracing_disabled=True)
    whole = await Runner.run(agent, "Is it warm?", run_config=config, max_turns=4)
    streamed = Runner.run_streamed(agent, "Is it warm?", run_config=config, max_turns=4)
    kinds = [
        event.data.type
        async for event in streamed.stream_events()
        if event.type == "raw_response_event"
    ]
    print(
        json.dumps(
            {
                "called": called,
                "items": [item.type for item in whole.new_items],
                "output": whole.final_output,
                "num_responses": len(whole.raw_responses),
                "streamed": streamed.final_output,
                "kinds": sorted(set(kinds)),
            }
        )
    )


asyncio.run(main(sys.argv[1], sys.argv[2]))
