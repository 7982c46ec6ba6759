#!/usr/bin/env python3
"""What of a larder is left in an image: in its files and their names, its configuration and its history.

    trace.py ROOT INSPECTED CA ADDRESS      prints each trace; exit code 0 if there is none, 1 if there is one

ROOT is the image's root directory, INSPECTED what `buildah inspect --type image` says of it, CA the larder's certificate
in PEM, ADDRESS its HOST:PORT. Looked for are larder's name in any case of letters, its address, and its certificate: each
line of the PEM, the DER as it is, and both hashes as people write them. In what was inspected also variables and build
arguments for proxies. Every file is read whole, whatever it is.
"""

import base64
import hashlib
import os
import re
import stat
import sys


def needles(ca, address):
    lines = [line for line in ca.split() if line and b"-----" not in line and b"CERTIFICATE" not in line]
    der = base64.b64decode(b"".join(lines))
    found = {"its address": address.encode(), "its certificate": der[-48:]}
    # The last line is the signature's end and can be short; those before it are as unlike any other's.
    for line in lines[-4:]:
        if len(line) >= 32:
            found["a line of its certificate " + line[:8].decode()] = line
    for kind in ("sha256", "sha1"):
        digest = hashlib.new(kind, der).hexdigest()
        colons = ":".join(re.findall("..", digest))
        found[f"its certificate's {kind}"] = digest.encode()
        found[f"its certificate's {kind}, with colons"] = colons.encode()
    return found


def traces(data, found):
    lower = data.lower()
    hits = [what for what, needle in found.items() if needle in data or needle.lower() in lower]
    # A word of its own, or part of a name: no letter before it, as in other words.
    hits += ["its name"] if re.search(rb"(?<![a-z])larder", lower) else []
    return hits


def main():
    root, inspected, ca, address = sys.argv[1:]
    with open(ca, "rb") as file:
        found = needles(file.read(), address)
    count, files, size = 0, 0, 0
    for directory, directories, names in os.walk(root):
        for name in directories + names:
            path = os.path.join(directory, name)
            shown, kind = path[len(root):], os.lstat(path).st_mode
            hits = traces(os.fsencode(name), found)
            if stat.S_ISLNK(kind):
                hits += traces(os.fsencode(os.readlink(path)), found)
            elif stat.S_ISREG(kind):
                with open(path, "rb") as file:
                    data = file.read()
                files, size = files + 1, size + len(data)
                hits += traces(data, found)
            for hit in hits:
                count += 1
                print(f"{shown}: {hit}")
    with open(inspected, "rb") as file:
        data = file.read()
    hits = traces(data, found) + (["a proxy's variable"] if re.search(rb"https?_proxy", data.lower()) else [])
    for hit in hits:
        count += 1
        print(f"configuration or history: {hit}")
    print(f"searched {files} files, {size} bytes: {count} traces", file=sys.stderr)
    sys.exit(count > 0)


main()
