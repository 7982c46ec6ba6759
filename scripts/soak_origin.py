"""The origin of scripts/soak: every byte of every path is known to who asks, and it fails in every way an origin can.

    /file/SIZE/NAME                                   any file, fresh for an hour
    /simple/PROJECT/                                  an index that promises the digest of one wheel
    /packages/SIZE/PROJECT-1.0-py3-none-any.whl       that wheel

A part of the answers fails, each in one of FAULTS. Wrong bytes come only where a digest was promised: elsewhere nobody
but the soak could tell.
"""

import asyncio
import hashlib
import random
import re
import socket
import struct

BLOCK = random.Random(17).randbytes((1 << 20) + 7)
PIECE = 1 << 18
WHEEL = 200_000
FAULTS = ("hang", "reset", "truncated", "503", "slow", "wrong", "close before the head")


def pieces(path, start, end):
    """The bytes of a path from `start` to `end`: a block over and over, begun where the path's digest says."""
    view = memoryview(BLOCK)
    at = (int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") + start) % len(BLOCK)
    left = end - start
    while left > 0:
        piece = view[at : at + min(left, PIECE)]
        yield piece
        left -= len(piece)
        at = (at + len(piece)) % len(BLOCK)


def size_of(path):
    return int(path.split("/")[2])


def wheel_of(project):
    return f"/packages/{WHEEL}/{project}-1.0-py3-none-any.whl"


def index_of(project):
    path = wheel_of(project)
    digest = hashlib.sha256(b"".join(pieces(path, 0, WHEEL))).hexdigest()
    name = path.rsplit("/", 1)[1]
    return f'<!DOCTYPE html><html><body><a href="../..{path}#sha256={digest}">{name}</a></body></html>'.encode()


class Origin:
    """`rate` and `planted` are shared with the soak: the part of answers that fail, and of files with a wrong byte."""

    def __init__(self, rate, planted):
        self.rate, self.planted, self.random = rate, planted, random.Random(7)

    async def connection(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ", 2)
                fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
                if not await self.answer(writer, method, path, fields):
                    break
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.transport.abort()

    async def answer(self, writer, method, path, fields):
        """Whether the connection may go on."""
        fault = self.random.choice(FAULTS) if self.random.random() < self.rate.value else None
        if fault == "hang":
            await asyncio.sleep(20)
            return False
        if fault == "close before the head":
            return False
        if fault == "503":
            writer.write(b"HTTP/1.1 503 X\r\nContent-Length: 3\r\n\r\nno\n")
            await writer.drain()
            return True
        if path.startswith("/simple/"):
            page = index_of(path.split("/")[2])
            kind, start, size, parts = "text/html", 0, len(page), iter([page])
            end = size
        else:
            size, kind = size_of(path), "application/octet-stream"
            start, end = 0, size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", fields.get("range", ""))
            if asked and int(asked[1]) < size and fields.get("if-range", '"1"') == '"1"':
                start, end = int(asked[1]), min(int(asked[2] or size - 1) + 1, size)
            parts = pieces(path, start, end)
        status = "206 X" if end - start < size else "200 X"
        extra = f"Content-Range: bytes {start}-{end - 1}/{size}\r\n" if end - start < size else ""
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {end - start}\r\nContent-Type: {kind}\r\n{extra}"
            f'ETag: "1"\r\nAccept-Ranges: bytes\r\nCache-Control: max-age=3600\r\n\r\n'.encode()
        )
        if method == "HEAD":
            await writer.drain()
            return True
        wrong = path.startswith("/packages/") and fault == "wrong"
        wrong |= path.startswith("/file/") and self.random.random() < self.planted.value
        given, breaks = 0, (end - start) // 2
        for part in parts:
            if wrong:
                part, wrong = bytes([part[0] ^ 1]) + bytes(part[1:]), False
            if fault in ("reset", "truncated") and given + len(part) > breaks:
                writer.write(bytes(part[: max(0, breaks - given)]))
                await writer.drain()
                if fault == "reset":
                    raw = writer.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    writer.close()
                    await asyncio.sleep(0.2)
                return False
            writer.write(bytes(part))
            given += len(part)
            await writer.drain()
            if fault == "slow":
                await asyncio.sleep(0.5)
        return True


def serve(tls, pipe, rate, planted):
    """Runs in a process of its own; says its two ports, of https and of http."""

    async def run():
        origin = Origin(rate, planted)
        secure = await asyncio.start_server(origin.connection, "127.0.0.1", 0, ssl=tls(), backlog=4096)
        plain = await asyncio.start_server(origin.connection, "127.0.0.1", 0, backlog=4096)
        pipe.send([server.sockets[0].getsockname()[1] for server in (secure, plain)])
        await asyncio.Event().wait()

    asyncio.run(run())
