"""Whether somebody answers: what both comparisons ask of pods and routers before they begin."""

import urllib.error
import urllib.request


def answers(url, body=None):
    """Whether `url` says 200 within five seconds; with a `body`, to a POST of that JSON."""
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
