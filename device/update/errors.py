"""Why an update does not come about, in kinds that the screen has sentences for."""

from __future__ import annotations

from reader.errors import SonoglanceError

REFUSED, FAILED, WAITING = "refused", "failed", "waiting"
"""What became of it: it must not be, it could not be done, or it may be tried again as it is."""

NO_KEYS, UNSIGNED, WRONG_KEY, DAMAGED, OLDER = "no-keys", "unsigned", "wrong-key", "damaged", "older"
OTHER_MACHINE, NOT_A_FILE, TOO_LARGE, SET_BY_HAND = "other-machine", "not-a-file", "too-large", "set-by-hand"
NO_ROOM, PULLED, SELF_TEST, BUSY, INTERNAL = "no-room", "pulled", "self-test", "busy", "internal"
PUT_BACK = "put-back"


class UpdateError(SonoglanceError, ValueError):
    """An update does not come about; the box is as it was. ``code``: of the kinds above."""

    def __init__(self, reason: str, code: str = DAMAGED, what: str = REFUSED) -> None:
        super().__init__(reason)
        self.code, self.what = code, what
