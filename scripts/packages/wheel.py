"""Makes a Python wheel that carries the program: wheel.py --binary FILE --version V --platform TAG --output DIR [LICENCE]...

The wheel has no Python code: pip puts the program where it puts scripts. The same input gives the same bytes
(SOURCE_DATE_EPOCH dates the members). Formats: packaging.python.org, "Binary distribution format" and "Core metadata".
"""

import argparse
import base64
import hashlib
import os
import time
import zipfile
from pathlib import Path

# `larder` is another project's name on the public index.
NAME = "larder-cache"


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--platform", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--readme", type=Path, required=True)
    parser.add_argument("licences", type=Path, nargs="*")
    return parser.parse_args()


def digest(data):
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def main():
    said = arguments()
    stem = f"{NAME.replace('-', '_')}-{said.version}"
    about = f"{stem}.dist-info"
    metadata = "\n".join(
        [
            "Metadata-Version: 2.1",
            f"Name: {NAME}",
            f"Version: {said.version}",
            "Summary: One cache for everything a build downloads: an intercepting proxy that proves every byte it keeps",
            "License: MIT OR Apache-2.0",
            *(f"License-File: {licence.name}" for licence in said.licences),
            "Requires-Python: >=3.7",
            "Description-Content-Type: text/markdown",
            "",
            said.readme.read_text(encoding="utf-8"),
        ]
    )
    tags = [f"Tag: py3-none-{platform}" for platform in said.platform.split(".")]
    wheel = "\n".join(["Wheel-Version: 1.0", "Generator: larder scripts/package", "Root-Is-Purelib: false", *tags, ""])
    members = {
        f"{stem}.data/scripts/larder": (said.binary.read_bytes(), 0o755),
        f"{about}/METADATA": (metadata.encode(), 0o644),
        f"{about}/WHEEL": (wheel.encode(), 0o644),
    }
    for licence in said.licences:
        members[f"{about}/licenses/{licence.name}"] = (licence.read_bytes(), 0o644)
    record = "".join(f"{name},sha256={digest(data)},{len(data)}\n" for name, (data, _) in members.items())
    members[f"{about}/RECORD"] = (f"{record}{about}/RECORD,,\n".encode(), 0o644)

    # A ZIP file holds no year before 1980.
    epoch = max(int(os.environ.get("SOURCE_DATE_EPOCH") or 0), 315532800)
    path = said.output / f"{stem}-py3-none-{said.platform}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, (data, mode) in members.items():
            member = zipfile.ZipInfo(name, time.gmtime(epoch)[:6])
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system = 3
            member.external_attr = (0o100000 | mode) << 16
            archive.writestr(member, data)
    print(path)


main()
