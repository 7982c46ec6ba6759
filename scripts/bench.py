#!/usr/bin/env python3
"""The cells of scripts/bench: larder beside its peers, the server on one core, the load on the other, repetitions
interleaved. Prints a table of medians with their spread and the ratio to the reference; see docs/benchmark.md."""

import argparse
import hashlib
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import bench_peers as peers  # noqa: E402

SIZES = {"4k": 4 << 10, "64k": 64 << 10, "1m": 1 << 20, "16m": 16 << 20, "256m": 256 << 20}
SMALL = 2000
BY_HASH = "dists/bench/main/binary-all/by-hash/SHA256"


class Bench:
    """The files, the servers, and what was measured."""

    def __init__(self, arguments, place):
        self.arguments, self.place, self.rows = arguments, place, []
        self.pki = place / "pki"
        self.pki.mkdir()
        peers.make_certificates(self.pki)
        self.files = place / "files"
        self.files.mkdir()
        self.sums = {}
        for name, size in SIZES.items():
            body = os.urandom(size)
            (self.files / name).write_bytes(body)
            self.sums[name] = hashlib.sha256(body).hexdigest()
        # Over plain http a digest in the URL, or a signed index, must vouch for a body that is to be kept.
        (self.files / BY_HASH).mkdir(parents=True)
        for name in ("4k", "1m"):
            shutil.copy(self.files / name, self.files / BY_HASH / self.sums[name])
        for turn in range(arguments.repeat):
            for who in ("larder", "squid"):
                (self.files / f"small-{who}-{turn}").mkdir()
                for number in range(SMALL):
                    (self.files / f"small-{who}-{turn}" / str(number)).write_bytes(os.urandom(4096))
        self.origin = peers.nginx("origin", place, self.pki, peers.origin_site(self.files), core=peers.LOAD_CORE,
                                  log=f"{place}/origin-access.log")
        self.static = peers.nginx("static", place, self.pki, peers.static_site(self.files))
        self.cache = peers.nginx("cache", place, self.pki, peers.cache_site(self.origin.how["plain"]))
        self.squid = peers.squid(place, self.pki)
        self.acng = peers.apt_cacher_ng(place)
        self.larder = peers.larder(arguments.larder, place, self.pki)
        self.tunnel = peers.larder(arguments.larder, place, self.pki, "tunnel", LARDER_HOSTS_TUNNEL="localhost")
        page = (self.larder.how["data"] / "state" / "ca.crt").read_bytes()
        (self.pki / "all.pem").write_bytes(page + (self.pki / "ca.pem").read_bytes())

    # --- one measurement ------------------------------------------------------------------------------------------------

    def load(self, target, host, path, requests, size, **how):
        words = [self.arguments.load, "run", "--target", f"127.0.0.1:{target}", "--host", f"localhost:{host}", "--path", path,
                 "--requests", str(requests), "--length", str(size)]
        for word, value in how.items():
            flag = "--" + word.replace("_", "-")
            words += [flag] if value is True else [flag, str(value)] if value not in (None, False) else []
        done = subprocess.run(["taskset", "-c", peers.LOAD_CORE, *words], capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            raise SystemExit(f"the load failed: {' '.join(words)}\n{done.stderr}")
        result = json.loads(done.stdout)
        if result["wrong"] or result["right"] < requests:
            raise SystemExit(f"{result['wrong']} wrong answers, {result['right']} right: {' '.join(words)}")
        return result

    def through(self, server, path, requests, size, tls=True, **how):
        """A load on `server`: on nginx's own port, or through a proxy to the origin's."""
        if tls:
            how["tls"] = self.pki / "all.pem"
        if server in (self.static, self.cache):
            port = server.how["h2" if how.get("streams") else "tls" if tls else "plain"]
            return self.load(port, port, path, requests, size, **how)
        if server is self.tunnel:
            return self.load(server.port, self.static.how["tls"], path, requests, size, proxy=True, **how)
        return self.load(server.port, self.origin.how["tls" if tls else "plain"], path, requests, size, proxy=True, **how)

    def by_hash(self, name):
        return f"/{BY_HASH}/{self.sums[name]}"

    def asked(self):
        """How many requests the origin has seen."""
        return len((self.place / "origin-access.log").read_text().splitlines())

    def cpu(self, server):
        """A tunnel's cost is that of the tunnel and of the server behind it."""
        return server.cpu() + (self.static.cpu() if server is self.tunnel else 0)

    def hits(self, cell, file, requests, contenders, unit, limit, path=None, **how):
        """Measures each contender on hits of `file`; the first is the reference, the last is larder."""
        if not self.wanted(cell):
            return
        path, size, sha = path or f"/{file}", SIZES.get(file, SIZES["4k"]), self.sums[file]
        found = {server.name: [] for server in contenders}
        speed = {server.name: [] for server in contenders}
        last = {}
        for turn in range(-1, self.arguments.repeat):
            for server in contenders:
                count = max(how.get("connections", 1), requests // 20) if turn < 0 else requests
                before, asked = self.cpu(server), self.asked()
                result = self.through(server, path, count, size, sha256=sha, **how)
                cost = self.cpu(server) - before
                if turn < 0:
                    continue
                if self.asked() > asked:
                    line = f"{cell}: {server.name} asked the origin {self.asked() - asked} times for {count} hits"
                    if server is self.larder:
                        raise SystemExit(line)
                    print(line, file=sys.stderr)
                gigabytes = result["bytes"] / 1e9
                value = {"us": cost / count * 1e6, "s/GB": cost / gigabytes, "MB/s": result["bytes"] / 1e6 / result["seconds"]}[unit]
                found[server.name].append(value)
                speed[server.name].append(count / result["seconds"])
                last[server.name] = result
        for server in contenders:
            self.add(cell, server.name, found[server.name], unit, contenders[0].name, limit if server is contenders[-1] else None,
                     per_second=statistics.median(speed[server.name]), p50=last[server.name]["end_us"]["p50"],
                     p99=last[server.name]["end_us"]["p99"])

    def wanted(self, cell):
        if self.arguments.only and self.arguments.only not in cell:
            return False
        print(f"… {cell}", file=sys.stderr, flush=True)
        return True

    def add(self, cell, name, values, unit, reference, limit, **more):
        row = {"cell": cell, "server": name, "unit": unit, "median": statistics.median(values), "min": min(values),
               "max": max(values), "reference": reference, "limit": limit, **more}
        base = next((r["median"] for r in self.rows if r["cell"] == cell and r["server"] == reference), row["median"])
        row["ratio"] = row["median"] / base if base else None
        self.rows.append(row)

    # --- the cells ------------------------------------------------------------------------------------------------------

    def all_hits(self):
        static, cache, squid, larder = self.static, self.cache, self.squid, self.larder
        n = self.arguments.scale
        self.hits("4k keep-alive ×16", "4k", 30000 * n, [static, cache, squid, larder], "us", ("<=", 0.9), connections=16)
        self.hits("64k ×16", "64k", 12000 * n, [static, cache, squid, larder], "us", ("<=", 0.9), connections=16)
        self.hits("1m ×8", "1m", 2000 * n, [static, cache, squid, larder], "s/GB", ("<=", 0.9), connections=8)
        self.hits("256m ×1", "256m", 6 * n, [static, larder], "MB/s", (">=", 1.0), connections=1)
        self.hits("256m ×4", "256m", 8 * n, [static, larder], "MB/s", (">=", 1.0), connections=4)
        for word, resume in (("full", False), ("resumed", True)):
            self.hits(f"connection, {word} handshake, 4k", "4k", 3000 * n, [self.tunnel, static, squid, larder], "us", ("<=", 1.2),
                      connections=4, per_connection=1, resume=resume)
        self.hits("http 4k", "4k", 30000 * n, [cache, squid, *([self.acng] if self.acng else []), larder], "us",
                  ("<=", 0.8), path=self.by_hash("4k"), connections=16, tls=False)
        self.hits("http 1m", "1m", 3000 * n, [static, cache, squid, larder], "s/GB", ("<=", 2), path=self.by_hash("1m"),
                  connections=8, tls=False)
        self.hits("h2 4k, 32 streams", "4k", 30000 * n, [static, larder], "us", ("<=", 0.9), streams=32)

    def cold_big(self, cell, path, limit):
        if not self.wanted(cell):
            return
        direct, through = [], []
        for turn in range(self.arguments.repeat):
            port = self.origin.how["tls"]
            direct.append(self.load(port, port, f"{path}/d{turn}", 1, SIZES["256m"], tls=self.pki / "all.pem")["seconds"])
            through.append(self.through(self.larder, f"{path}/{turn}", 1, SIZES["256m"])["seconds"])
        self.add(cell, "direct", direct, "s", "direct", None)
        self.add(cell, "larder", through, "s", "direct", ("<=", limit))

    def cold_crowd(self):
        cell = "cold, 50 clients on one file"
        if not self.wanted(cell):
            return
        spread, asked = [], []
        log = self.place / "origin-access.log"
        for turn in range(self.arguments.repeat):
            result = self.through(self.larder, f"/shared/{turn}", 50, SIZES["16m"], connections=50)
            spread.append((result["head_us"]["max"] - result["head_us"]["p50"]) / 1000)
            time.sleep(0.2)
            asked.append(len(re.findall(rf"GET /shared/{turn} ", log.read_text())))
        self.add(cell, "upstream requests", asked, "count", "", ("<=", 1))
        self.add(cell, "first byte, last client after the median", spread, "ms", "", ("<=", 50))

    def cold_small(self):
        cell = f"cold, {SMALL} files of 4k, 32 at once"
        if not self.wanted(cell):
            return
        for unit in ("us", "s"):
            figures = {"squid": [], "larder": []}
            if unit == "us":
                kept = {}
                for turn in range(self.arguments.repeat):
                    for server in (self.squid, self.larder):
                        before = server.cpu()
                        result = self.through(server, f"/small-{server.name}-{turn}/{{}}", SMALL, 4096, connections=32)
                        figures[server.name].append((server.cpu() - before) / SMALL * 1e6)
                        kept.setdefault(server.name, []).append(result["seconds"])
            else:
                figures = kept
            name = cell if unit == "us" else cell + ", time"
            self.add(name, "squid", figures["squid"], unit, "squid", None)
            self.add(name, "larder", figures["larder"], unit, "squid", ("<=", 1.0))

    def memory(self, cell, limit):
        if self.wanted(cell):
            self.add(cell, "larder", [self.larder.rss()], "MB", "", ("<=", limit))


def judged(row):
    """Whether larder's row keeps its limit, or None if it has none."""
    if not row["limit"]:
        return None
    value = row["ratio"] if row["reference"] else row["median"]
    return value <= row["limit"][1] if row["limit"][0] == "<=" else value >= row["limit"][1]


def table(rows):
    print("\n| cell | server | median | spread | unit | per second | p50 µs | p99 µs | ratio | aim | |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        aim = f"{row['limit'][0]} {row['limit'][1]}" if row["limit"] else ""
        kept = {True: "yes", False: "**no**", None: ""}[judged(row)]
        ratio = f"{row['ratio']:.2f}" if row["reference"] else ""
        more = [f"{row[key]:.0f}" if row.get(key) is not None else "" for key in ("per_second", "p50", "p99")]
        print(f"| {row['cell']} | {row['server']} | {row['median']:.3g} | {row['min']:.3g} – {row['max']:.3g} | {row['unit']} | "
              + " | ".join(more) + f" | {ratio} | {aim} | {kept} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--larder", required=True)
    parser.add_argument("--load", required=True)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1, help="this many times the requests")
    parser.add_argument("--only", help="cells whose name contains this")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    place = pathlib.Path(tempfile.mkdtemp(prefix="larder-bench."))
    place.chmod(0o755)
    try:
        bench = Bench(arguments, place)
        bench.memory("memory, empty", 20)
        bench.all_hits()
        bench.cold_big("cold 256m, origin at 1 Gbit/s", "/gigabit", 1.05)
        bench.cold_big("cold 256m, origin unlimited", "/cold", 1.3)
        bench.cold_crowd()
        bench.cold_small()
        bench.memory("memory, after all this", 96)
        table(bench.rows)
        if arguments.json:
            arguments.json.write_text(json.dumps(bench.rows, indent=1))
    finally:
        for server in peers.Server.running:
            server.stop()
        shutil.rmtree(place, ignore_errors=True)


main()
