"""Makes an npm package that carries the program: npm.py --version V --output DIR --readme FILE --program MACHINE=FILE... [LICENCE]...

MACHINE is what `uname -m` prints. The package has no JavaScript: its command is a shell script that runs the machine's
program in its place, so that signals and the exit code are the program's own. The same input gives the same bytes.
"""

import argparse
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

# The wheel's name, so that there is one to remember.
NAME = "larder-cache"
# What npm calls machines.
CPUS = {"x86_64": "x64", "aarch64": "arm64"}
LAUNCHER = """\
#!/bin/sh
# npm makes a link to this file, which lies beside the programs.
here=$(dirname "$(readlink -f "$0")")
program=$here/../native/larder-$(uname -m)
if [ ! -x "$program" ]; then
  echo "larder: this package has no program for $(uname -m)" >&2
  exit 126
fi
exec "$program" "$@"
"""


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--version", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--readme", type=Path, required=True)
    parser.add_argument("--program", action="append", required=True, metavar="MACHINE=FILE")
    parser.add_argument("--libc", choices=["glibc"], help="the only C library that the programs run with")
    parser.add_argument("licences", type=Path, nargs="*")
    return parser.parse_args()


def main():
    said = arguments()
    programs = dict(pair.split("=", 1) for pair in said.program)
    package = {
        "name": NAME,
        "version": said.version,
        "description": "One cache for everything a build downloads: an intercepting proxy that proves every byte it keeps",
        "license": "MIT OR Apache-2.0",
        "bin": {"larder": "bin/larder"},
        "os": ["linux"],
        "cpu": [CPUS[machine] for machine in sorted(programs)],
    }
    if said.libc:
        package["libc"] = [said.libc]
    files = {
        "package.json": ((json.dumps(package, indent=2) + "\n").encode(), 0o644),
        "README.md": (said.readme.read_bytes(), 0o644),
        "bin/larder": (LAUNCHER.encode(), 0o755),
    }
    for licence in said.licences:
        files[licence.name] = (licence.read_bytes(), 0o644)
    for machine, program in sorted(programs.items()):
        files[f"native/larder-{machine}"] = (Path(program).read_bytes(), 0o755)

    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    path = said.output / f"{NAME}-{said.version}.tgz"
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=epoch) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, (data, mode) in files.items():
                member = tarfile.TarInfo(f"package/{name}")
                member.size, member.mode, member.mtime = len(data), mode, epoch
                archive.addfile(member, io.BytesIO(data))
    print(path)


main()
