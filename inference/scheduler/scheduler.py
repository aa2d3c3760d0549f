"""Chooses which sequences run in the next step, and applies the step's tokens to them.

Policy only: no tensors, no threads; the caller passes the time.
"""

from __future__ import annotations

from collections import OrderedDict, abc
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from inference.engine.errors import DeadlineExceeded, DuplicateRequest, EngineError, SequenceFailed
from inference.engine.interface import Finish, PrefillChunk
from inference.scheduler.async_scheduling import AsyncScheduling
from inference.scheduler.block_manager import BlockManager
from inference.scheduler.scheduler_output import ScheduledSequence, SchedulerOutput
from inference.scheduler.sequence import Sequence, SequenceStatus
from inference.scheduler.speculation import Drafter
from inference.scheduler.step_result import SampledToken, StepOutput
from mesh.protocol.finish import FinishReason
from mesh.protocol.logprobs import TokenLogprob

MAX_PROMPT_LOGPROBS = 256
"""Most rows of logits per step for log probabilities of prompts; a row is vocabulary-wide."""


class Scheduler:
    """Continuous batching over two queues, waiting and running, first come first served.

    The running sequences followed by the waiting ones are always in order of arrival: a preempted
    sequence returns to the head of the waiting queue, and no sequence overtakes another. The
    oldest sequence can take the blocks of all others, and admission refuses a sequence that does
    not fit alone. So the oldest always proceeds, and there is no deadlock.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        num_speculative_tokens: int = 0,
    ) -> None:
        """`num_speculative_tokens` is the most draft tokens per sequence and step."""
        assert max_num_batched_tokens >= max_num_seqs, "every decode must fit a step"
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.num_preemptions = 0
        self.reclaim: Callable[[], bool] = lambda: False
        """Frees the blocks of inputs to embed, which are computed again later; False: none."""
        self._drafter = Drafter(num_speculative_tokens)
        self._async = AsyncScheduling(block_manager, self._drafter, max_num_seqs)
        # Ordered dicts serve as deques with removal from the middle in O(1), for aborts.
        self._waiting: OrderedDict[str, Sequence] = OrderedDict()
        self._running: OrderedDict[str, Sequence] = OrderedDict()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def sequences(self) -> Iterator[Sequence]:
        """All live sequences, oldest first."""
        return chain(self._running.values(), self._waiting.values())

    @property
    def waits_for_embeddings(self) -> bool:
        """Whether inputs to embed hold or claim blocks that waiting sequences may need."""
        blocks = self.block_manager
        return blocks.num_unshared_blocks > 0 or blocks.num_claimed_blocks > 0

    def find(self, request_id: str) -> Sequence | None:
        return self._running.get(request_id) or self._waiting.get(request_id)

    def add(self, sequence: Sequence) -> None:
        """Append a sequence to the waiting queue. Raises `DuplicateRequest`."""
        if self.find(sequence.request_id) is not None:
            raise DuplicateRequest(f"request id {sequence.request_id!r} is already in use")
        self._waiting[sequence.request_id] = sequence

    def schedule(self, now: float) -> SchedulerOutput:
        """Plan the next step: decodes, then chunks of running prefills, then waiting sequences.

        The rest of the token budget goes to draft tokens.
        """
        num_preemptions = self.num_preemptions
        scheduled = self._schedule_decodes()
        budget = self.max_num_batched_tokens - len(scheduled)
        budget = self._schedule_prefills(scheduled, budget)
        if self.num_preemptions == num_preemptions:  # else a new sequence would be preempted next
            budget = self._schedule_waiting(scheduled, budget, now)
        budget = self._schedule_drafts(scheduled, budget)
        batch_size = len(scheduled)
        for current in scheduled:
            sequence = current.sequence
            sequence.num_steps += 1
            sequence.num_batched_sequences += batch_size
        if self.max_num_batched_tokens - budget > batch_size:
            # The runner has a faster path for sequences of one token. The sort is stable.
            scheduled.sort(key=_has_several_tokens)
        return SchedulerOutput(scheduled, now)

    def schedule_next(self, plan: SchedulerOutput) -> SchedulerOutput | None:
        """Plan the step after `plan`, which is still running; None if `plan` must finish first.

        Changes no sequence except that it may allocate a block; `adopt` does the rest.
        """
        return self._async.schedule_next(plan, self.num_running, self.num_waiting)

    def adopt(self, plan: SchedulerOutput, now: float) -> SchedulerOutput:
        """Start the step of a plan from `schedule_next`; call when the step before it has ended."""
        return self._async.adopt(plan, now)

    def finish(
        self, plan: SchedulerOutput, accepted: list[list[SampledToken]], now: float
    ) -> list[StepOutput]:
        """Apply a step that ran; `accepted` holds the tokens of each sequence that samples."""
        outputs: list[StepOutput] = []
        tokens_of = iter(accepted)
        for scheduled in plan.scheduled:
            sequence, num_tokens, samples, drafts, _ = scheduled
            num_tokens -= len(drafts)
            if num_tokens > 1 or sequence.first_token_time is None:
                chunk = PrefillChunk(plan.start, now, num_tokens, len(plan.scheduled))
                sequence.prefill.append(chunk)
            if not samples:
                sequence.num_computed_tokens += num_tokens
                self.block_manager.commit(sequence)
                continue
            tokens = next(tokens_of)
            if tokens:
                outputs.append(self._append(scheduled, tokens, now))
            else:
                outputs += self.fail([sequence], _why_no_token(sequence), now)
        return outputs

    def _append(
        self, scheduled: ScheduledSequence, tokens: list[SampledToken], now: float
    ) -> StepOutput:
        """Append a step's tokens to their sequence, up to the token that ends it."""
        sequence, num_drafted = scheduled.sequence, len(scheduled.draft_token_ids)
        if num_drafted:
            self._drafter.learn(sequence, num_drafted, len(tokens) - 1)
        prompt_logprobs: abc.Sequence[TokenLogprob] = ()
        if sequence.first_token_time is None and sequence.prompt_logprobs is not None:
            prompt_logprobs = sequence.prompt_logprobs
        token_ids: list[int] = []
        reason: FinishReason | None = None
        for token in tokens:
            token_ids.append(token.token_id)
            reason = sequence.append(token.token_id, now)
            if reason is not None:
                break
        # The step has stored the KV of all tokens but the last, accepted drafts included.
        sequence.num_computed_tokens = sequence.num_tokens - 1
        self.block_manager.commit(sequence)
        logprobs = [t.logprobs for t in tokens[: len(token_ids)] if t.logprobs is not None]
        finish = None if reason is None else self._end(sequence, reason, now)
        return StepOutput(sequence.request_id, token_ids, logprobs, finish, prompt_logprobs, now)

    def abort(
        self, request_id: str, now: float, error: EngineError | None = None
    ) -> StepOutput | None:
        """End a sequence and free its blocks, between two steps; None if it has already ended."""
        sequence = self.find(request_id)
        if sequence is None:
            return None
        finish = self._end(sequence, FinishReason.ABORT, now, error)
        return StepOutput(request_id, [], [], finish)

    def drop_expired(self, now: float) -> list[StepOutput]:
        """End every sequence whose deadline has passed."""
        expired = [
            sequence
            for sequence in self.sequences
            if sequence.deadline is not None and sequence.deadline <= now
        ]
        outputs: list[StepOutput] = []
        for sequence in expired:
            error = DeadlineExceeded(
                f"the deadline passed after {sequence.num_completion_tokens} tokens"
            )
            finish = self._end(sequence, FinishReason.ABORT, now, error)
            outputs.append(StepOutput(sequence.request_id, [], [], finish))
        return outputs

    def fail(
        self, sequences: Iterable[Sequence], error: EngineError, now: float
    ) -> list[StepOutput]:
        """End sequences whose step failed; their blocks leave the prefix cache."""
        outputs: list[StepOutput] = []
        for sequence in sequences:
            finish = self._end(sequence, FinishReason.ERROR, now, error)
            outputs.append(StepOutput(sequence.request_id, [], [], finish))
        return outputs

    def check_integrity(self) -> None:
        """Raise `IntegrityError` unless the blocks match the live sequences."""
        self.block_manager.check_integrity(self.sequences)

    def _schedule_decodes(self) -> list[ScheduledSequence]:
        scheduled: list[ScheduledSequence] = []
        for sequence in list(self._running.values()):
            if sequence.status is not SequenceStatus.RUNNING:
                continue  # preempted for an older one earlier in this loop
            if sequence.num_uncomputed_tokens == 1 and self._make_room(sequence):
                scheduled.append(ScheduledSequence(sequence, 1, True))
        return scheduled

    def _schedule_prefills(self, scheduled: list[ScheduledSequence], budget: int) -> int:
        for sequence in self._running.values():
            if budget == 0:
                break
            if sequence.num_uncomputed_tokens > 1:  # the others are scheduled as decodes
                budget -= self._schedule_chunk(sequence, scheduled, budget)
        return budget

    def _schedule_waiting(self, scheduled: list[ScheduledSequence], budget: int, now: float) -> int:
        while self._waiting and budget > 0 and len(self._running) < self.max_num_seqs:
            sequence = next(iter(self._waiting.values()))
            if self.block_manager.is_worth_waiting(sequence):
                break  # the sequence that computes its blocks takes the budget anyway
            # Each running sequence may soon need a block: keep one for each, so that the new
            # sequence is not preempted right after it started.
            num_reserved = len(self._running) + self.block_manager.num_claimed_blocks
            if not self.block_manager.allocate(sequence, num_reserved_blocks=num_reserved):
                break
            if sequence.scheduled_time is None:
                sequence.scheduled_time = now
                sequence.num_cached_tokens = min(
                    sequence.num_computed_tokens, sequence.num_prompt_tokens
                )
            del self._waiting[sequence.request_id]
            self._running[sequence.request_id] = sequence
            sequence.status = SequenceStatus.RUNNING
            budget -= self._schedule_chunk(sequence, scheduled, budget)
        return budget

    def _schedule_drafts(self, scheduled: list[ScheduledSequence], budget: int) -> int:
        """Propose drafts, oldest sequence first, with budget and blocks that nothing else needs."""
        if not self._drafter.num_tokens:
            return budget
        for index, current in enumerate(scheduled):
            if budget <= 0:
                break
            sequence = current.sequence
            if sequence.num_uncomputed_tokens != 1:
                continue
            drafts = self._drafter.draft(sequence, budget)
            if drafts:
                room = self.block_manager.allocate_drafts(
                    sequence, len(drafts), num_reserved_blocks=len(self._running)
                )
                drafts = drafts[:room]
                scheduled[index] = current._replace(
                    num_tokens=1 + len(drafts), draft_token_ids=drafts
                )
                budget -= len(drafts)
        return budget

    def _schedule_chunk(
        self, sequence: Sequence, scheduled: list[ScheduledSequence], budget: int
    ) -> int:
        """Schedule as much of a prompt as the budget allows; returns the number of tokens."""
        most = budget
        if sequence.awaits_prompt_logprobs:
            others = (s.num_tokens for s in scheduled if s.sequence.awaits_prompt_logprobs)
            most = min(budget, MAX_PROMPT_LOGPROBS - sum(others))
            if most <= 0:
                return 0
        num_tokens = min(sequence.num_uncomputed_tokens, most)
        samples = num_tokens == sequence.num_uncomputed_tokens
        positions = sequence.prompt_positions(num_tokens)
        scheduled.append(ScheduledSequence(sequence, num_tokens, samples, (), positions))
        return num_tokens

    def _make_room(self, sequence: Sequence) -> bool:
        """Get a block for the next token, preempting the youngest sequence while none is free.

        Inputs to embed give up their blocks first. False if the sequence itself was the youngest,
        and so was preempted.
        """
        while not self.block_manager.extend(sequence):
            if self.reclaim():
                continue
            # Decodes are scheduled oldest first: the youngest cannot be scheduled yet.
            victim = next(reversed(self._running.values()))
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.block_manager.free(sequence)
        del self._running[sequence.request_id]
        self._waiting[sequence.request_id] = sequence
        self._waiting.move_to_end(sequence.request_id, last=False)
        sequence.status = SequenceStatus.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        error: EngineError | None = None,
    ) -> Finish:
        self.block_manager.free(sequence, forget=reason is FinishReason.ERROR)
        queue = self._running if sequence.status is SequenceStatus.RUNNING else self._waiting
        del queue[sequence.request_id]
        return sequence.end(reason, now, error)


def _has_several_tokens(scheduled: ScheduledSequence) -> bool:
    return scheduled.num_tokens > 1


def _why_no_token(sequence: Sequence) -> EngineError:
    """The error of a sequence for which no token could be sampled."""
    if sequence.matcher is not None:
        sequence.matcher.check()
        if sequence.matcher.error is not None:
            return sequence.matcher.error
    return SequenceFailed("the model gave no finite logits for this sequence")
