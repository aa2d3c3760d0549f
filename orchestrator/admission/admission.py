"""Admission control: accepts or refuses a request before any work. No request waits here."""

from __future__ import annotations

from mesh.errors import ErrorKind, MeshError
from mesh.process.backlog import Backlog, Work
from orchestrator.admission.fair_share import FairShare


class Permit:
    """One request's share of the limits, held until the end of the block."""

    def __init__(self, admission: Admission, key: str, work: Work) -> None:
        """Use `Admission.permit`."""
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
        """Reserves the tokens of prompt and completion. Raises MeshError (OVERLOADED).

        Called once, after the prompt has been encoded.
        """
        self._admission.take_tokens(self._key, num_tokens)
        self._num_tokens = num_tokens
        self._work.expect(num_tokens)

    def progress(self, num_tokens: int) -> None:
        """Records that `num_tokens` of the reserved tokens are done."""
        self._work.done(num_tokens)


class Admission:
    """Limits concurrent requests and tokens, shared fairly between keys. For one event loop."""

    def __init__(self, max_requests: int, max_tokens: int = 0) -> None:
        """`max_tokens` counts prompts and completions; 0: no limit."""
        self.requests = FairShare(max_requests)
        self.tokens = FairShare(max_tokens)
        self.backlog = Backlog()

    @property
    def limit(self) -> int:
        """Maximum number of concurrent requests."""
        return self.requests.limit

    @property
    def num_admitted(self) -> int:
        """Requests that hold a permit."""
        return self.requests.num_held

    def permit(self, key: str = "") -> Permit:
        """A permit for one request of `key`; enter it, so that it is released.

        Raises MeshError (OVERLOADED).
        """
        if not self.requests.take(key):
            raise self._refusal(key, self.requests, "requests")
        return Permit(self, key, self.backlog.work())

    def take_tokens(self, key: str, num_tokens: int) -> None:
        """Used by `Permit.reserve`. Raises MeshError (OVERLOADED)."""
        if not self.tokens.take(key, num_tokens):
            raise self._refusal(key, self.tokens, "tokens")

    def _refusal(self, key: str, share: FairShare, what: str) -> MeshError:
        message = f"{share.num_held} {what} are in progress, the limit is {share.limit}"
        if key and share.num_held < share.limit:
            message = (
                f"this key has {share.held_by(key)} {what} in progress, which is its fair share; "
                f"all keys have {share.num_held}, the limit is {share.limit}"
            )
        return MeshError(ErrorKind.OVERLOADED, message, retry_after=self.backlog.retry_after())
