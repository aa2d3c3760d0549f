"""Expected span trees of a request, for each outcome.

One line a span: service, name, `weir.outcome`, and `!` if the status is an error.
"""

from __future__ import annotations

ORCHESTRATOR = "mesh.v1.OrchestratorService/Generate"
EMBED = "mesh.v1.OrchestratorService/Embed"
ENGINE = "mesh.v1.InferenceService/Generate"

ENCODED_HERE = """\
      orchestrator: admission ok
      {retrieval}orchestrator: encode ok
"""
"""A short text, encoded by the orchestrator."""

ENCODED = (
    ENCODED_HERE
    + """\
{passages}        orchestrator: mesh.v1.TokenizerService/Encode ok
          tokenizer: mesh.v1.TokenizerService/Encode ok
"""
)

OK = (
    """\
gateway: GET /api/v1/search ok
  gateway: mesh.v1.OrchestratorService/SummarizeStream ok
    orchestrator: mesh.v1.OrchestratorService/SummarizeStream ok
"""
    + ENCODED.format(
        retrieval="orchestrator: retrieval ok\n      ",
        passages="        orchestrator: fit_passages ok\n",
    )
    + """\
      orchestrator: chat demo ok
        orchestrator: choose_replica ok
        orchestrator: mesh.v1.InferenceService/Generate ok
          inference: mesh.v1.InferenceService/Generate ok
            inference: queue ok
            inference: prefill ok
            inference: decode ok
      orchestrator: grounding ok"""
)


def completion(end: str, *stages: str, is_long: bool = False) -> str:
    """The tree of a completion with outcome `end` at every hop and these stages in the engine.

    `is_long`: the tokenizer service encodes the prompt.
    """
    encoded = ENCODED if is_long else ENCODED_HERE
    lines = [f"            inference: {stage}" for stage in stages]
    return f"""\
gateway: POST /v1/completions {end}
  gateway: {ORCHESTRATOR} {end}
    orchestrator: {ORCHESTRATOR} {end}
{encoded.format(retrieval="", passages="")}\
      orchestrator: text_completion demo {end}
        orchestrator: choose_replica ok
        orchestrator: {ENGINE} {end}
          inference: {ENGINE} {end}
""" + "\n".join(lines)


EMBEDDED = f"""\
gateway: POST /v1/embeddings ok
  gateway: {EMBED} ok
    orchestrator: {EMBED} ok
{ENCODED.format(retrieval="", passages="").replace("/Encode ok", "/EncodeTexts ok")}\
      orchestrator: embeddings demo ok
        orchestrator: mesh.v1.InferenceService/Embed ok
          inference: mesh.v1.InferenceService/Embed ok
            inference: queue ok
            inference: compute ok"""

REFUSED = f"""\
gateway: POST /v1/completions refused
  gateway: {ORCHESTRATOR} refused
    orchestrator: {ORCHESTRATOR} refused
      orchestrator: admission refused"""

UNKNOWN_MODEL = f"""\
gateway: POST /v1/completions invalid
  gateway: {ORCHESTRATOR} invalid
    orchestrator: {ORCHESTRATOR} invalid
      orchestrator: admission ok"""

# The killed engine exports no spans.
FAILED_OVER = f"""\
gateway: POST /v1/completions failed_over
  gateway: {ORCHESTRATOR} ok
    orchestrator: {ORCHESTRATOR} ok
{ENCODED_HERE.format(retrieval="")}\
      orchestrator: text_completion demo failed_over
        orchestrator: choose_replica ok
        orchestrator: {ENGINE} failed!
        orchestrator: choose_replica ok
        orchestrator: {ENGINE} ok
          inference: {ENGINE} ok
            inference: queue ok
            inference: prefill ok
            inference: decode ok"""
