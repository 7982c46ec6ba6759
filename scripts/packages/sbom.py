"""Writes larder's own bill of materials: sbom.py --target TRIPLE --output FILE.

CycloneDX 1.5 in JSON: each crate that is linked into the program for TRIPLE, with its version, licence, the SHA-256 of its
archive in Cargo.lock, and what it depends on. Crates that only run while larder is built (build scripts, procedural macros)
have the scope `excluded`; those that only tests use are left out. Needs cargo and the sources that a build has anyway. The same
input gives the same bytes (SOURCE_DATE_EPOCH dates the document).
"""

import argparse
import datetime
import json
import os
import subprocess
import tomllib
import uuid
from pathlib import Path


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def kinds_used(edge):
    return {kind["kind"] or "normal" for kind in edge["dep_kinds"]}


def cargo(*words):
    return subprocess.run(["cargo", *words, "--locked"], check=True, stdout=subprocess.PIPE, text=True).stdout


def crates(edges, target):
    """The names and versions of the crates along these edges. The metadata has those of tests and of their features as well."""
    said = cargo("tree", "--edges", edges, "--prefix", "none", "--format", "{p}", "--target", target)
    words = (line.split() for line in said.splitlines() if line)
    return {(name, version.removeprefix("v")) for name, version, *_ in words}


def main():
    said = arguments()
    metadata = json.loads(cargo("metadata", "--format-version", "1", "--filter-platform", said.target))
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    lock = tomllib.loads(Path("Cargo.lock").read_text(encoding="utf-8"))
    checksums = {(one["name"], one["version"]): one.get("checksum") for one in lock["package"]}
    linked = crates("normal,no-proc-macro", said.target)
    used = linked | crates("normal,build", said.target)
    kept = {crate for crate, package in packages.items() if (package["name"], package["version"]) in used}

    def reference(crate):
        return f"pkg:cargo/{packages[crate]['name']}@{packages[crate]['version']}"

    def component(crate):
        package = packages[crate]
        found = {
            "type": "application" if crate == root else "library",
            "bom-ref": reference(crate),
            "name": package["name"],
            "version": package["version"],
            "purl": reference(crate),
        }
        if package["license"]:
            # The older way to write OR, which is no SPDX expression.
            found["licenses"] = [{"expression": " ".join(package["license"].replace("/", " OR ").split())}]
        checksum = checksums.get((package["name"], package["version"]))
        if checksum:
            found["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        if crate != root:
            found["scope"] = "required" if (package["name"], package["version"]) in linked else "excluded"
        return found

    def depends_on(crate):
        wanted = {edge["pkg"] for edge in nodes[crate]["deps"] if kinds_used(edge) & {"normal", "build"}}
        return sorted(reference(one) for one in wanted & kept)

    components = sorted((component(crate) for crate in kept - {root}), key=lambda one: one["bom-ref"])
    dependencies = [{"ref": reference(crate), "dependsOn": depends_on(crate)} for crate in sorted(kept, key=reference)]
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([components, said.target]))}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": component(root),
            "properties": [{"name": "larder:target", "value": said.target}],
        },
        "components": components,
        "dependencies": dependencies,
    }
    said.output.write_text(json.dumps(bill, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(linked) - 1} crates in the program, {len(used) - len(linked)} more that build it")


main()
