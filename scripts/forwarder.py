#!/usr/bin/env python3
"""An intercepting proxy that counts: it stands between larder and the network and writes one JSON line for each answer
that passed through it: method, URL, status, body bytes, and the SHA-256 of the body.

It is not part of larder and shares no code with it, so what it counts is what really came over the network. Its own
authority is made at start with openssl and given to larder as `--upstream-ca`. http/1.1 only; one thread a connection.

    forwarder.py --directory DIR --log FILE        prints the address it listens on
"""

import argparse
import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time

# Longer than any registry takes for an answer; it ends threads whose peer is gone.
PATIENCE = 120


class Closed(Exception):
    """The peer ended the connection between two messages."""


class Wire:
    """Bytes of one direction: a socket with what was read too much."""

    def __init__(self, sock):
        self.sock = sock
        self.rest = b""

    def fill(self):
        data = self.sock.recv(65536)
        if not data:
            raise Closed
        self.rest += data

    def head(self):
        """A message's head, up to and including the empty line."""
        while b"\r\n\r\n" not in self.rest:
            self.fill()
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def some(self, limit):
        if not self.rest:
            self.fill()
        data, self.rest = self.rest[:limit], self.rest[limit:]
        return data

    def line(self):
        while b"\r\n" not in self.rest:
            self.fill()
        line, _, self.rest = self.rest.partition(b"\r\n")
        return line


def fields(head):
    lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines[1:] if ":" in line)
    return lines[0], {name.strip().lower(): value.strip() for name, value in pairs}


def copy_body(source, to, headers, until_close, each):
    """Copies one body as it is framed; `each` sees its content."""
    if "chunked" in headers.get("transfer-encoding", ""):
        while True:
            line = source.line()
            to.sendall(line + b"\r\n")
            size = int(line.split(b";")[0], 16)
            copy_exactly(source, to, size, each)
            to.sendall(source.line() + b"\r\n")
            if size == 0:
                return
    elif "content-length" in headers:
        copy_exactly(source, to, int(headers["content-length"]), each)
    elif until_close:
        try:
            while True:
                data = source.some(65536)
                each(data)
                to.sendall(data)
        except Closed:
            return


def copy_exactly(source, to, size, each):
    while size > 0:
        data = source.some(min(size, 65536))
        size -= len(data)
        each(data)
        to.sendall(data)


class Forwarder:
    def __init__(self, directory, log):
        self.directory = directory
        self.log = open(log, "a", encoding="utf-8", buffering=1)
        self.lock = threading.Lock()
        self.contexts = {}
        self.upstream = ssl.create_default_context()
        self.upstream.set_alpn_protocols(["http/1.1"])
        self.make_authority()

    def path(self, name):
        return os.path.join(self.directory, name)

    def openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    def make_authority(self):
        self.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                     "-subj", "/CN=forwarder", "-keyout", self.path("ca.key"), "-out", self.path("ca.pem"))
        self.openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                     "-subj", "/CN=leaf", "-keyout", self.path("leaf.key"), "-out", self.path("leaf.csr"))

    def context(self, host):
        with self.lock:
            if host not in self.contexts:
                kind = "IP" if host.replace(".", "").isdigit() or ":" in host else "DNS"
                extension, certificate = self.path(f"{len(self.contexts)}.ext"), self.path(f"{len(self.contexts)}.pem")
                with open(extension, "w", encoding="ascii") as out:
                    out.write(f"subjectAltName={kind}:{host}\n")
                self.openssl("x509", "-req", "-in", self.path("leaf.csr"), "-CA", self.path("ca.pem"),
                             "-CAkey", self.path("ca.key"), "-CAcreateserial", "-days", "2",
                             "-extfile", extension, "-out", certificate)
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate, self.path("leaf.key"))
                context.set_alpn_protocols(["http/1.1"])
                self.contexts[host] = context
            return self.contexts[host]

    def serve(self, listener):
        while True:
            client, _ = listener.accept()
            client.settimeout(PATIENCE)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.connection, args=(client,), daemon=True).start()

    def connection(self, client):
        opened = [client]
        try:
            first = Wire(client)
            head = first.head()
            method, authority, _ = fields(head)[0].split(" ")
            if method != "CONNECT":
                self.plain(first, head, opened)
                return
            host, port = authority.rsplit(":", 1)
            host = host.strip("[]")
            raw = socket.create_connection((host, int(port)), timeout=PATIENCE)
            opened.append(raw)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            origin = self.upstream.wrap_socket(raw, server_hostname=host)
            opened.append(origin)
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            inside = self.context(host).wrap_socket(client, server_side=True)
            opened.append(inside)
            asked, answered = Wire(inside), Wire(origin)
            while self.exchange(f"https://{authority}", asked.head(), asked, answered):
                pass
        except (Closed, OSError, ValueError) as error:
            if not isinstance(error, Closed):
                print(f"forwarder: {error!r}", file=sys.stderr)
        finally:
            for one in opened:
                one.close()

    def plain(self, asked, head, opened):
        """Requests in absolute form, as a client sends them for http; each to the server that it names."""
        origins = {}
        while True:
            method, url, rest = head.split(b" ", 2)
            scheme, _, authority_and_path = url.decode("latin-1").partition("://")
            authority, slash, path = authority_and_path.partition("/")
            if scheme != "http" or not slash:
                asked.sock.sendall(b"HTTP/1.1 501 only CONNECT and http\r\nContent-Length: 0\r\n\r\n")
                return
            if authority not in origins:
                host, _, port = authority.rpartition(":") if ":" in authority else (authority, "", "80")
                raw = socket.create_connection((host, int(port)), timeout=PATIENCE)
                opened.append(raw)
                origins[authority] = Wire(raw)
            head = method + b" /" + path.encode("latin-1") + b" " + rest
            if not self.exchange(f"http://{authority}", head, asked, origins[authority]):
                return
            head = asked.head()

    def exchange(self, origin, head, asked, answered):
        """One request and its answer; whether another may follow."""
        line, headers = fields(head)
        method, path, _ = line.split(" ", 2)
        answered.sock.sendall(head)
        copy_body(asked, answered.sock, headers, False, lambda data: None)
        head = answered.head()
        status_line, headers = fields(head)
        status = int(status_line.split(" ")[1])
        asked.sock.sendall(head)
        digest, size = hashlib.sha256(), 0

        def each(data):
            nonlocal size
            digest.update(data)
            size += len(data)

        framed = "content-length" in headers or "transfer-encoding" in headers
        bodiless = method == "HEAD" or status in (204, 304) or status < 200
        try:
            if not bodiless:
                copy_body(answered, asked.sock, headers, True, each)
        finally:
            # What broke off half way is written down too: its bytes came over the network.
            entry = {"time": time.time(), "method": method, "url": origin + path, "status": status,
                     "bytes": size, "sha256": digest.hexdigest()}
            with self.lock:
                self.log.write(json.dumps(entry) + "\n")
        return (framed or bodiless) and headers.get("connection", "").lower() != "close"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", required=True)
    parser.add_argument("--log", required=True)
    arguments = parser.parse_args()
    forwarder = Forwarder(arguments.directory, arguments.log)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print("127.0.0.1:%d" % listener.getsockname()[1], flush=True)
    forwarder.serve(listener)


if __name__ == "__main__":
    main()
