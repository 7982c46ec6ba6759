#!/usr/bin/env python3
"""Two small relays that let tools without TLS or without proxy support take part in scripts/e2e.

    relay.py front --certificate PEM --key PEM --to HOST:PORT
        TLS in front of a plain http server.
    relay.py through --proxy HOST:PORT --ca PEM --to HOST:PORT
        a plain listener whose requests go through the proxy to the https origin HOST:PORT; `Host` is made to agree.

Both print the address they listen on. One request a connection: both ends are told to close.
"""

import argparse
import asyncio
import ssl

PIECE = 65536


async def pump(reader, writer):
    try:
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()
    except (OSError, ssl.SSLError):
        pass
    finally:
        try:
            if writer.can_write_eof():
                writer.write_eof()
            else:
                writer.close()
        except OSError:
            pass


async def both(one, other):
    await asyncio.gather(pump(one[0], other[1]), pump(other[0], one[1]))
    for _, writer in (one, other):
        writer.close()


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def front(arguments):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arguments.certificate, arguments.key)

    async def serve(reader, writer):
        try:
            await both((reader, writer), await asyncio.open_connection(*address(arguments.to)))
        except OSError:
            writer.close()

    return serve, context


def through(arguments):
    host, _ = address(arguments.to)
    context = ssl.create_default_context(cafile=arguments.ca)

    async def serve(reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            kept = [line for line in head[:-2] if not line.lower().startswith((b"host:", b"connection:"))]
            kept += [b"Host: " + arguments.to.encode(), b"Connection: close", b"", b""]
            origin = await asyncio.open_connection(*address(arguments.proxy))
            origin[1].write(f"CONNECT {arguments.to} HTTP/1.1\r\nHost: {arguments.to}\r\n\r\n".encode())
            await origin[0].readuntil(b"\r\n\r\n")
            await origin[1].start_tls(context, server_hostname=host)
            origin[1].write(b"\r\n".join(kept))
            await both((reader, writer), origin)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    return serve, None


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    one = modes.add_parser("front")
    one.add_argument("--certificate", required=True)
    one.add_argument("--key", required=True)
    other = modes.add_parser("through")
    other.add_argument("--proxy", required=True)
    other.add_argument("--ca", required=True)
    for mode in (one, other):
        mode.add_argument("--to", required=True)
    arguments = parser.parse_args()
    serve, context = front(arguments) if arguments.mode == "front" else through(arguments)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print("%s:%d" % server.sockets[0].getsockname()[:2], flush=True)
    await server.serve_forever()


asyncio.run(main())
