"""Who may change a file: code is loaded only from where no other user could have put it."""

from __future__ import annotations

import os
import stat
from functools import cache
from pathlib import Path


def others_may_change(path: Path) -> str | None:
    """How somebody other than this user and root could change a file or folder, or put another in its place.

    Args:
        path: absolute, without symbolic links.

    Returns:
        One clause that says how; None if nobody can.

    Raises:
        OSError: it does not exist, or cannot be looked at.
    """
    if not hasattr(os, "geteuid"):
        return None  # Windows keeps profile folders apart by other means
    own = (path,) if path.is_dir() else (path, path.parent)
    for place in (path, *path.parents):
        status = place.lstat()
        if stat.S_ISLNK(status.st_mode):
            return f"{place} is a symbolic link"
        if status.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to another user"
        # in a sticky folder such as /tmp nobody can replace what is not theirs, but anybody can add
        shielded = status.st_mode & stat.S_ISVTX and place not in own
        if status.st_mode & stat.S_IWOTH and not shielded:
            return f"anybody may write to {place}"
        if status.st_mode & stat.S_IWGRP and not shielded and not _is_private_group(status.st_gid):
            return f"a group of users may write to {place}"
    return None


@cache
def _is_private_group(gid: int) -> bool:
    """Whether a group has no member but this user, as where every user has a group of the same name."""
    import grp
    import pwd

    if gid == 0:
        return True
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and group.gr_gid == user.pw_gid and set(group.gr_mem) <= {user.pw_name}
