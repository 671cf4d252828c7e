"""The chat page and the headers it is sent with: nothing runs in it and nothing styles it but what the file holds."""

import base64
import hashlib
import re
from pathlib import Path

PAGE = Path(__file__).with_name("page.html").read_bytes()
"""One HTML file, which loads nothing; it talks to the routes under `v1/` beside it."""


def _hashes(tag: bytes) -> str:
    """What a policy calls the inline elements of this kind by."""
    contents = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), PAGE, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'" for content in contents)


PAGE_HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; script-src {_hashes(b'script')}; style-src {_hashes(b'style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
"""No inline handler, no `eval`, no request to another host, no frame around it; a string never becomes markup."""
