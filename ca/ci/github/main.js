// The first half of the action (action.yml): gets larder, starts it, and sets the variables of the job's later steps.
//
//   program ── the one that is named, or a release's archive, checked against its SHA-256
//   serve   ── `larder serve` on loopback, at a free port, detached
//   env     ── `larder env --format github` appended to $GITHUB_ENV
//
// No packages: GitHub's own are not needed for this little. What main leaves for post is in $GITHUB_STATE.
"use strict";

const { execFileSync, spawn } = require("node:child_process");
const { createHash } = require("node:crypto");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const pause = () => new Promise((resolve) => setTimeout(resolve, 100));
const input = (name) => (process.env[`INPUT_${name.toUpperCase()}`] || "").trim();

function append(file, text) {
  fs.appendFileSync(process.env[file], text.endsWith("\n") ? text : `${text}\n`);
}

// A file of the release; redirects are followed, anything else than a 200 is an error.
async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
  return Buffer.from(await answer.arrayBuffer());
}

async function installed() {
  if (input("program")) return input("program");
  const machine = { x64: "x86_64", arm64: "aarch64" }[process.arch];
  if (process.platform !== "linux" || !machine) {
    throw new Error(`larder does not run on ${process.platform}-${process.arch}`);
  }
  const version = input("version").replace(/^v/, "");
  if (!/^[0-9A-Za-z.+-]+$/.test(version)) throw new Error(`version: ${version} is none`);
  const releases = `${process.env.GITHUB_SERVER_URL}/${process.env.GITHUB_ACTION_REPOSITORY}/releases/download/v${version}`;
  const sums = (await fetched(`${releases}/SHA256SUMS`)).toString();
  // A static program if there is one: it runs in any container of the job, too.
  const names = ["musl", "gnu"].map((libc) => `larder-${version}-${machine}-linux-${libc}.tar.gz`);
  const listed = sums.split("\n").map((line) => line.split(/ [ *]/));
  const [sum, name] = names.map((name) => listed.find((line) => line[1] === name)).find((line) => line) || [];
  if (!name) throw new Error(`${releases}/SHA256SUMS lists no archive for ${machine}`);
  const archive = await fetched(`${releases}/${name}`);
  const found = createHash("sha256").update(archive).digest("hex");
  const expected = input("sha256").toLowerCase() || sum;
  if (found !== expected) throw new Error(`${name} has the SHA-256 ${found}, not ${expected}; it was not installed`);
  const directory = fs.mkdtempSync(path.join(process.env.RUNNER_TEMP || os.tmpdir(), "larder-"));
  execFileSync("tar", ["-xz", "--strip-components=1", "-C", directory], { input: archive });
  append("GITHUB_PATH", directory);
  return path.join(directory, "larder");
}

// Until the larder that serves from `data` can be asked.
async function ready(program, data, files, child, log) {
  let why = "";
  for (let tries = 0; tries < 300; tries += 1) {
    if (child.exitCode !== null) break;
    try {
      const words = ["env", "--data", data, "--format", "github", "--directory", files];
      return execFileSync(program, words, { stdio: ["ignore", "pipe", "pipe"] }).toString();
    } catch (error) {
      why = `${error.stderr || error.message}`.trim();
      await pause();
    }
  }
  child.kill();
  throw new Error(`larder did not start: ${why}\n${fs.readFileSync(log, "utf8").trim()}`);
}

async function main() {
  const program = await installed();
  const data = path.resolve(input("data").replace(/^~(?=\/|$)/, os.homedir()) || path.join(os.homedir(), ".cache/larder"));
  append("GITHUB_STATE", `program=${program}`);
  fs.mkdirSync(data, { recursive: true, mode: 0o700 });
  const temporary = process.env.RUNNER_TEMP || os.tmpdir();
  const log = path.join(temporary, "larder.log");
  const out = fs.openSync(log, "a");
  // The steps of the job are not its parents: it stays until post ends it.
  const child = spawn(program, ["serve", "--listen", "127.0.0.1:0", "--data", data], { detached: true, stdio: ["ignore", out, out] });
  child.on("error", () => {});
  child.unref();
  append("GITHUB_STATE", `pid=${child.pid}\ndata=${data}\nlog=${log}`);
  append("GITHUB_ENV", await ready(program, data, path.join(temporary, "larder-clients"), child, log));
  const line = fs.readFileSync(log, "utf8").split("\n").find((text) => text.includes("listening on")) || "";
  console.log(`larder ${line.replace(/^.*listening on/, "listens on")}; the steps that follow download through it`);
}

main().catch((error) => {
  console.log(`::error::larder: ${error.message.replaceAll("\n", "%0A")}`);
  process.exitCode = 1;
});
