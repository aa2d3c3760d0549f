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
from inference.scheduler.prefill_budget import TARGET_STEP_SECONDS, PrefillBudget
from inference.scheduler.scheduler_output import ScheduledSequence, SchedulerOutput
from inference.scheduler.sequence import Sequence, SequenceStatus
from inference.scheduler.speculation import Drafter
from inference.scheduler.step_result import SampledToken, StepOutput
from inference.scheduler.waiting_queue import WaitingQueue
from mesh.protocol.finish import FinishReason
from mesh.protocol.logprobs import TokenLogprob

MAX_PROMPT_LOGPROBS = 256
"""Most rows of logits per step for log probabilities of prompts; a row is vocabulary-wide."""

RESERVED_SHARE = 8
"""One of so many places in a step is for the first sequences of requests that are not large: one of
a hundred sequences must not keep others waiting until some of its own end."""

MAX_START_ATTEMPTS = 4
"""Most waiting sequences per step whose blocks are looked for and not had: a search takes time."""


class Scheduler:
    """Continuous batching over two queues, waiting and running.

    The running sequences are in the order in which they started, and a preempted sequence returns
    to the head of the waiting queue. The oldest running sequence can take the blocks of all others,
    and admission refuses a sequence that does not fit alone. So the oldest always proceeds, and
    there is no deadlock.

    The oldest prompt has at least half of each step's budget for prompts. The other half is for
    shorter ones, so that they do not wait for its end, and it is not starved.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        num_speculative_tokens: int = 0,
        target_step_seconds: float = TARGET_STEP_SECONDS,
    ) -> None:
        """`num_speculative_tokens` is the most draft tokens per sequence and step.

        A step with prompts should take `target_step_seconds` while other work waits for its end.
        """
        assert max_num_batched_tokens >= max_num_seqs, "every decode must fit a step"
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.num_preemptions = 0
        self.reclaim: Callable[[], bool] = lambda: False
        """Frees the blocks of inputs to embed, which are computed again later; False: none."""
        self.embeds: Callable[[], bool] = lambda: False
        """Whether there are inputs to embed, which are computed between steps."""
        self._prefill_budget = PrefillBudget(max_num_batched_tokens, target_step_seconds)
        self._drafter = Drafter(num_speculative_tokens)
        self._async = AsyncScheduling(block_manager, self._drafter, max_num_seqs)
        self._waiting = WaitingQueue()
        self._running: OrderedDict[str, Sequence] = OrderedDict()
        self._num_further = 0
        """Running sequences for which places are not kept."""
        self._max_further = max_num_seqs - max_num_seqs // RESERVED_SHARE

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of the waiting sequences."""
        return self._waiting.num_tokens

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def sequences(self) -> Iterator[Sequence]:
        """All live sequences: running, then waiting ones, each in order."""
        return chain(self._running.values(), self._waiting)

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
        self._waiting.append(sequence)

    def schedule(self, now: float) -> SchedulerOutput:
        """Plan the next step: decodes, then prompts, then draft tokens with the rest."""
        num_preemptions = self.num_preemptions
        scheduled = self._schedule_decodes()
        num_decodes = len(scheduled)
        # Right after a preemption a new sequence would be preempted next.
        starts = self.num_preemptions == num_preemptions
        num_prompt_tokens = self._schedule_prompts(scheduled, now, starts=starts)
        budget = self.max_num_batched_tokens - num_decodes - num_prompt_tokens
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
        num_waiting = self.num_waiting
        if self._firsts_only:
            num_waiting -= self._waiting.num_further
        return self._async.schedule_next(plan, self.num_running, num_waiting)

    def adopt(self, plan: SchedulerOutput, now: float) -> SchedulerOutput:
        """Start the step of a plan from `schedule_next`; call when the step before it has ended."""
        return self._async.adopt(plan, now)

    def finish(
        self, plan: SchedulerOutput, accepted: list[list[SampledToken]], now: float
    ) -> list[StepOutput]:
        """Apply a step that ran; `accepted` holds the tokens of each sequence that samples."""
        outputs: list[StepOutput] = []
        tokens_of = iter(accepted)
        if plan.scheduled and _has_several_tokens(plan.scheduled[-1]):
            self._prefill_budget.record(plan.num_tokens, now - plan.start)
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

    @property
    def _firsts_only(self) -> bool:
        """Whether only first sequences of requests may start."""
        return self._num_further >= self._max_further

    def _schedule_decodes(self) -> list[ScheduledSequence]:
        scheduled: list[ScheduledSequence] = []
        for sequence in list(self._running.values()):
            if sequence.status is not SequenceStatus.RUNNING:
                continue  # preempted for an older one earlier in this loop
            if sequence.num_uncomputed_tokens == 1 and self._make_room(sequence):
                scheduled.append(ScheduledSequence(sequence, 1, True))
        return scheduled

    def _schedule_prompts(
        self, scheduled: list[ScheduledSequence], now: float, *, starts: bool
    ) -> int:
        """Schedule chunks of prompts, oldest first; returns the number of tokens.

        `starts`: waiting sequences may start.
        """
        alone = self.num_running + self.num_waiting == 1 and not self.embeds()
        total = budget = self._prefill_budget.num_tokens(len(scheduled), alone=alone)
        # The others are scheduled as decodes.
        pending = [s for s in self._running.values() if s.num_uncomputed_tokens > 1]
        while budget > 0:
            oldest = pending.pop(0) if pending else self._start_next(now) if starts else None
            if oldest is None:
                break
            if oldest.num_uncomputed_tokens > budget:
                shorter = self._shorter_than(oldest, pending, starts=starts)
                budget -= self._schedule_shorter(shorter, scheduled, budget // 2, now)
                pending = [s for s in pending if s not in shorter]
            budget -= self._schedule_chunk(oldest, scheduled, budget)
        return total - budget

    def _shorter_than(
        self, oldest: Sequence, pending: list[Sequence], *, starts: bool
    ) -> list[Sequence]:
        """Prompts that need fewer tokens than the oldest one, shortest first."""
        most = oldest.num_uncomputed_tokens
        shorter = [s for s in pending if s.num_uncomputed_tokens < most]
        if starts and len(self._running) < self.max_num_seqs:
            startable = self._waiting.startable(firsts_only=self._firsts_only)
            shorter += (s for s in startable if s.num_uncomputed_tokens < most)
        return sorted(shorter, key=_num_uncomputed_tokens)

    def _schedule_shorter(
        self,
        shorter: list[Sequence],
        scheduled: list[ScheduledSequence],
        budget: int,
        now: float,
    ) -> int:
        """Schedule prompts that the oldest one must not delay; returns the number of tokens."""
        left, num_attempts = budget, 0
        for sequence in shorter:
            if left == 0 or num_attempts == MAX_START_ATTEMPTS:
                break
            if sequence.status is SequenceStatus.WAITING and not self._start(sequence, now):
                num_attempts += 1
                continue
            left -= self._schedule_chunk(sequence, scheduled, left)
        return budget - left

    def _start_next(self, now: float) -> Sequence | None:
        """Start the first waiting sequence, or else a short one; None if none can start."""
        startable = self._waiting.startable(firsts_only=self._firsts_only)
        first = next(startable, None)
        if first is None or self._start(first, now):
            return first
        others = sorted(startable, key=_num_uncomputed_tokens)[:MAX_START_ATTEMPTS]
        return next((sequence for sequence in others if self._start(sequence, now)), None)

    def _start(self, sequence: Sequence, now: float) -> bool:
        """Give a waiting sequence its blocks; False if it has to wait on."""
        if len(self._running) >= self.max_num_seqs:
            return False
        if not self._waiting.may_start(sequence, firsts_only=self._firsts_only):
            return False
        if self.block_manager.is_worth_waiting(sequence):
            return False
        # Each running sequence may soon need a block: keep one for each, so that the new
        # sequence is not preempted right after it started.
        num_reserved = len(self._running) + self.block_manager.num_claimed_blocks
        if not self.block_manager.allocate(sequence, num_reserved_blocks=num_reserved):
            return False
        if sequence.scheduled_time is None:
            sequence.scheduled_time = now
            sequence.num_cached_tokens = min(
                sequence.num_computed_tokens, sequence.num_prompt_tokens
            )
        self._waiting.start(sequence)
        self._running[sequence.request_id] = sequence
        self._num_further += sequence.is_further
        sequence.status = SequenceStatus.RUNNING
        return True

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
        """Get a block for the next token, preempting other sequences while none is free.

        Inputs to embed give up their blocks first. False if the sequence itself was preempted.
        """
        while not self.block_manager.extend(sequence):
            if self.reclaim():
                continue
            victim = self._victim(sequence)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _victim(self, sequence: Sequence) -> Sequence:
        """The youngest sequence of the latest priority, `sequence` and younger ones only.

        Decodes are scheduled oldest first, so none of these is scheduled yet.
        """
        victim = next(reversed(self._running.values()))
        for each in reversed(self._running.values()):
            if each.priority > victim.priority:
                victim = each
            if each is sequence:
                break
        return victim

    def _preempt(self, sequence: Sequence) -> None:
        self.block_manager.free(sequence)
        del self._running[sequence.request_id]
        self._num_further -= sequence.is_further
        self._waiting.append_left(sequence)
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
        if sequence.status is SequenceStatus.RUNNING:
            del self._running[sequence.request_id]
            self._num_further -= sequence.is_further
        else:
            self._waiting.remove(sequence)
        return sequence.end(reason, now, error)


def _has_several_tokens(scheduled: ScheduledSequence) -> bool:
    return scheduled.num_tokens > 1


def _num_uncomputed_tokens(sequence: Sequence) -> int:
    return sequence.num_uncomputed_tokens


def _why_no_token(sequence: Sequence) -> EngineError:
    """The error of a sequence for which no token could be sampled."""
    if sequence.matcher is not None:
        sequence.matcher.check()
        if sequence.matcher.error is not None:
            return sequence.matcher.error
    return SequenceFailed("the model gave no finite logits for this sequence")
