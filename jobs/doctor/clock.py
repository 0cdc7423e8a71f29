"""The clock of this machine against those that it works with: a file server's, a bucket's."""

from __future__ import annotations

import os
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from actlas.jobs.doctor.check import Check, ok, warning

MAX_SKEW_S, ANSWER_S = 5.0, 5.0

REFUSED_SKEW_S = 900.0
"""From here on S3 refuses every signature."""

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def file_clock(folder: Path) -> Check:
    """Compare the time of a file that is written now."""
    file = folder / "clock"
    file.write_bytes(b"1")
    skew = abs(file.stat().st_mtime - time.time())
    if skew > MAX_SKEW_S:
        found = f"{skew:.0f} s away from the file server's"
        return warning("clock", found, "run a time service (chrony, ntpd) on both")
    return ok("clock", "agrees with the file system's")


def server_clock() -> Check:
    """Compare the date that an S3 server puts on its answers, whatever it answers.

    The request carries no credentials.
    """
    endpoint = next((found for name in ENDPOINTS if (found := os.environ.get(name))), "")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    place = urlsplit(endpoint or f"https://s3.{region}.amazonaws.com")
    kind = HTTPConnection if place.scheme == "http" else HTTPSConnection
    connection = kind(place.hostname or "", place.port, timeout=ANSWER_S)
    try:
        connection.request("HEAD", "/")
        date = parsedate_to_datetime(connection.getresponse().headers["Date"] or "").timestamp()
        skew = abs(time.time() - date)
    except (OSError, HTTPException, ValueError) as error:
        return ok("clock", f"not compared: the server gave no date ({type(error).__name__})")
    finally:
        connection.close()
    if skew <= MAX_SKEW_S:
        return ok("clock", "agrees with the server's")
    refused = (
        "; from 900 s on its signatures are refused"
        if skew < REFUSED_SKEW_S
        else ("; the server refuses signatures for that")
    )
    remedy = "run a time service (chrony, ntpd)"
    return warning("clock", f"{skew:,.0f} s away from the server's{refused}", remedy)
