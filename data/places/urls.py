"""Files behind URLs, through fsspec: which there are, what their servers say of them, who may read them.

Credentials come from the environment alone, in the way of each library (AWS_…, HF_TOKEN, ~/.netrc): never
from a config, which is copied into run folders and repositories.
"""

from __future__ import annotations

import base64
import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from base.errors import UmbelError
from base.secrets import holds_secret
from data.files import FoundFile, Kind
from data.places import retry
from data.places.listing import is_hidden
from data.places.retry import persist

Info = dict[str, Any]

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
SIGNED = re.compile(
    r"token|signature|secret|password|credential|accesskey|apikey|jwt|(^|[-_])(sig|key|auth)($|[-_])",
    re.IGNORECASE,
)
"""Names of query parameters that carry a credential."""
STAMPS = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "updated", "created")
S3 = ("s3://", "s3a://")
MD5 = re.compile(r"[0-9a-f]{32}")


def is_url(path: str) -> bool:
    return "://" in path


def check_no_secret(url: str, where: str) -> None:
    """Refuse a URL that carries a password, a token or a signature; the error does not repeat it."""
    parts = urlsplit(url)
    signed = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True) if SIGNED.search(name)]
    if parts.password is not None or signed or holds_secret(url):
        raise UmbelError(
            "the URL carries a secret, and configs are copied and shared",
            where=where.partition("=")[0],
            fix="give credentials through the environment of each machine",
        )


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        UmbelError: a protocol that is unknown, or whose package is not installed.
    """
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    if "::" in url:
        # A config may come from another institution, and chains reach all that fsspec can do.
        raise UmbelError("chained URLs (::) are not read", where=url, fix="name the files themselves")
    try:
        system, path = url_to_fs(url, use_listings_cache=False, **_timeouts(protocol))
    except ImportError as error:
        package = PACKAGES.get(protocol) or error.name or protocol
        what = f"{protocol}:// needs a package that is not installed"
        raise UmbelError(what, where=url, fix=f"pip install {package}") from error
    except ValueError as error:
        what = str(error).partition("\n")[0]
        raise UmbelError(what, where=url, fix="use s3, gs, hf or https") from error
    if url.startswith(S3):
        system.retries = 1  # `persist` tries again, with longer waits
    return system, path


def _timeouts(protocol: str) -> dict[str, Any]:
    """A stalled connection fails, in each library's words; a slow one may take its time."""
    if protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=retry.STALL_SECONDS, sock_read=retry.STALL_SECONDS
        )
        # The bytes as they lie on the server: a file may be packed by its own ending.
        raw = {"auto_decompress": False, "trust_env": True, "timeout": timeout}
        return {"client_kwargs": raw, "headers": {"Accept-Encoding": "identity"}}
    if protocol in ("s3", "s3a"):
        waits = {"connect_timeout": retry.STALL_SECONDS, "read_timeout": retry.STALL_SECONDS}
        return {"config_kwargs": waits | {"retries": {"total_max_attempts": 1}}}
    return {}


def state_of_url(url: str) -> Info:
    """Size, ETag and the like of one remote file, asked of its server now."""
    system, path = open_filesystem(url)

    def ask() -> Info:
        system.invalidate_cache()
        return dict(system.info(path))

    return persist(ask, url)


def list_url(url: str, where: str) -> dict[str, tuple[str, Info]]:
    """The files of a remote file, folder or glob: name relative to it -> (URL, what the server says).

    Raises:
        UmbelError: nothing is there, or the protocol cannot list.
    """
    system, path = open_filesystem(url)
    if is_http(url):
        if re.search(r"[*\[]", url):
            raise UmbelError("a web server cannot list files", where=where, fix="name one file")
        return {name_of(url): (url, state_of_url(url))}
    found = persist(lambda: _listing(system, path), url)
    root = url_root(url).split("://", 1)[1].strip("/") + "/"
    named = {}
    for place, info in found.items():
        location = str(system.unstrip_protocol(place))
        inner = location.split("://", 1)[1].lstrip("/")
        named[inner.removeprefix(root) if inner.startswith(root) else name_of(location)] = (location, info)
    visible = {name: named[name] for name in sorted(named) if not is_hidden(name)}
    if url.startswith(S3) and visible and _is_encrypted(system, next(iter(visible.values()))[0]):
        visible = {name: (place, info | {"encrypted": True}) for name, (place, info) in visible.items()}
    if not visible:
        raise UmbelError("no files there", where=where, fix="check the address or the pattern")
    return visible


