"""Decides before any work whether a request is taken. Nothing waits here."""

from __future__ import annotations

from mesh.errors import ErrorKind, MeshError
from mesh.process.backlog import Backlog, Work
from orchestrator.admission.fair_share import FairShare


class Permit:
    """A request's place, and its tokens once they are known, held to the end of the block."""

    def __init__(self, admission: Admission, key: str, work: Work) -> None:
        """Only for `Admission.permit`, which has taken the place."""
        self._admission = admission
        self._key = key
        self._work = work
        self._num_tokens = 0

    def __enter__(self) -> Permit:
        self._work.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._num_tokens:
            self._admission.tokens.give(self._key, self._num_tokens)
        self._work.__exit__()
        self._admission.requests.give(self._key)

    def reserve(self, num_tokens: int) -> None:
        """Takes tokens, of prompt and completion. Raises MeshError (OVERLOADED) if there are none.

        Not known before the prompt is encoded; called once.
        """
        self._admission.take_tokens(self._key, num_tokens)
        self._num_tokens = num_tokens
        self._work.expect(num_tokens)

    def progress(self, num_tokens: int) -> None:
        """So many of them have been worked on."""
        self._work.done(num_tokens)


class Admission:
    """At most so many requests and tokens at a time, fairly shared by key. For one event loop."""

    def __init__(self, max_requests: int, max_tokens: int = 0) -> None:
        """`max_tokens` of prompts and completions together; 0: no limit."""
        self.requests = FairShare(max_requests)
        self.tokens = FairShare(max_tokens)
        self.backlog = Backlog()

    @property
    def limit(self) -> int:
        """Most requests at a time."""
        return self.requests.limit

    @property
    def num_admitted(self) -> int:
        """Requests that hold a permit now."""
        return self.requests.num_held

    def permit(self, key: str = "") -> Permit:
        """Takes a place for `key`; enter what is given, to give it back in the end.

        Raises MeshError (OVERLOADED).
        """
        if not self.requests.take(key):
            raise self._refusal(key, self.requests, "requests")
        return Permit(self, key, self.backlog.work())

    def take_tokens(self, key: str, num_tokens: int) -> None:
        """For `Permit.reserve`. Raises MeshError (OVERLOADED)."""
        if not self.tokens.take(key, num_tokens):
            raise self._refusal(key, self.tokens, "tokens")

    def _refusal(self, key: str, share: FairShare, what: str) -> MeshError:
        message = f"{share.num_held} {what} are being worked on, the limit is {share.limit}"
        if key and share.num_held < share.limit:
            message = (
                f"this key has {share.held_by(key)} {what} being worked on, which is its fair "
                f"share; {share.num_held} are in all, the limit is {share.limit}"
            )
        return MeshError(ErrorKind.OVERLOADED, message, retry_after=self.backlog.retry_after())
