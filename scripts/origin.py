#!/usr/bin/env python3
"""An https origin on 127.0.0.2 that counts: it serves a directory as it lies there, with ranges and validators, and writes one JSON
line for each answer: method, URL, range, status, body bytes, and the SHA-256 of the body.

Its authority is made at start with openssl. What its answers hold can be changed while it runs: every path in the file
DIRECTORY/.tampered, one a line, is given with one byte in its middle flipped, and with a validator of its own.

    origin.py --directory DIR --authority DIR --log FILE [--port PORT]        prints the address it listens on

Started again with the same authority, it is the same origin.
"""

import argparse
import hashlib
import json
import os
import re
import ssl
import subprocess
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 128 * 1024
KINDS = {".html": "text/html", ".json": "application/json", "": "text/html"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_body):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        name = os.path.normpath(self.server.directory + path)
        if os.path.isdir(name):
            name = os.path.join(name, "index.html" if os.path.exists(os.path.join(name, "index.html")) else "index.json")
        if not name.startswith(self.server.directory) or not os.path.isfile(name):
            self.give(404, b"there is no such file\n", [], with_body)
            return
        with open(name, "rb") as file:
            body = file.read()
        if path in self.server.tampered():
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1:]
        etag = '"%s"' % hashlib.sha256(body).hexdigest()[:16]
        kind = KINDS.get(os.path.splitext(name)[1], "application/octet-stream")
        fields = [("ETag", etag), ("Accept-Ranges", "bytes"), ("Content-Type", kind)]
        if etag in self.headers.get("If-None-Match", ""):
            self.give(304, b"", fields, False)
            return
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.headers.get("If-Range", etag) == etag and any(wanted.groups()):
            first, last = wanted.groups()
            start = int(first) if first else max(0, len(body) - int(last))
            end = min(int(last) + 1, len(body)) if first and last else len(body)
            if start < end:
                fields.append(("Content-Range", f"bytes {start}-{end - 1}/{len(body)}"))
                self.give(206, body[start:end], fields, with_body)
                return
        self.give(200, body, fields, with_body)

    def give(self, status, body, fields, with_body):
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent, rest = b"", body if with_body else b""
        try:
            # What a client gives up in the middle was not given whole; slowly enough that little of it is under way then. The
            # piece in which it left counts: of that it may have had nearly all.
            while rest:
                piece, rest = rest[:PIECE], rest[PIECE:]
                sent += piece
                self.wfile.write(piece)
                if rest:
                    time.sleep(0.002)
        finally:
            self.server.note({"method": self.command, "url": f"https://{self.headers.get('Host', '')}{self.path}",
                              "range": self.headers.get("Range"), "status": status, "bytes": len(sent),
                              "sha256": hashlib.sha256(sent).hexdigest()})

    def log_message(self, *_):
        pass


class Origin(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, directory, log, port):
        super().__init__(("127.0.0.2", port), Handler)
        self.directory = os.path.abspath(directory)
        self.log = open(log, "a", encoding="utf-8", buffering=1)
        self.lock = threading.Lock()

    def tampered(self):
        try:
            with open(os.path.join(self.directory, ".tampered"), encoding="utf-8") as file:
                return file.read().split("\n")
        except FileNotFoundError:
            return []

    def note(self, entry):
        with self.lock:
            self.log.write(json.dumps(entry) + "\n")

    def handle_error(self, request, client_address):
        # A client that leaves in the middle is nothing to tell.
        pass


def authority(directory):
    """An authority, and a leaf of it for the address that is listened on."""
    path = lambda name: os.path.join(directory, name)
    run = lambda *arguments: subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if os.path.exists(path("leaf.pem")):
        context.load_cert_chain(path("leaf.pem"), path("leaf.key"))
        return context
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("req", "-x509", *key, "-days", "2", "-subj", "/CN=origin", "-keyout", path("ca.key"), "-out", path("ca.pem"))
    run("req", "-new", *key, "-subj", "/CN=leaf", "-keyout", path("leaf.key"), "-out", path("leaf.csr"))
    with open(path("leaf.ext"), "w", encoding="ascii") as file:
        file.write("subjectAltName=IP:127.0.0.2\n")
    run("x509", "-req", "-in", path("leaf.csr"), "-CA", path("ca.pem"), "-CAkey", path("ca.key"), "-CAcreateserial",
        "-days", "2", "-extfile", path("leaf.ext"), "-out", path("leaf.pem"))
    context.load_cert_chain(path("leaf.pem"), path("leaf.key"))
    return context


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("directory", "authority", "log"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    origin = Origin(arguments.directory, arguments.log, arguments.port)
    origin.socket = authority(arguments.authority).wrap_socket(origin.socket, server_side=True, do_handshake_on_connect=False)
    print("127.0.0.2:%d" % origin.server_address[1], flush=True)
    origin.serve_forever()


main()