def _listing(system: Any, path: str) -> dict[str, Info]:
    system.invalidate_cache()
    if has_magic(path):
        found = system.glob(path, detail=True)
    elif (info := system.info(path))["type"] == "file":
        return {path: info}
    else:
        found = system.find(path, detail=True)
    # Some stores mark a folder by an empty object of its name.
    return {
        place: info for place, info in found.items() if info["type"] == "file" and not place.endswith("/")
    }


def _is_encrypted(system: Any, url: str) -> bool:
    """Whether an object is encrypted with a key of its owner's: then its ETag is not the md5 of its bytes."""
    bucket, key, _ = system.split_path(url)
    head = persist(lambda: system.call_s3("head_object", Bucket=bucket, Key=key), url)
    return "SSECustomerAlgorithm" in head or str(head.get("ServerSideEncryption")).startswith("aws:kms")


def has_magic(path: str) -> bool:
    return bool(re.search(r"[*?\[]", path))


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def url_root(url: str) -> str:
    """What stands before a pattern; otherwise the URL itself, taken for a folder."""
    if is_http(url) or not has_magic(url):
        return url.rstrip("/")
    protocol, _, path = url.partition("://")
    parts = path.split("/")
    literal = next(number for number, part in enumerate(parts) if has_magic(part))
    return f"{protocol}://" + "/".join(parts[:literal])


def url_of(url: str, name: str) -> str:
    """Where the file of that name lies among those that ``url`` stands for; nothing is listed."""
    return url if name_of(url) == name else f"{url_root(url)}/{name}"


def name_of(url: str) -> str:
    """The last part of a URL's path."""
    path = urlsplit(url).path if is_http(url) else url
    return PurePosixPath(path).name or "file"


def found_file(name: str, url: str, kind: Kind, info: Info) -> FoundFile:
    """A listed file with its stamp and the hash that its server vouches for.

    Raises:
        UmbelError: a server that does not say how long the file is.
    """
    if info.get("size") is None:
        raise UmbelError("the server does not say how long the file is", where=url, fix="download it first")
    stamp = next((str(info[key]).strip('"') for key in STAMPS if info.get(key)), "")
    return FoundFile(name, url, kind, int(info["size"]), stamp, vouched(url, info), etag_of(info))


def vouched(url: str, info: Info) -> str | None:
    """The hash of a file's bytes that its server states: S3's ETag of an upload in one part, Google's md5,
    the hub's LFS or git hash."""
    protocol = url.partition("://")[0]
    if protocol == "hf":
        lfs = info.get("lfs")
        return f"sha256:{lfs['sha256']}" if lfs else f"git:{info['blob_id']}"
    if protocol in ("gs", "gcs") and info.get("md5Hash"):
        return f"md5:{base64.b64decode(info['md5Hash']).hex()}"
    etag = str(info.get("ETag", "")).strip('"')
    is_md5 = url.startswith(S3) and MD5.fullmatch(etag) and not info.get("encrypted")
    return f"md5:{etag}" if is_md5 else None


def etag_of(info: Info) -> str | None:
    """A strong ETag, which changes with the bytes; a weak one (W/…) need not."""
    etag = str(info.get("ETag") or info.get("etag") or "")
    return None if not etag or etag.startswith("W/") else etag.strip('"')
