"""Which sequences run in the next step, and what becomes of their tokens.

Policy only: no tensors, no threads, no clock of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Rows
from itertools import chain

from inference.engine.errors import DeadlineExceeded, DuplicateRequest, EngineError, StepFailed
from inference.engine.interface import Finish, PrefillChunk
from inference.scheduler.async_scheduling import Foresight
from inference.scheduler.batch import Batch, SampledToken, StepOutput
from inference.scheduler.block_manager import BlockManager
from inference.scheduler.sequence import Sequence, SequenceStatus
from inference.scheduler.speculation import Drafter
from mesh.protocol.finish import FinishReason
from mesh.protocol.logprobs import TokenLogprob

MAX_PROMPT_LOGPROBS = 256
"""Rows of logits in a step for log probabilities of prompts: each is as wide as the vocabulary."""


class Scheduler:
    """Continuous batching over two lines, first come first served.

    Running followed by waiting is always in order of arrival: who is preempted goes back to
    the head of the waiting line, and nobody overtakes. The oldest sequence can take every
    block of all others, and admission let nobody in who does not fit alone: it always
    proceeds, so there is no deadlock.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        num_speculative_tokens: int = 0,
    ) -> None:
        """`num_speculative_tokens` are the most guesses at a sequence's next tokens in a step."""
        assert max_num_batched_tokens >= max_num_seqs, "every decode must fit a step"
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.num_preemptions = 0
        self._drafter = Drafter(num_speculative_tokens)
        self.foresight = Foresight(block_manager, self._drafter, max_num_seqs)
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

    def find(self, request_id: str) -> Sequence | None:
        return self._running.get(request_id) or self._waiting.get(request_id)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the waiting line. Raises `DuplicateRequest`."""
        if self.find(sequence.request_id) is not None:
            raise DuplicateRequest(f"request id {sequence.request_id!r} is already in use")
        self._waiting[sequence.request_id] = sequence

    def schedule(self, now: float) -> Batch:
        """Choose the next step's sequences: decodes, then prefills, then the waiting line.

        What is left of the token budget goes to drafts.
        """
        batch: OrderedDict[str, Sequence] = OrderedDict()
        num_preemptions = self.num_preemptions
        self._schedule_decodes(batch)
        budget = self.max_num_batched_tokens - len(batch)
        budget = self._schedule_prefills(batch, budget)
        if self.num_preemptions == num_preemptions:  # else the new one would be the next victim
            budget = self._schedule_waiting(batch, budget, now)
        self._schedule_drafts(batch, budget)
        for sequence in batch.values():
            sequence.num_steps += 1
            sequence.num_batched_sequences += len(batch)
        # A stable sort: the runner has a faster way for sequences of one token.
        return Batch(sorted(batch.values(), key=lambda s: s.num_scheduled_tokens > 1), now)

    def schedule_behind(self, batch: Batch) -> Batch | None:
        """The step behind one that is still being computed; None where that must end first.

        Changes no sequence, but for a block more: `foresight.take_over` schedules them.
        """
        return self.foresight.behind(batch, self.num_running, self.num_waiting)

    def finish(
        self, batch: Batch, sampled: list[list[SampledToken]], now: float
    ) -> list[StepOutput]:
        """Book a step that ran; `sampled` is for each of `batch.sampling` what `accept` left."""
        outputs: list[StepOutput] = []
        tokens_of = iter(sampled)
        for sequence in batch.sequences:
            num_tokens = sequence.num_scheduled_tokens - len(sequence.draft_token_ids)
            if num_tokens > 1 or sequence.first_token_time is None:
                chunk = PrefillChunk(batch.start, now, num_tokens, len(batch.sequences))
                sequence.prefill.append(chunk)
            if not sequence.samples_this_step:
                sequence.num_computed_tokens += sequence.num_scheduled_tokens
                sequence.num_scheduled_tokens = 0
                self.block_manager.commit(sequence)
                continue
            tokens = next(tokens_of)
            if tokens:
                outputs.append(self._take(sequence, tokens, now))
            else:
                outputs += self.fail([sequence], _why_nothing(sequence), now)
        return outputs

    def _take(self, sequence: Sequence, tokens: list[SampledToken], now: float) -> StepOutput:
        """Append what a step sampled for a sequence, up to the token that ends it."""
        num_drafted = len(sequence.draft_token_ids)
        sequence.draft_token_ids = ()
        sequence.num_scheduled_tokens = 0
        if num_drafted:
            self._drafter.learn(sequence, num_drafted, len(tokens) - 1)
        prompt_logprobs: Rows[TokenLogprob] = ()
        if sequence.first_token_time is None and sequence.prompt_logprobs is not None:
            prompt_logprobs = sequence.prompt_logprobs
        token_ids: list[int] = []
        reason: FinishReason | None = None
        for token in tokens:
            token_ids.append(token.token_id)
            reason = sequence.append(token.token_id, now)
            if reason is not None:
                break
        # The keys of all but the last are stored: drafts that stand were computed as such.
        sequence.num_computed_tokens = sequence.num_tokens - 1
        self.block_manager.commit(sequence)
        logprobs = [t.logprobs for t in tokens[: len(token_ids)] if t.logprobs is not None]
        finish = None if reason is None else self._end(sequence, reason, now)
        return StepOutput(sequence.request_id, token_ids, logprobs, finish, prompt_logprobs, now)

    def abort(
        self, request_id: str, now: float, error: EngineError | None = None
    ) -> StepOutput | None:
        """End a sequence between two steps, its blocks free at once; None if there is none."""
        sequence = self.find(request_id)
        if sequence is None:
            return None
        finish = self._end(sequence, FinishReason.ABORT, now, error)
        return StepOutput(request_id, [], [], finish)

    def drop_expired(self, now: float) -> list[StepOutput]:
        """End every sequence whose deadline has passed, before a step is spent on it."""
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
        """End sequences whose step broke; nothing they computed is reused."""
        outputs: list[StepOutput] = []
        for sequence in sequences:
            finish = self._end(sequence, FinishReason.ERROR, now, error)
            outputs.append(StepOutput(sequence.request_id, [], [], finish))
        return outputs

    def check_integrity(self) -> None:
        """Raise `IntegrityError` unless blocks and live sequences match."""
        self.block_manager.check_integrity(self.sequences)

    def _schedule_decodes(self, batch: OrderedDict[str, Sequence]) -> None:
        for sequence in list(self._running.values()):
            if sequence.status is not SequenceStatus.RUNNING:
                continue  # preempted for an older one of this very loop
            if sequence.num_uncomputed_tokens == 1 and self._make_room(sequence):
                sequence.num_scheduled_tokens = 1
                batch[sequence.request_id] = sequence

    def _schedule_prefills(self, batch: OrderedDict[str, Sequence], budget: int) -> int:
        for sequence in self._running.values():
            if budget == 0:
                break
            if sequence.num_scheduled_tokens == 0:
                budget -= self._schedule_chunk(sequence, batch, budget)
        return budget

    def _schedule_waiting(self, batch: OrderedDict[str, Sequence], budget: int, now: float) -> int:
        while self._waiting and budget > 0 and len(self._running) < self.max_num_seqs:
            sequence = next(iter(self._waiting.values()))
            if self.block_manager.is_worth_waiting(sequence):
                break  # nobody overtakes: what computes its blocks takes the budget anyway
            # Each running sequence may soon need a block: leave it one, rather than let the
            # new one in and preempt it again.
            num_reserved = len(self._running)
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
            budget -= self._schedule_chunk(sequence, batch, budget)
        return budget

    def _schedule_drafts(self, batch: OrderedDict[str, Sequence], budget: int) -> None:
        """Let sequences guess, oldest first, where that takes nothing from anyone."""
        if not self._drafter.num_tokens:
            return
        for sequence in batch.values():
            if budget <= 0:
                break
            if sequence.num_uncomputed_tokens != 1:
                continue
            drafts = self._drafter.draft(sequence, budget)
            if drafts:
                room = self.block_manager.room_for_drafts(
                    sequence, len(drafts), num_reserved_blocks=len(self._running)
                )
                sequence.draft_token_ids = drafts[:room]
                sequence.num_scheduled_tokens += len(sequence.draft_token_ids)
                budget -= len(sequence.draft_token_ids)

    def _schedule_chunk(
        self, sequence: Sequence, batch: OrderedDict[str, Sequence], budget: int
    ) -> int:
        most = budget
        if sequence.awaits_prompt_logprobs:
            others = (s.num_scheduled_tokens for s in batch.values() if s.awaits_prompt_logprobs)
            most = min(budget, MAX_PROMPT_LOGPROBS - sum(others))
            if most <= 0:
                return 0
        sequence.num_scheduled_tokens = min(sequence.num_uncomputed_tokens, most)
        batch[sequence.request_id] = sequence
        return sequence.num_scheduled_tokens

    def _make_room(self, sequence: Sequence) -> bool:
        """Find a block for the next token, at the cost of the youngest; False if that is it."""
        while not self.block_manager.extend(sequence):
            victim = next(reversed(self._running.values()))
            # Decodes are scheduled oldest first: the youngest cannot be in the batch yet.
            assert victim.num_scheduled_tokens == 0, f"{victim!r} is scheduled already"
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
        sequence.num_scheduled_tokens = 0
        sequence.draft_token_ids = ()
        self.block_manager.free(sequence, forget=reason is FinishReason.ERROR)
        line = self._running if sequence.status is SequenceStatus.RUNNING else self._waiting
        del line[sequence.request_id]
        return sequence.end(reason, now, error)


def _why_nothing(sequence: Sequence) -> EngineError:
    """Why no token could be sampled."""
    if sequence.matcher is not None and sequence.matcher.error is not None:
        return sequence.matcher.error
    return StepFailed("the model gave no finite logits for this sequence")
