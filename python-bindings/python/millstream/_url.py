"""`millstream://name@version/key` taken apart."""

from __future__ import annotations

from millstream._errors import UsageError

SCHEME = "millstream://"


def split_path(path: str) -> tuple[str, str | None, str]:
    """Name, version (None: the latest) and key ("": the dataset itself) of a URL or of its part after the scheme."""
    rest = path.removeprefix(SCHEME).strip("/")
    ref, _, key = rest.partition("/")
    name, _, version = ref.partition("@")
    return name, version or None, key


def split_url(url: str) -> tuple[str, str | None, str]:
    """As `split_path`, for one shard; raises `UsageError`."""
    name, version, key = split_path(url)
    if not url.startswith(SCHEME) or not name or not key:
        raise UsageError(f"{url!r} does not name a shard; write millstream://name@version/key")
    return name, version, key
