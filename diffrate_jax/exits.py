"""How programs end: one sentence, and an exit status that says what to do next."""

import contextlib
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from diffrate_jax.distributed import is_loss_of_another, leave, on_sigterm
from diffrate_jax.errors import StoppedError, UserError

BAD_INPUT, LOST, INTERRUPTED, CUT_OFF = 2, 69, 130, 141
STDOUT = 1  # The descriptor.
AGAIN = 0.1  # Seconds.


def report_errors(main: Callable[[], None]) -> int:
    """Runs a program to its end, whatever that is.

    Returns:
        Exit status: 0; 2 for bad input; 75 (`StoppedError.STATUS`) after SIGTERM, all
        being saved; 69 where another process of the run was lost; 130 after Ctrl-C;
        141 where the reader of what it prints, `head` say, has had enough.
    """
    try:
        with stopped_by_sigterm():
            main()
            print(end="", flush=True)
    except UserError as error:
        status, sentence = BAD_INPUT, f"error: {error}"
    except (StoppedError, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        status = INTERRUPTED if interrupted else StoppedError.STATUS
        sentence = "stopped; run the same command to go on"
    except Exception as error:
        if unread(error):
            return CUT_OFF
        status, sentence = failure(error)
    else:
        return 0
    # Only now: a progress bar ends its line when the traceback lets go of it.
    print(sentence, file=sys.stderr)
    return leave(status)


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end what runs, by a `StoppedError`.

    Where something has to be saved first, `stop_signal` takes its place. What a signal
    raises while the garbage collector calls back, as it does to jax, or a destructor
    runs, Python reports and drops: then the signal comes again.
    """

    def stop(*_: object) -> NoReturn:
        raise StoppedError

    def dropped(what: Any) -> None:
        if what.exc_type is StoppedError:
            again = threading.Timer(AGAIN, os.kill, (os.getpid(), signal.SIGTERM))
            again.daemon = True
            again.start()
        else:
            before(what)

    before, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        with on_sigterm(stop):
            yield
    finally:
        sys.unraisablehook = before


def unread(error: Exception) -> bool:
    """Returns whether nobody reads what is printed any more; then it is dropped."""
    if not isinstance(error, BrokenPipeError):
        return False
    poll = select.poll()
    poll.register(STDOUT, 0)
    if not poll.poll(0):  # It was another pipe.
        return False
    # Or Python tries once more as it ends, and complains.
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), STDOUT)
    return True


def failure(error: Exception) -> tuple[int, str]:
    """Returns status and text of an error that is nobody's input.

    Alone it goes on as it is; one of many processes has to leave by itself.
    """
    if is_loss_of_another(error):
        what = str(error).split("\n")[0][:200]
        return LOST, (
            f"error: another process of this run has gone ({what}); run the same "
            "command to go on"
        )
    if not jax.distributed.is_initialized():
        raise error
    return 1, "".join(traceback.format_exception(error)).rstrip()
