#!/usr/bin/env python3
"""A small relay that lets a server without TLS take part in scripts/e2e.

    relay.py front --certificate PEM --key PEM --to HOST:PORT
        TLS in front of a plain http server.

It prints the address it listens on.
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


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    one = parser.add_subparsers(dest="mode", required=True).add_parser("front")
    one.add_argument("--certificate", required=True)
    one.add_argument("--key", required=True)
    one.add_argument("--to", required=True)
    serve, context = front(parser.parse_args())
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print("%s:%d" % server.sockets[0].getsockname()[:2], flush=True)
    await server.serve_forever()


asyncio.run(main())
