"""Which computer a request goes to, and whether the user has allowed that."""

import ipaddress
import logging
import os
from urllib.parse import urlsplit

from cers.annotate.settings import AnnotateConfig
from cers.cot.store import AnnotationStore
from cers.errors import CersError

OPENAI = "https://api.openai.com/v1"
_LOG = logging.getLogger("cers.annotate")


def server_url(config: AnnotateConfig) -> str:
    """The base address of the server: of the settings, of OPENAI_BASE_URL, or OpenAI's.

    Raises:
        CersError: no http or https address, or one with a password in it.
    """
    url = config.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
    if "@" in url:
        raise CersError("base_url must not hold a user or password; put the key into the environment")
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable()
    except ValueError:  # half an IPv6 address, or a port that is none
        sound = False
    if not sound:
        raise CersError(f"base_url '{url}' is no address; expected e.g. http://localhost:8000/v1")
    return url


def host_of(url: str) -> str:
    """The host name in `url`."""
    return urlsplit(url).hostname or ""


def is_this_machine(host: str) -> bool:
    """Whether `host` is localhost or a loopback address; names that a resolver would have to look up are not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def ensure_allowed(config: AnnotateConfig, store: AnnotationStore, allow: str | None = None) -> str:
    """The server's address, once the user has allowed its host for this store; consent is kept there and logged.

    Raises:
        CersError: the host is not this machine and not allowed, or `allow` names another one.
    """
    url = server_url(config)
    host = host_of(url)
    if is_this_machine(host):
        return url
    if allow is not None and allow != host:
        raise CersError(f"--allow-remote names '{allow}', but the server is '{host}'; allow that, or change base_url")
    if allow == host or host in config.allow_remote:
        store.allow(host)
    elif host not in store.allowed():
        raise CersError(
            f"images and reports would leave this machine for '{host}'; to allow that, say --allow-remote {host} once"
        )
    plain = ", UNENCRYPTED (http)" if url.startswith("http:") else ""
    _LOG.warning("images%s are sent to %s%s", "" if config.redact else " and reports, unredacted,", host, plain)
    return url
