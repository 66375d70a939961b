"""Runs in a child process, which may be killed or starved without harm to the tests."""

import os
import resource
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from lookupffn.errors import UserError

USER_ERROR = 2


def in_fork(function: Callable[[], object], log: Path | None = None) -> int:
    """Runs a function in a child.

    Args:
        function: what to run.
        log: where the message of a ``UserError`` goes.

    Returns:
        The child's status: 0, 2 after a ``UserError``, minus the signal that killed it, 1 after anything else.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)  # a fork does not have its parent's threads
            function()
            status = 0
        except UserError as error:
            if log is not None:
                log.write_text(str(error))
            status = USER_ERROR
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def limited(limit: int, value: int, function: Callable) -> Callable:
    """A function that puts its process under a resource limit first."""

    def run(*args: object, **kwargs: object) -> object:
        resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
        return function(*args, **kwargs)

    return run
