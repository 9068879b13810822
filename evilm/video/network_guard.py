"""Connect only to public addresses, with connections that can be closed from another thread.

A name is resolved once, its addresses are checked, and the connection uses one of exactly these addresses, under the
original name.
"""

import contextlib
import ipaddress
import socket

from urllib3.connection import HTTPConnection, HTTPSConnection

from evilm.errors import DecodeError
from evilm.video.reasons import RejectReason

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PROTOCOLS = ipaddress.ip_network("192.0.0.0/24")  # ipaddress calls some of these addresses global
_WIRE_SERVER = ipaddress.ip_address("168.63.129.16")  # a cloud's metadata service at a public address


def is_public(address: str) -> bool:
    """Check if an IP address is on the public internet, including an IPv4 address inside an IPv6 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if wrapped is not None:
            return is_public(str(wrapped))
        if ip.is_site_local or ip.teredo is not None:
            return False
    if ip in _PROTOCOLS:
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and ip != _WIRE_SERVER


class Guard:
    """Opens sockets to checked addresses only, and closes them from another thread."""

    def __init__(self, allow_private: bool, timeout: float) -> None:
        self._allow_private, self._timeout = allow_private, timeout
        self._handle: socket.socket | None = None
        self._ended = False

    def connect(self, host: str, port: int) -> socket.socket:
        """Connect to the first allowed address of `host` that answers."""
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        allowed = [entry for entry in found if self._allow_private or is_public(str(entry[4][0]))]
        if not allowed:
            raise DecodeError(RejectReason.FORBIDDEN_ADDRESS, f"{host} is this machine or in a private network")
        failure: OSError | None = None
        for family, kind, protocol, _, address in allowed:
            opened = socket.socket(family, kind, protocol)
            opened.settimeout(self._timeout)
            self.release()
            self._handle = opened.dup()  # TLS takes over the socket itself
            try:
                if self._ended:
                    raise TimeoutError
                opened.connect(address)
                return opened
            except OSError as error:
                opened.close()
                failure = error
        assert failure is not None
        raise failure

    def hang_up(self) -> None:
        """Close the connection, even if another thread waits on it."""
        self._ended = True
        if self._handle is not None:
            with contextlib.suppress(OSError):  # already closed
                self._handle.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Release our handle of the socket."""
        if self._handle is not None:
            self._handle.close()


class Http(HTTPConnection):
    """An http connection to a checked address."""

    guard: Guard

    def _new_conn(self) -> socket.socket:
        return self.guard.connect(self.host, self.port or 80)


class Https(HTTPSConnection):
    """An https connection to a checked address; the certificate is checked for the name."""

    guard: Guard

    def _new_conn(self) -> socket.socket:
        return self.guard.connect(self.host, self.port or 443)
