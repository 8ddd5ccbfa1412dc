"""One process at a time in a folder.

Enters: a folder, local or gs://, and what is done there. Leaves: the lock, or one line that says
which process holds it.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket

from etils import epath

from distill_sbs.cli import terminal
from distill_sbs.errors import UserError


class FolderLock:
    """A folder that one process at a time may write to, in a file `.lock` in it.

    The lock is the operating system's (`flock`): it is gone with the process, however that ends, so
    one that was killed blocks nobody, and nothing goes stale. It holds between machines too where
    their file system passes locks on (NFS 4, Lustre mounted with `flock`); when a whole machine
    vanishes, its server lets go of them after its lease, about a minute and a half.

    Where there are no locks (a bucket, some network file systems) the file says who holds it, and
    that is all: a process of this machine that still runs is refused as by a lock; of another
    machine nobody knows whether it still runs, and a warning says so.

    Args:
      folder: local or gs://.
      work: what is done there, such as 'training', for messages.
      silent: take no lock: another process of the same run does.
    """

    def __init__(self, folder: str, work: str, silent: bool = False) -> None:
        self._silent = silent
        self._folder = epath.Path(folder)
        self._path = self._folder / ".lock"
        self._work = work
        self._held: int | None = None
        self._is_marked = False

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self, create: bool = True) -> None:
        """Takes the lock, unless it is held already.

        Args:
          create: whether to make the folder; otherwise nothing happens where it is missing.

        Raises:
          UserError: another process holds it; says which, where, and since when.
        """
        if self._silent or self._held is not None or self._is_marked:
            return
        if not self._folder.exists():
            if not create:
                return
            self._folder.mkdir(parents=True, exist_ok=True)
        if "://" in str(self._folder):
            self._mark()
            return
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder before removes the file: then this is not the one that others see.
                is_same = os.path.samestat(os.fstat(descriptor), os.stat(self._path))
            except BlockingIOError:
                os.close(descriptor)
                raise self._refusal(self._read_owner()) from None
            except FileNotFoundError:
                is_same = False
            except OSError as error:
                os.close(descriptor)
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                self._mark()
                return
            if is_same:
                break
            os.close(descriptor)
        self._held = descriptor
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(_describe_process()).encode())

    def release(self) -> None:
        """Lets go of the folder; does nothing where the lock was not taken."""
        if self._held is None and not self._is_marked:
            return
        with contextlib.suppress(OSError):
            self._path.unlink()
        if self._held is not None:
            os.close(self._held)
        self._held, self._is_marked = None, False

    def find_owner(self) -> str | None:
        """Who holds the lock, in words; None where nobody does, or nobody knows. Takes nothing."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._told(self._read_owner())
        except OSError:  # no locks here
            owner = self._read_owner()
            is_held = owner.get("host") == socket.gethostname() and _is_running(
                owner.get("process")
            )
            return self._told(owner) if is_held else None
        finally:
            os.close(descriptor)
        return None

    def _mark(self) -> None:
        """Notes this process where there are no locks; refuses one that is known to run."""
        owner = self._read_owner()
        if owner.get("host") == socket.gethostname() and _is_running(owner.get("process")):
            raise self._refusal(owner)
        if owner:
            terminal.say(
                f"warning: {self._told(owner)}, and did not say that it ended. This folder knows "
                "no locks: if that process still runs, end it, or both write the same files",
                stderr=True,
            )
        self._path.write_text(json.dumps(_describe_process()))
        self._is_marked = True

    def _read_owner(self) -> dict[str, object]:
        try:
            owner = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _told(self, owner: dict[str, object]) -> str:
        return (
            f"process {owner.get('process', '?')} on {owner.get('host', 'some machine')} began "
            f"{self._work} in {self._folder} at {owner.get('time', 'a time unknown')}"
        )

    def _refusal(self, owner: dict[str, object]) -> UserError:
        return UserError(
            f"{self._folder} is in use: {self._told(owner)}; wait for it, end it, or choose another"
            " folder"
        )


def _describe_process() -> dict[str, object]:
    now = datetime.datetime.now().astimezone()
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "time": now.isoformat(sep=" ", timespec="seconds"),
    }


def _is_running(process: object) -> bool:
    if not isinstance(process, int) or process <= 0 or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
