"""The engine's outputs as the messages of `Generate`.

Chunks are deltas, and so are their counts. A streamed `complete` repeats the last delta, as vLLM
sends it; an unstreamed one has the whole completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from smg_grpc_proto.generated import vllm_engine_pb2

from inference.engine.interface import Finish
from mesh.protocol.finish import FinishReason
from mesh.protocol.logprobs import TokenLogprob


@dataclass(slots=True, kw_only=True)
class TokenDelta:
    """Tokens of a sequence that became ready together."""

    token_ids: list[int]
    logprobs: list[TokenLogprob]

    def cut(self, num_tokens: int) -> None:
        """Keep the first tokens only."""
        del self.token_ids[num_tokens:]
        del self.logprobs[num_tokens:]


@dataclass(slots=True, kw_only=True)
class ChoiceResponses:
    """Makes the messages of one sequence."""

    index: int
    prompt_token_ids: Sequence[int]
    is_streamed: bool
    stop_token_ids: frozenset[int]
    _whole: TokenDelta = field(default_factory=lambda: TokenDelta(token_ids=[], logprobs=[]))
    _prompt_logprobs: vllm_engine_pb2.InputLogProbs | None = None

    def take_prompt_logprobs(self, logprobs: Sequence[TokenLogprob]) -> None:
        """Keep the log probabilities of the prompt for the first message."""
        self._prompt_logprobs = _input_logprobs(self.prompt_token_ids, logprobs)

    def chunk(self, delta: TokenDelta) -> vllm_engine_pb2.GenerateResponse | None:
        """The message for a delta; None if nothing is streamed."""
        if not self.is_streamed:
            self._whole.token_ids += delta.token_ids
            self._whole.logprobs += delta.logprobs
            return None
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        return vllm_engine_pb2.GenerateResponse(
            chunk=vllm_engine_pb2.GenerateStreamChunk(
                token_ids=delta.token_ids,
                prompt_tokens=len(self.prompt_token_ids),
                completion_tokens=len(delta.token_ids),
                output_logprobs=_output_logprobs(delta.logprobs),
                input_logprobs=prompt_logprobs,
                index=self.index,
            )
        )

    def complete(
        self, delta: TokenDelta, finish: Finish, matched_string: str
    ) -> vllm_engine_pb2.GenerateResponse:
        """The last message; `delta` was passed to `chunk` before.

        `matched_string`: the stop string that ended the text, or empty.
        """
        given = delta if self.is_streamed else self._whole
        reason = FinishReason.STOP if matched_string else finish.reason
        message = vllm_engine_pb2.GenerateComplete(
            output_ids=given.token_ids,
            finish_reason=reason.value,
            prompt_tokens=finish.num_prompt_tokens,
            completion_tokens=len(given.token_ids),
            cached_tokens=finish.num_cached_tokens,
            output_logprobs=_output_logprobs(given.logprobs),
            input_logprobs=self._prompt_logprobs,
            index=self.index,
            spec_accepted_tokens=finish.num_accepted_tokens,
            spec_draft_tokens=finish.num_drafted_tokens,
        )
        last = given.token_ids[-1] if given.token_ids else None
        if matched_string:
            message.matched_stop_str = matched_string
        elif reason is FinishReason.STOP and last is not None and last in self.stop_token_ids:
            message.matched_token_id = last
        return vllm_engine_pb2.GenerateResponse(complete=message)


def _output_logprobs(logprobs: Sequence[TokenLogprob]) -> vllm_engine_pb2.OutputLogProbs | None:
    if not logprobs:
        return None
    return vllm_engine_pb2.OutputLogProbs(
        token_logprobs=[each.logprob for each in logprobs],
        token_ids=[each.token_id for each in logprobs],
        top_logprobs=_top(logprobs) if any(each.top for each in logprobs) else (),
    )


def _input_logprobs(
    prompt_token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]
) -> vllm_engine_pb2.InputLogProbs:
    """An entry for each token of the prompt; the first token has no log probability."""
    top = [vllm_engine_pb2.TopLogProbs(), *_top(logprobs)]
    return vllm_engine_pb2.InputLogProbs(
        token_logprobs=[
            vllm_engine_pb2.InputTokenLogProb(),
            *(vllm_engine_pb2.InputTokenLogProb(value=each.logprob) for each in logprobs),
        ],
        token_ids=prompt_token_ids,
        top_logprobs=top if any(each.top for each in logprobs) else (),
    )


def _top(logprobs: Sequence[TokenLogprob]) -> list[vllm_engine_pb2.TopLogProbs]:
    return [
        vllm_engine_pb2.TopLogProbs(
            values=[value for _, value in each.top], token_ids=[token for token, _ in each.top]
        )
        for each in logprobs
    ]
