#!/usr/bin/env python3
"""Judges what the forwarder saw against what the clients ended up with.

    judge.py LOG FROM TO FILES...      prints: responses, body bytes, artifact responses, artifact bytes

LOG is the forwarder's, FROM and TO the lines of one run (0 for its beginning, -1 for its end). An artifact response is
one whose body is, by SHA-256, a file that a client ended up with, or whose URL ends in such a file's name: so a part of
a file counts as well, and no list of hosts or suffixes is needed.
"""

import hashlib
import json
import os
import sys
import urllib.parse


def main():
    log, first, last, *paths = sys.argv[1:]
    digests, names = set(), set()
    for path in paths:
        with open(path, "rb") as file:
            digests.add(hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest")
                        else hashlib.sha256(file.read()).hexdigest())
        # apt writes the epoch's colon as %3a into the name of its copy.
        names.add(urllib.parse.unquote(os.path.basename(path)))
    with open(log, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    lines = lines[int(first):None if last == "-1" else int(last)]
    artifacts = []
    for line in lines:
        name = urllib.parse.unquote(urllib.parse.urlsplit(line["url"]).path.rsplit("/", 1)[-1])
        if line["bytes"] and line["status"] in (200, 206) and (line["sha256"] in digests or name in names):
            artifacts.append(line)
    for line in artifacts if os.environ.get("JUDGE_SHOW") else []:
        print(line["url"], line["bytes"], file=sys.stderr)
    print(len(lines), sum(line["bytes"] for line in lines), len(artifacts), sum(line["bytes"] for line in artifacts))


main()
