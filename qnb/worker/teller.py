"""Tells what calls say while they run: ten times a second, and nothing of calls that are over by then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from qnb.worker.protocol import Report, Said
from qnb.worker.tape import Voice

log = logging.getLogger(__name__)

PERIOD = 0.1
# Characters of output in one report, and voices told in one period: with the period, the most that a lane sends.
LIVE_CHARACTERS = 8192
VOICES = 20
_AWAKE_PERIODS = 20


class Teller:
    """A thread that looks at the voices of a lane while it works; it dozes when there is nothing for two seconds."""

    def __init__(self, voices: Callable[[], Sequence[Voice]], send: Callable[[Report], None]) -> None:
        self.dozing = True
        self._voices = voices
        self._send = send
        self._news = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._turn = 0

    def wake(self) -> None:
        """A call begins."""
        self.dozing = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="qnb-teller", daemon=True)
            self._thread.start()
        self._news.set()

    def close(self) -> None:
        """The lane is gone."""
        self._closed.set()
        self._news.set()

    def _run(self) -> None:
        quiet = 0
        while not self._closed.wait(PERIOD):
            try:
                quiet = 0 if self.tell() else quiet + 1
            except OSError:
                return  # the worker is gone
            except Exception:
                log.exception("what calls say could not be told")
            if quiet > _AWAKE_PERIODS:
                self._news.clear()
                self.dozing = True
                if not self._working():  # looked at after the word, so that a call either sees it or is seen
                    self._news.wait()
                self.dozing = False
                quiet = 0

    def _working(self) -> list[Voice]:
        return [voice for voice in self._voices() if voice.work is not None]

    def tell(self) -> bool:
        """Send what is new; False when nothing runs."""
        voices = self._working()
        self._turn = self._turn + 1 if len(voices) > VOICES else 0
        left, start = VOICES, self._turn * VOICES % max(1, len(voices))
        for voice in voices[start:] + voices[:start]:
            said = hear(voice)
            if said is not None:
                self._send(Report(said[0], 0, 0.0, said=said[1]))
                left -= 1
                if not left:
                    break
        return bool(voices)


def hear(voice: Voice) -> tuple[int, Said] | None:
    """What a call says that has run for a period at least: the serial of its work, and that."""
    serial, index, started = voice.where()
    if voice.seen != (serial, index):
        voice.seen = (serial, index)
        return None
    displays = voice.tape.new_displays()  # before the text, in which they have their places
    offset, text = voice.tape.news(LIVE_CHARACTERS)
    steps = voice.steps
    if steps is not None and (steps is voice.told or steps[:2] != voice.seen):
        steps = None
    if voice.where()[:2] != voice.seen or not (text or steps or displays):
        return None
    voice.told = steps or voice.told
    return serial, Said(index, started, text, offset, steps[2:] if steps else None, displays)


def last_steps(voice: Voice) -> Report | None:
    """The last progress of a call that has just ended, if earlier progress of it was told."""
    steps, told = voice.steps, voice.told
    voice.steps = None
    if steps is None or told is None or steps is told or steps[:2] != told[:2]:
        return None
    said = Said(steps[1], voice.where()[2], steps=steps[2:])
    return Report(steps[0], 0, 0.0, said=said)
