"""Comparison of this machine's clock with those of its file server and its object store."""

from __future__ import annotations

import os
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from actlas.jobs.doctor.check import Check, ok, warning

MAX_SKEW_S, ANSWER_S = 5.0, 5.0
"""Largest clock difference without a warning, and time limit of a request, in seconds."""

REFUSED_SKEW_S = 900.0
"""Clock difference from which S3 refuses every signature, in seconds."""

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def file_clock(folder: Path) -> Check:
    """Compare the clock with the modification time of a new file."""
    file = folder / "clock"
    file.write_bytes(b"1")
    skew = abs(file.stat().st_mtime - time.time())
    if skew > MAX_SKEW_S:
        found = f"differs by {skew:.0f} s from the file server's"
        return warning("clock", found, "run a time service (chrony, ntpd) on both")
    return ok("clock", "agrees with the file system's")


def server_clock() -> Check:
    """Compare the clock with the date in an S3 server's response, whatever its status.

    The request has no credentials.
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
        return ok("clock", f"not compared: no date from the server ({type(error).__name__})")
    finally:
        connection.close()
    if skew <= MAX_SKEW_S:
        return ok("clock", "agrees with the server's")
    refused = (
        "; from 900 s on the server refuses signatures"
        if skew < REFUSED_SKEW_S
        else "; the server refuses signatures"
    )
    remedy = "run a time service (chrony, ntpd)"
    return warning("clock", f"differs by {skew:,.0f} s from the server's{refused}", remedy)
