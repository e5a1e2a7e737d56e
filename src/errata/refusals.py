"""What the system refuses, in errata's words: files, memory, devices; no bug of errata."""

from __future__ import annotations

import errno

from errata.errors import ErrataError
from errata.untrusted import shortened

_TOLD = {
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOSPC: "Make room, or choose another disk.",
    errno.EDQUOT: "Make room, or choose another disk.",
    errno.EFBIG: "The limit on the size of files is reached (ulimit -f).",
    errno.EACCES: "Choose a place you may use.",
    errno.EPERM: "Choose a place you may use.",
    errno.EROFS: "Choose a place you may write to.",
    errno.ELOOP: "The links there lead in a circle.",
    errno.EMFILE: "The limit on open files is reached (ulimit -n).",
    errno.ENFILE: "The limit on open files is reached.",
}
_NO_MEMORY = ("can't allocate memory", "out of memory", "cannot allocate memory", "std::bad_alloc")


def refusal(error: BaseException) -> ErrataError | None:
    """Return what is said of an error of the system; None if it is another one.

    Only an OSError over a file that it names is one: any other may well be a bug.
    """
    if isinstance(error, MemoryError) or _memory_ran_out(error):
        return ErrataError(
            "memory ran out",
            "Take fewer edits or cases at once (--batch, --limit), a smaller --dtype, or a machine "
            "with more memory.",
        )
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return ErrataError("a path begins with ~ and a user who is not known here")
    if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
        return None
    if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    name = "a file" if error.filename is None else shortened(str(error.filename))
    return ErrataError(f"cannot use {name}: {error.strerror or error}", _TOLD.get(error.errno or 0))


def _memory_ran_out(error: BaseException) -> bool:
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in _NO_MEMORY
    )
