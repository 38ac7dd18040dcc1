"""Cutting long audio into pieces that a service takes, with ffmpeg where it is installed."""

import itertools
import logging
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, BinaryIO

from conserver import LinkError, media

log = logging.getLogger(__name__)

MAX_UPLOAD_BYTES = 25 * 1024 * 1024
_FFMPEG_SECS = 900.0

# The audio comes from strangers. Playlists, concatenations and the like would make ffmpeg open what they name.
_FORMATS = "wav,w64,aiff,au,mp3,aac,flac,ogg,amr,mov,matroska,caf,asf,ac3"


@dataclass(frozen=True)
class Cutting:
    """How long a piece may be, and what counts as a silence to cut in."""

    longest_secs: float
    at_silences: bool
    noise_dbfs: float
    silence_secs: float


@dataclass(frozen=True)
class Piece:
    """A part of the audio, or all of it; the file is closed when the next piece is asked for."""

    file: BinaryIO
    filename: str
    mediatype: str


def pieces(audio: media.Audio, cutting: Cutting) -> Iterator[Piece]:
    """Yield the audio in pieces: as it is when it is short, or when there is no ffmpeg to cut it.

    Pieces that are cut are mono MP3 with 16 kHz and 128 kbit/s.
    """
    whole = Piece(audio.file, audio.filename, audio.mediatype)
    large = audio.size > MAX_UPLOAD_BYTES
    if audio.duration is not None and audio.duration <= cutting.longest_secs and not large:
        yield whole
        return
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        if large or audio.duration is not None:
            _miss_ffmpeg()
        yield whole
        return
    try:
        duration, silences = _listen(ffmpeg, audio, cutting)
    except LinkError:
        if large or audio.duration is not None:
            raise
        yield whole  # nothing says that it is long, and the service may know what ffmpeg does not
        return
    if duration <= cutting.longest_secs and not large:
        yield whole
        return
    points = [0.0, *cuts(duration, silences if cutting.at_silences else [], cutting.longest_secs), duration]
    for start, end in itertools.pairwise(points):
        with closing(_cut(ffmpeg, audio, start, end)) as file:
            yield Piece(file, f"{audio.filename.rpartition('.')[0] or 'audio'}.mp3", "audio/mpeg")


def cuts(duration: float, silences: list[tuple[float, float]], longest_secs: float) -> list[float]:
    """Return where to cut: for each multiple of the longest piece the middle of the nearest silence.

    One that is further away than a quarter of a piece does not count; then the cut is at the multiple itself.
    """
    middles = [(start + end) / 2 for start, end in silences]
    found = []
    target = longest_secs
    while target < duration - 0.5:  # a rest that is shorter than that is no piece of its own
        near = [middle for middle in middles if abs(middle - target) <= longest_secs / 4 and middle < duration]
        found.append(min(near, key=lambda middle: abs(middle - target), default=target))
        target += longest_secs
    return found


def _listen(ffmpeg: str, audio: media.Audio, cutting: Cutting) -> tuple[float, list[tuple[float, float]]]:
    """Play all of it, and return how long it is and where it is silent."""
    detect = f"silencedetect=noise={cutting.noise_dbfs:g}dB:d={cutting.silence_secs:g}"
    done = _run(ffmpeg, audio, ["-af", detect, "-progress", "pipe:1", "-f", "null", "-"], stdout=subprocess.PIPE)
    times = re.findall(r"^out_time_us=(\d+)", done.stdout.decode("ascii", "replace"), re.MULTILINE)
    if not times:
        raise LinkError("ffmpeg hears nothing in the audio of the dialog")
    duration = int(times[-1]) / 1_000_000
    said = done.stderr.decode("utf-8", "replace")
    starts = [max(0.0, float(at)) for at in re.findall(r"silence_start: (-?[\d.]+)", said)]
    ends = [float(at) for at in re.findall(r"silence_end: ([\d.]+)", said)]
    # A silence that lasts to the end of the audio may have no end.
    return duration, list(zip(starts, [*ends, *[duration] * (len(starts) - len(ends))], strict=False))


def _cut(ffmpeg: str, audio: media.Audio, start: float, end: float) -> BinaryIO:
    file: Any = tempfile.TemporaryFile(prefix="conserver-")  # noqa: SIM115 - it is the caller's, who closes it
    try:
        wanted = ["-ac", "1", "-ar", "16000", "-b:a", "128k", "-f", "mp3", "pipe:1"]
        times = ["-ss", f"{start:.3f}", "-t", f"{end - start:.3f}"]
        _run(ffmpeg, audio, wanted, before=times, stdout=file)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def _run(
    ffmpeg: str, audio: media.Audio, wanted: list[str], *, before: list[str] | None = None, stdout: Any
) -> subprocess.CompletedProcess[bytes]:
    audio.file.seek(0)
    limited = ["-protocol_whitelist", "file,pipe", "-format_whitelist", _FORMATS]
    command = [ffmpeg, "-hide_banner", "-nostdin", "-nostats", *limited, *(before or []), "-i", audio.path, "-vn"]
    try:
        done = subprocess.run(  # noqa: S603 - the program of the PATH, and no word of the vCon's
            [*command, *wanted],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            pass_fds=[audio.file.fileno()],
            timeout=_FFMPEG_SECS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LinkError(f"ffmpeg has worked on the audio of the dialog for {_FFMPEG_SECS:.0f} s, too long") from None
    except OSError as error:
        raise LinkError(f"ffmpeg cannot be started: {error.strerror}") from error
    finally:
        audio.file.seek(0)
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise LinkError(f"ffmpeg cannot read the audio of the dialog: {last[:200]}")
    return done


_missed = threading.Event()


def _miss_ffmpeg() -> None:
    if not _missed.is_set():
        _missed.set()
        log.warning("ffmpeg is not on PATH, so long audio is sent whole, which services may refuse")
