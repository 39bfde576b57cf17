"""Tasks for other processes, in a module that these can import."""

import os
import signal
from dataclasses import dataclass

from dcl_face_forgery.errors_dcl import InputError


@dataclass(frozen=True)
class Count:
    """Counts to a number."""

    number: int

    def run(self, step):
        for _ in range(self.number):
            step()
        return self.number, os.getpid()


class Refuse:
    """Finds something wrong with its input."""

    def run(self, step):
        raise InputError("the thing is wrong: mend it.")


class Die:
    """Is killed, as the system does where memory is short."""

    def run(self, step):
        os.kill(os.getpid(), signal.SIGKILL)
